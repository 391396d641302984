"""Words have the times at which they were said: within bounds on speech of known times, and in order on all else."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import pycrispasr
from pycrispasr import (
    CancelledError,
    Final,
    Model,
    ModelFormatError,
    Segment,
    Token,
    Transcript,
    UnsupportedOperationError,
    Word,
)
from pycrispasr.decoding.word_times import Aligner, quiet_runs, row_edges, score, side_file, warp, word_spans
from pycrispasr.models import hub
from pycrispasr.runtimes import crispasr
from pycrispasr.text import pieces

from . import whisper_file
from .sounds import make_tones
from .spoken import Clip, clips, compose, deviations

MEDIAN, MOST = 0.08, 0.3  # seconds: of all errors, and of 95 % of them


def words_of(transcript: Transcript) -> list[Word]:
    return [word for segment in transcript.segments for word in segment.words or ()]


def check_errors(model: Model, recordings: list[Clip], *, least: float, times: str = "calibrated") -> None:
    """Of the words at least such a share is understood, and their times are within the bounds."""
    transcripts = model.transcribe_many([clip.samples for clip in recordings], sample_rate=16000, word_timestamps=True)
    found = []
    for transcript, clip in zip(transcripts, recordings, strict=True):
        assert transcript.word_times == times
        for segment in transcript.segments:
            check_order(segment)
        found.append(deviations(words_of(transcript), clip.words))
    errors = np.abs(np.concatenate(found))
    assert len(errors) >= least * sum(len(clip.words) for clip in recordings)
    for edge in errors.T:
        assert np.median(edge) <= MEDIAN
        assert np.percentile(edge, 95) <= MOST


def check_order(segment: Segment) -> None:
    """Words make up the text, and times go forward within the segment."""
    assert segment.words is not None
    assert [word.text for word in segment.words] == [piece.strip() for piece in pieces(segment.text)]
    for timed in (segment.words, segment.tokens):
        times = [time for one in timed for time in (one.start, one.end)]
        assert times == sorted(times)  # type: ignore[type-var]
        assert all(isinstance(time, float) and segment.start <= time <= segment.end for time in times)
    for word in segment.words:
        assert 0 <= word.probability <= 1


@pytest.mark.parametrize("noise", [None, 20])
def test_words_between_pauses_have_their_times(tiny: Model, noise: float | None) -> None:
    recordings = []
    for seed in range(60):
        random = Random(seed)
        recordings.append(compose(random, random.uniform(1, 12), noise))
    check_errors(tiny, recordings, least=0.9)


def test_words_of_fluent_speech_have_their_times(tiny: Model) -> None:
    check_errors(tiny, clips("phrases"), least=0.9)


def test_times_are_absolute_in_long_recordings(tiny: Model) -> None:
    recordings = [compose(Random(f"long/{seed}"), 80) for seed in range(2)]
    check_errors(tiny, recordings, least=0.8)


def test_without_a_calibration_times_are_approximate(tmp_path: Path) -> None:
    shutil.copy(hub.resolve("tiny"), tmp_path / "alone.gguf")
    with Model(tmp_path / "alone.gguf") as model:
        check_errors(model, [compose(Random(seed), 6) for seed in range(30)], least=0.9, times="approximate")


def test_a_word_does_not_reach_into_the_pause_behind_it(tiny: Model) -> None:
    clip = clips("words")[3]
    silence = np.zeros(24000, np.float32)
    transcript = tiny.transcribe(
        np.concatenate([silence, clip.samples, silence]), sample_rate=16000, word_timestamps=True
    )
    (word,) = words_of(transcript)
    assert word.text == clip.words[0][0]
    assert word.start == pytest.approx(1.5 + clip.words[0][1], abs=0.05)
    assert word.end == pytest.approx(1.5 + clip.words[0][2], abs=0.1)


def test_sessions_give_the_words_of_the_whole_however_they_are_fed(tiny: Model) -> None:
    clip = compose(Random("session"), 40)
    wanted = tiny.transcribe(clip.samples, sample_rate=16000, word_timestamps=True)
    assert len(wanted.segments) > 1
    for block, batch in ((1600, 1), (50000, 3)):
        with tiny.session(word_timestamps=True, batch=batch) as session:
            for start in range(0, len(clip.samples), block):
                session.feed(clip.samples[start : start + block])
            done = session.finish()
            finals = [event.segment for event in session.poll() if isinstance(event, Final)]
        assert done.segments == wanted.segments
        assert done.word_times == "calibrated"
        assert finals == list(wanted.segments)


def test_with_a_voice_detector_times_are_those_of_the_recording(tiny: Model) -> None:
    silence = np.zeros(32000, np.float32)
    one, two = compose(Random("vad/1"), 3), compose(Random("vad/2"), 3)
    samples = np.concatenate([silence, one.samples, silence, two.samples, silence])
    shift = 4 + len(one.samples) / 16000
    said = [(w, s + 2, e + 2) for w, s, e in one.words] + [(w, s + shift, e + shift) for w, s, e in two.words]
    with tiny.session(vad="on", word_timestamps=True) as session:
        session.feed(samples)
        transcript = session.finish()
    assert len(transcript.segments) > 1
    errors = np.abs(deviations(words_of(transcript), said))
    assert len(errors) >= 0.8 * len(said)
    assert np.percentile(errors, 90) <= MOST


def test_nothing_else_changes_when_times_are_asked_for(tiny: Model) -> None:
    clip = compose(Random("same"), 35)
    plain = tiny.transcribe(clip.samples, sample_rate=16000)
    timed = tiny.transcribe(clip.samples, sample_rate=16000, word_timestamps=True)
    assert plain.text == timed.text
    assert plain.word_times is None
    for one, other in zip(plain.segments, timed.segments, strict=True):
        assert (one.start, one.end, one.status, one.words) == (other.start, other.end, other.status, None)
        assert [(t.id, t.text, t.probability) for t in one.tokens] == [
            (t.id, t.text, t.probability) for t in other.tokens
        ]
        assert all(token.start is None and token.end is None for token in one.tokens)


def test_a_segment_that_loops_and_is_split_has_times_in_its_parts(nano: Model) -> None:
    """The random model loops sooner or later."""
    split = 0
    for seed in range(4):
        transcript = nano.transcribe(make_tones(12, seed), sample_rate=16000, max_new_tokens=300, word_timestamps=True)
        split += len(transcript.segments) > 1
        for segment in transcript.segments:
            check_order(segment)
    assert split


def test_what_was_written_before_a_cancellation_has_times(tiny: Model) -> None:
    clip = compose(Random("cancel"), 12)
    with tiny.session(word_timestamps=True) as session:
        session.feed(clip.samples)
        assert len(list(itertools.islice(session.tokens(), 4))) == 4
        session.cancel()
        with pytest.raises(CancelledError) as caught:
            session.finish()
    (segment,) = caught.value.partial.segments
    check_order(segment)
    words = segment.words or ()
    errors = np.abs(deviations(words, clip.words[: len(words)]))
    assert len(errors) >= 3
    assert errors.max() <= 1


def test_silence_has_no_words(tiny: Model) -> None:
    (segment,) = tiny.transcribe(np.zeros(32000), sample_rate=16000, word_timestamps=True).segments
    assert segment.words == ()


# ---- The side file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "has no list of heads"),
        ("[]", "has no list of heads"),
        ('{"heads": [[1]]}', "has no list of heads"),
        ('{"heads": [[0, 0.5]]}', "has no list of heads"),
        ('{"heads": []}', "of another model"),
        ('{"heads": [[99, 0]]}', "of another model"),
        ('{"heads": [[0, -1]]}', "of another model"),
    ],
)
def test_a_side_file_that_cannot_be_right_is_refused(
    nano_path: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(nano_path, path)
    side_file(path).write_text(content)
    with Model(path) as model:
        assert model.transcribe(make_tones(0.2), sample_rate=16000, max_new_tokens=1).word_times is None
        for call in (
            lambda: model.transcribe(make_tones(0.2), sample_rate=16000, word_timestamps=True),
            lambda: model.session(word_timestamps=True),
            lambda: model.transcribe_many([], word_timestamps=True),
        ):
            with pytest.raises(ModelFormatError, match=message):
                call()


def test_the_bundled_model_s_heads_are_the_ones_that_were_trained_to_look_at_words() -> None:
    content = json.loads(side_file(hub.resolve("tiny")).read_text(encoding="utf-8"))
    assert {(3, 0), (3, 1), (4, 0), (4, 1)} <= set(map(tuple, content["heads"]))


def test_crispasr_s_runtime_refuses_word_times_of_ours(tmp_path: Path) -> None:
    if crispasr.find() is None:
        pytest.skip("needs libcrispasr: pip install crispasr==0.8.45")
    whisper_file.write_random(tmp_path / "whisper.bin")
    with Model(tmp_path / "whisper.bin", runtime="crispasr") as model:
        with pytest.raises(UnsupportedOperationError, match="word_timestamps"):
            model.transcribe(make_tones(1), sample_rate=16000, word_timestamps=True)
        with pytest.raises(UnsupportedOperationError):
            model.session(word_timestamps=True)


def test_the_function_gives_words_too(tmp_path: Path) -> None:
    clip = compose(Random("function"), 2)
    soundfile.write(tmp_path / "clip.wav", clip.samples, 16000)
    transcript = pycrispasr.transcribe(tmp_path / "clip.wav", model="tiny", word_timestamps=True)
    assert words_of(transcript)


# ---- The parts


@settings(max_examples=100, deadline=None)
@given(n_frames=st.integers(1, 700))
def test_every_row_has_its_place_in_time(nano: Model, n_frames: int) -> None:
    native = nano._opened()
    edges = row_edges(n_frames, nano.info.chunk_frames)
    assert len(edges) == native.row_count(n_frames) + 1
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(n_frames / 100)
    assert (np.diff(edges) > 0).all()
    assert set(np.arange(0, n_frames, 100)) <= set(np.round(100 * edges).astype(int))  # rows start anew in each chunk


GAINS = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(-3, 4, drawn[:2]).astype(float)
)


@settings(max_examples=300, deadline=None)
@given(gain=GAINS)
def test_the_path_goes_forward_and_no_other_gains_more(gain: np.ndarray) -> None:
    path = warp(gain)
    tokens, rows = gain.shape
    assert path.shape == (tokens, 2)
    assert path[0, 0] >= 0
    assert path[-1, 1] < rows
    assert (path[:, 0] <= path[:, 1]).all()
    steps = path[1:, 0] - path[:-1, 1]
    assert ((steps == 0) | (steps == 1)).all()
    best = np.full((tokens, rows), -np.inf)
    for i, j in itertools.product(range(tokens), range(rows)):
        before = [0.0] if i == 0 else [best[i - 1, j]]
        before += [best[i, j - 1]] if j else []
        before += [best[i - 1, j - 1]] if i and j else []
        best[i, j] = gain[i, j] + max(before)
    assert sum(gain[i, first : last + 1].sum() for i, (first, last) in enumerate(path)) == best[-1].max()


@settings(max_examples=200, deadline=None)
@given(
    attended=st.lists(st.floats(0, 10), min_size=3, max_size=30),
    quiet=st.lists(st.floats(0, 10), max_size=20),
)
def test_words_follow_each_other_whatever_is_quiet(attended: list[float], quiet: list[float]) -> None:
    count = len(attended) // 3
    places = np.sort(attended)[: 3 * count].reshape(count, 3)
    runs = np.unique(quiet)
    spans = word_spans(places, runs[: len(runs) // 2 * 2].reshape(-1, 2), 10)
    times = spans.reshape(-1)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= 10
    assert (spans[:, 0] <= places[:, 1]).all()
    assert (spans[:, 1] >= places[:, 1]).all()


TEXTS = st.lists(
    st.sampled_from([" one", " two", "t", "w", "o", ",", ".", " ", "", "你好", "世", "界。", " x。y", "�"])
)


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, seed=st.integers(0, 2**32 - 1), frames=st.integers(3, 400), kind=st.sampled_from(["c", "a"]))
def test_any_text_with_any_attention_gets_times_in_order(texts: list[str], seed: int, frames: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    samples = (rng.standard_normal(frames * 160) * (rng.random(frames * 160) < 0.5)).astype(np.float32)
    attention = rng.random((len(texts) + 1, 3, len(row_edges(frames, 100)) - 1)) ** 8
    attention[rng.random(len(attention)) < 0.1] = 0
    tokens = [Token(i, text, float(rng.random())) for i, text in enumerate(texts)]
    text = ("".join(texts) + "�" * int(rng.integers(0, 2))).strip()  # a character may be cut off at the end
    aligner = Aligner([(0, 0)] * 3, "calibrated" if kind == "c" else "approximate", 100)
    start = int(rng.integers(0, 10**6))
    timed, words = aligner.align(tokens, text if texts else "", attention, samples, start)
    assert [(t.id, t.text, t.probability) for t in timed] == [(t.id, t.text, t.probability) for t in tokens]
    segment = Segment(start / 16000, (start + len(samples)) / 16000, text if texts else "", timed, "ok", words)
    check_order(segment)
    if words and "�" not in text:
        assert min(w.probability for w in words) >= min(t.probability for t in tokens)


def test_a_character_that_two_tokens_write_is_a_word_of_both() -> None:
    rows = 13
    attention = np.zeros((3, 1, rows))
    for step, row in enumerate((2, 4, 9)):
        attention[step, 0, row] = 1
    tokens = [Token(0, "", 0.5), Token(1, "你", 0.9), Token(2, "好", 0.8)]
    aligner = Aligner([(0, 0)], "calibrated", 100)
    _, (you, good) = aligner.align(tokens, "你好", attention, np.ones(16000, np.float32))
    assert (you.text, you.probability, good.text) == ("你", 0.5, "好")
    assert you.start <= 0.16
    assert you.end >= 0.32
    assert good.start == you.end


def test_a_head_that_aligns_scores_more_than_others() -> None:
    steps, rows = 12, 60
    rng = np.random.default_rng(0)
    aligned = np.eye(steps).repeat(rows // steps, axis=1) + 0.001
    pictures = {
        "aligned": aligned,
        "backwards": aligned[::-1],
        "at random": aligned[rng.permutation(steps)],
        "everywhere": np.ones((steps, rows)),
        "always there": np.eye(rows)[[7] * steps],
    }
    scores = {name: score(picture) for name, picture in pictures.items()}
    assert scores["aligned"] > 0.8
    assert max(value for name, value in scores.items() if name != "aligned") < 0.3


def test_what_is_quiet_lies_between_sounds() -> None:
    samples = np.zeros(16000, np.float32)
    for start in (3200, 9600):
        samples[start : start + 3200] = make_tones(0.2)
    np.testing.assert_allclose(quiet_runs(samples), [(0, 0.2), (0.4, 0.6), (0.8, 1)], atol=0.011)

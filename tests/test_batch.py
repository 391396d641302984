"""Segments and recordings that are decoded side by side have the texts that they have alone."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pycrispasr import Model, Transcript
from pycrispasr.errors import AudioError, CancelledError, UsageError
from pycrispasr.runtimes import native

from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"
CLIPS = [make_tones(seconds, seed=i) for i, seconds in enumerate((0.4, 9, 1, 3.3, 16.5, 0.05, 2, 8))]


def without_times(transcript: Transcript) -> tuple[object, ...]:
    return transcript.text, transcript.segments, transcript.duration, transcript.complete


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 11])
def test_many_recordings_have_the_transcripts_of_each(nano: Model, batch: int) -> None:
    wanted = [nano.transcribe(clip, sample_rate=16000, max_new_tokens=12) for clip in CLIPS]
    got = list(nano.transcribe_many(CLIPS, sample_rate=16000, max_new_tokens=12, batch=batch))
    assert list(map(without_times, got)) == list(map(without_times, wanted))
    assert all(transcript.timings.total > 0 for transcript in got)
    assert [t.timings.tokens for t in got] == [t.timings.tokens for t in wanted]


@pytest.mark.parametrize("batch", [2, 4])
def test_a_long_recording_s_text_does_not_depend_on_the_batch(nano: Model, batch: int) -> None:
    sound = make_tones(130, seed=5)
    wanted = nano.transcribe(sound, sample_rate=16000, max_new_tokens=7, batch=1)
    assert len(wanted.segments) > batch
    got = nano.transcribe(sound, sample_rate=16000, max_new_tokens=7, batch=batch)
    assert without_times(got) == without_times(wanted)


def test_the_bundled_model_hears_the_same_side_by_side(tiny: Model) -> None:
    recordings = sorted(path for path in SAMPLES.glob("*") if path.suffix in (".wav", ".mp3"))
    texts = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in recordings]
    assert [transcript.text for transcript in tiny.transcribe_many(recordings)] == texts


def test_probabilities_are_the_same_to_the_last_bit_when_sequences_come_and_go(nano: Model) -> None:
    """Clip i joins at step 2i; each leaves at its own end."""
    model = nano._opened()
    limit = 10
    alone = []
    for clip in CLIPS[:4]:
        session = native.NativeSession(model, threads=1, max_new_tokens=limit)
        session.feed(clip)
        session.end()
        alone.append(list(iter(session.next, None)))
    together = native.NativeSession(model, threads=2, max_new_tokens=limit, sequences=4)
    heard: dict[int, list[tuple[int, float]]] = {}
    active: list[int] = []
    for step in range(40):
        if step % 2 == 0 and step // 2 < 4:
            new = step // 2
            together.feed(CLIPS[new], new)
            together.end(new)
            active.insert(0, new)
            heard[new] = []
        ended = []
        for sequence, token in zip(active, together.next_of(active) if active else (), strict=True):
            if token is None:
                ended.append(sequence)
            else:
                heard[sequence].append(token)
        active = [sequence for sequence in active if sequence not in ended]
    assert [heard[i] for i in range(4)] == alone


def test_recordings_are_read_when_there_is_room_for_them(nano: Model) -> None:
    read: list[int] = []

    def recordings() -> Iterator[np.ndarray]:
        for i in range(40):
            read.append(i)
            yield make_tones(0.3, seed=i)

    done = 0
    for done, _ in enumerate(nano.transcribe_many(recordings(), sample_rate=16000, max_new_tokens=5, batch=3), start=1):
        assert len(read) <= done + 6
    assert done == 40


def test_recordings_before_an_unreadable_one_are_given_first(nano: Model) -> None:
    recordings = [*CLIPS[:3], np.zeros(7, np.float32), CLIPS[3]]
    transcripts = nano.transcribe_many(recordings, sample_rate=16000, batch=2, errors="raise")
    for clip in CLIPS[:3]:
        assert next(transcripts).text == nano.transcribe(clip, sample_rate=16000).text
    with pytest.raises(AudioError, match="7 samples"):
        next(transcripts)
    with pytest.raises(StopIteration):
        next(transcripts)


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_recordings_before_an_exception_of_the_iterable_are_given_first(nano: Model, batch: int, taken: int) -> None:
    def recordings() -> Iterator[np.ndarray]:
        yield from CLIPS[:taken]
        raise RuntimeError("the database is gone")

    transcripts = nano.transcribe_many(recordings(), sample_rate=16000, max_new_tokens=12, batch=batch)
    got = list(itertools.islice(transcripts, taken))
    with pytest.raises(RuntimeError, match="the database is gone"):
        next(transcripts)
    wanted = [nano.transcribe(clip, sample_rate=16000, max_new_tokens=12) for clip in CLIPS[:taken]]
    assert list(map(without_times, got)) == list(map(without_times, wanted))


def test_no_recordings_give_no_transcripts(nano: Model) -> None:
    assert list(nano.transcribe_many([])) == []


def test_an_empty_recording_is_an_error(nano: Model) -> None:
    with pytest.raises(AudioError, match="empty"):
        list(nano.transcribe_many([np.zeros(0, np.float32)], sample_rate=16000, errors="raise"))


def test_an_unreadable_recording_does_not_stop_the_others_and_its_error_is_kept(nano: Model, tmp_path: Path) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("no sound")
    recordings = [CLIPS[0], text, np.zeros(7, np.float32), np.zeros(0, np.float32), "nowhere.wav", CLIPS[1]]
    got = list(nano.transcribe_many(recordings, sample_rate=16000, batch=2))
    for clip, transcript in ((CLIPS[0], got[0]), (CLIPS[1], got[5])):
        assert without_times(transcript) == without_times(nano.transcribe(clip, sample_rate=16000))
    for transcript, words in zip(got[1:5], ("notes.wav", "7 samples", "empty", "nowhere.wav"), strict=True):
        (segment,) = transcript.segments
        assert (transcript.text, transcript.complete, segment.status) == ("", False, "failed")
        assert segment.error is not None
        assert words in segment.error


def test_errors_are_kept_or_raised(nano: Model) -> None:
    with pytest.raises(UsageError, match="errors cannot be 'ignore'"):
        nano.transcribe_many([], errors="ignore")  # type: ignore[arg-type]


def test_leaving_the_loop_frees_the_session(nano: Model) -> None:
    transcripts = nano.transcribe_many(CLIPS, sample_rate=16000)
    next(transcripts)
    transcripts.close()
    gc.collect()
    assert (
        nano.transcribe(CLIPS[0], sample_rate=16000).text
        == next(nano.transcribe_many(CLIPS[:1], sample_rate=16000)).text
    )


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_has_at_least_one_place(nano: Model, batch: int) -> None:
    with pytest.raises(UsageError, match=f"batch cannot be {batch}"):
        nano.transcribe_many([], batch=batch)
    with pytest.raises(UsageError, match=f"batch cannot be {batch}"):
        nano.transcribe(CLIPS[0], sample_rate=16000, batch=batch)


def test_cancelling_keeps_what_every_segment_has_so_far(nano: Model) -> None:
    with nano.session(batch=3, max_new_tokens=512) as session:
        session.feed(make_tones(100, seed=1))
        steps = 0

        def progress(done: float, total: float) -> None:
            nonlocal steps
            steps += 1
            threading.Timer(0.02, session.cancel).start()

        with pytest.raises(CancelledError) as caught:
            session.finish(progress=progress)
        partial = caught.value.partial
        assert not partial.complete
        assert [part.start for part in partial.segments] == sorted(part.start for part in partial.segments)
        assert {part.status for part in partial.segments} <= {"ok", "truncated", "looped", "cancelled"}


def test_the_timings_of_a_batch_add_up(tiny: Model) -> None:
    transcript = tiny.transcribe(make_tones(70, seed=3), sample_rate=16000, batch=3)
    timings = transcript.timings
    parts = timings.log_mel + timings.encoder + timings.adapter + timings.prefill + timings.decode
    assert 0 < parts <= timings.total

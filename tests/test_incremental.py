"""Audio that is fed in parts is worked on at once, and its tokens are those of the whole, to the last bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pycrispasr import AudioError, UsageError
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .reference import model as model_in_numpy
from .sounds import make_tones

Tokens = list[tuple[int, float]]
SHAPES = [("nano", "f32"), ("small", "q4_k"), ("nano", "q8_0")]


@pytest.fixture(scope="module", params=SHAPES, ids="-".join)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    preset, kind = request.param
    file = tmp_path_factory.mktemp("models") / "model.gguf"
    generate(file, preset=preset, type=kind)
    return file


@pytest.fixture(scope="module", params=["auto", "ggml"])
def model(request: pytest.FixtureRequest, path: Path) -> native.NativeModel:
    return native.NativeModel(path, kernels=request.param)


def hear(model: native.NativeModel, samples: np.ndarray, limit: int = 40) -> Tokens:
    session = native.NativeSession(model, threads=1, max_new_tokens=limit)
    session.feed(samples)
    session.end()
    return list(iter(session.next, None))


def loud_at(seconds: float, place: float, seed: int) -> np.ndarray:
    """Digital silence first, so that the floor of the log-mel counts; a tenth of it 20 times louder."""
    sound = make_tones(seconds, seed)
    sound[: len(sound) // 8] = 0
    begin = int(place * len(sound))
    sound[begin : begin + len(sound) // 10] *= 20
    return sound


@pytest.mark.parametrize("block", [160, 4096, 50000])
def test_the_blocks_do_not_change_the_tokens(model: native.NativeModel, block: int) -> None:
    sound = loud_at(19, 0.7, seed=block)
    session = native.NativeSession(model, threads=2, max_new_tokens=40)
    for start in range(0, len(sound), block):
        session.feed(sound[start : start + block])
    session.end()
    assert list(iter(session.next, None)) == hear(model, sound)


def test_single_samples_can_be_fed(model: native.NativeModel) -> None:
    sound = make_tones(0.3)
    session = native.NativeSession(model, threads=1, max_new_tokens=10)
    for sample in sound:
        session.feed(np.array([sample], np.float32))
    session.end()
    assert list(iter(session.next, None)) == hear(model, sound, 10)


@pytest.mark.parametrize("place", [0.0, 0.5, 0.9])
def test_hypotheses_are_the_text_so_far_and_do_not_change_the_final_one(
    model: native.NativeModel, place: float
) -> None:
    sound = loud_at(18, place, seed=3)
    session = native.NativeSession(model, threads=1, max_new_tokens=40)
    for start in range(0, len(sound), 40000):
        session.feed(sound[start : start + 40000])
        if start % 80000 == 0:
            assert session.hypothesis() == hear(model, sound[: start + 40000])
    session.end()
    assert list(iter(session.next, None)) == hear(model, sound)


def test_a_hypothesis_of_all_the_audio_is_the_final_text(model: native.NativeModel) -> None:
    sound = make_tones(9)
    session = native.NativeSession(model, threads=1, max_new_tokens=40)
    session.feed(sound)
    first = session.hypothesis()
    assert session.hypothesis() == first
    session.end()
    assert list(iter(session.next, None)) == first


@pytest.mark.parametrize("seconds", [0.05, 7.995, 8, 8.01, 15.99, 16, 20])
def test_audio_can_end_before_what_was_fed(model: native.NativeModel, seconds: float) -> None:
    sound = loud_at(25, 0.9, seed=1)
    cut = round(seconds * 16000)
    session = native.NativeSession(model, threads=1, max_new_tokens=30)
    session.feed(sound)
    session.hypothesis()
    session.end(n_samples=cut)
    assert list(iter(session.next, None)) == hear(model, sound[:cut], 30)
    assert session.result()["n_samples"] == cut


def test_too_little_audio_has_no_hypothesis(model: native.NativeModel) -> None:
    session = native.NativeSession(model, threads=1)
    assert session.hypothesis() == []
    session.feed(np.zeros(200, np.float32))
    assert session.hypothesis() == []


def test_calls_out_of_order_are_refused(model: native.NativeModel) -> None:
    session = native.NativeSession(model, threads=1, max_new_tokens=5)
    session.feed(make_tones(1))
    with pytest.raises(UsageError, match="16001"):
        session.end(n_samples=16001)
    with pytest.raises(AudioError, match="200 samples"):
        session.end(n_samples=200)
    session.end(n_samples=8000)
    for call in (session.hypothesis, session.end, lambda: session.feed(make_tones(1))):
        with pytest.raises(UsageError):
            call()
    assert list(iter(session.next, None)) == hear(model, make_tones(1)[:8000], 5)


def test_windows_are_encoded_while_audio_comes(nano_path: Path) -> None:
    model = native.NativeModel(nano_path)
    session = native.NativeSession(model, threads=1)
    session.feed(make_tones(8))
    assert session.result()["encoder"] == 0
    session.feed(make_tones(0.1))
    assert session.result()["encoder"] > 0
    assert session.result()["prefill"] > 0


def test_a_cancelled_hypothesis_says_so_until_reset(nano_path: Path) -> None:
    model = native.NativeModel(nano_path)
    session = native.NativeSession(model, threads=1, max_new_tokens=5)
    session.feed(make_tones(2))
    session.cancel()
    for _ in range(2):
        with pytest.raises(native.Cancelled):
            session.hypothesis()
    session.reset()
    session.feed(make_tones(2))
    session.end()
    assert list(iter(session.next, None)) == hear(model, make_tones(2), 5)


@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_a_hypothesis_that_is_ended_early_changes_nothing_of_the_final_text(
    model: native.NativeModel, steps: int
) -> None:
    sound = make_tones(20, seed=8)
    session = native.NativeSession(model, threads=1, max_new_tokens=300)
    session.feed(sound[:-4000])
    before = session.hypothesis()
    session.feed(sound[-4000:])
    session.begin_hypothesis()
    for _ in range(steps):
        session.next()
    early = session.end_hypothesis()
    session.end()
    wanted = hear(model, sound, 300)
    assert list(iter(session.next, None)) == wanted
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(early, wanted, strict=False)))
    assert same >= steps or same == len(before)
    rest = early[same:]
    assert rest == before[len(before) - len(rest) :]
    if not steps:
        assert early == before


def test_audio_cannot_be_fed_or_ended_within_a_hypothesis(nano_path: Path) -> None:
    session = native.NativeSession(native.NativeModel(nano_path), threads=1, max_new_tokens=5)
    session.feed(make_tones(2))
    session.begin_hypothesis()
    for call in (session.begin_hypothesis, session.end, lambda: session.append(make_tones(1))):
        with pytest.raises(UsageError, match="a hypothesis has begun"):
            call()
    session.end_hypothesis()
    with pytest.raises(UsageError, match="no hypothesis has begun"):
        session.end_hypothesis()
    session.end()
    assert len(list(iter(session.next, None))) == 5


def test_a_repeated_phrase_stops_the_text_and_is_told(nano_path: Path) -> None:
    """Random models fall into loops sooner or later: every text ends at the first one, and at no other place."""
    model = native.NativeModel(nano_path)
    seen = 0
    for seed in range(12):
        session = native.NativeSession(model, threads=1, max_new_tokens=800)
        session.feed(make_tones(1, seed))
        session.end()
        tokens = [token for token, _ in iter(session.next, None)]
        result = session.result()
        assert result["looped"] == model_in_numpy.loops(tokens)
        assert not any(model_in_numpy.loops(tokens[:n]) for n in range(24, len(tokens)))
        assert result["looped"] + result["truncated"] + result["ended"] == 1
        seen += result["looped"]
    assert seen


def test_many_sequences_with_and_without_drafts_are_decoded_side_by_side(nano_path: Path) -> None:
    model = native.NativeModel(nano_path)
    sounds = [make_tones(seconds, seed) for seed, seconds in enumerate((1, 9, 3))]
    session = native.NativeSession(model, threads=1, max_new_tokens=30, sequences=3)
    for sequence, sound in enumerate(sounds):
        session.feed(sound[:-800], sequence)
        if sequence < 2:
            session.hypothesis(sequence)
        session.feed(sound[-800:], sequence)
        session.end(sequence)
    heard: list[Tokens] = [[], [], []]
    for _ in itertools.repeat(None, 31):
        for sequence, token in enumerate(session.next_of([0, 1, 2])):
            if token:
                heard[sequence].append(token)
    assert heard == [hear(model, sound, 30) for sound in sounds]


def test_texts_are_decoded_in_blocks_of_any_size_and_taken_at_any_time(nano_path: Path) -> None:
    model = native.NativeModel(nano_path)
    sounds = [make_tones(seconds, seed) for seed, seconds in enumerate((25, 9, 17))]
    session = native.NativeSession(model, threads=1, max_new_tokens=30, sequences=3)
    limits = [30, 7, 12]
    heard: list[Tokens] = [[], [], []]
    for sequence, sound in enumerate(sounds):
        session.begin(sequence, max_new_tokens=limits[sequence])
        session.append(sound, sequence)
        session.end(sequence)
        blocks = 1 + sum(1 for _ in iter(lambda: session.advance(sequence, max_windows=1), False))  # noqa: B023
        assert blocks == -(-len(sound) // 128000)
    running = [0, 1, 2]
    while running:
        session.run(running, 0.0)
        for sequence in running[:]:
            tokens, complete = session.take(sequence)
            heard[sequence] += tokens
            if complete:
                running.remove(sequence)
    assert heard == [hear(model, sound, limit) for sound, limit in zip(sounds, limits, strict=True)]


def test_a_run_ends_with_the_first_complete_text_or_when_it_is_woken(nano_path: Path) -> None:
    session = native.NativeSession(native.NativeModel(nano_path), threads=1, max_new_tokens=60, sequences=2)
    session.begin(1, max_new_tokens=5)
    for sequence in (0, 1):
        session.feed(make_tones(2, 5), sequence)
        session.end(sequence)
        session.advance(sequence)
    session.run([0, 1], 3600.0)
    tokens, complete = session.take(1)
    assert complete
    assert len(session.take(0)[0]) == len(tokens) + 1  # which the other one's limit left out
    session.wake()
    session.run([0], 3600.0)
    assert len(session.take(0)[0]) == 1

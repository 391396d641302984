"""Long recordings: every word in order, in flat memory, and nothing lost silently where something goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from pycrispasr import Model, Transcript, audio, options
from pycrispasr.errors import AudioError, OutOfMemoryError
from pycrispasr.runtimes import native

from .sounds import RATE, Composition, make_tones

MIB = 1 << 20


def errors(got: list[str], wanted: list[str]) -> int:
    """How many words are wrong, missing or too many: the distance of Levenshtein."""
    numbers = {word: number for number, word in enumerate({*got, *wanted})}
    target = np.array([numbers[word] for word in wanted])
    columns = np.arange(len(wanted) + 1)
    row = columns
    for count, word in enumerate(got, start=1):
        below = np.minimum(row[1:] + 1, row[:-1] + (target != numbers[word]))
        # What is missing costs one each, from any place before.
        row = np.minimum.accumulate(np.concatenate([[count], below]) - columns) + columns
    return int(row[-1])


def check_times(transcript: Transcript, composition: Composition) -> None:
    """Each clip lies in the segments, which are in order, not longer than 30 s, and do not overlap."""
    place = 0.0
    covered = np.zeros(composition.length, bool)
    for segment in transcript.segments:
        assert place <= segment.start < segment.end <= transcript.duration + 1e-6
        assert segment.end - segment.start <= 30
        assert segment.status == "ok"
        place = segment.end
        covered[round(segment.start * RATE) : round(segment.end * RATE)] = True
    for begin, which in composition.parts:
        assert covered[begin : begin + len(composition.clips[which])].all()


def flat_memory(work: Callable[[Callable[..., None]], Transcript]) -> Transcript:
    """Runs a transcription that tells its progress; memory at its end is what it was at its beginning."""
    process, memory = psutil.Process(), []

    def progress(done: float, total: float | None) -> None:
        memory.append(process.memory_info().rss)

    transcript = work(progress)
    settled = max(memory[: max(1, len(memory) // 10)])
    # The transcript itself grows, by about 2 kB a second of speech; samples would take 64 kB a second.
    assert max(memory) - settled < 12 * MIB + 4000 * transcript.duration
    return transcript


def test_errors_are_counted() -> None:
    assert errors([], ["a", "b"]) == errors(["a", "b"], []) == 2
    assert errors(list("abcd"), list("axc")) == 2
    assert errors(list("bcd"), list("abcd")) == 1


def test_five_minutes_are_heard_in_order_with_the_same_result_side_by_side(tiny: Model, tmp_path: Path) -> None:
    composition = Composition(300)
    path = composition.write(tmp_path / "talk.flac")
    transcript = flat_memory(lambda progress: tiny.transcribe(path, progress=progress))
    assert transcript.complete
    assert transcript.duration == composition.length / RATE
    assert errors(transcript.text.split(), composition.words) <= 0.02 * len(composition.words)
    check_times(transcript, composition)
    assert tuple(tiny.segments(path, batch=1)) == transcript.segments


def test_speech_that_is_found_by_itself_is_heard_without_a_fault(tiny: Model, tmp_path: Path) -> None:
    composition = Composition(300, seed=1)
    transcript = tiny.transcribe(composition.write(tmp_path / "talk.flac"), vad="on")
    assert transcript.text.split() == composition.words


@pytest.mark.slow
def test_an_hour_is_heard_as_well_as_its_clips_and_in_flat_memory(tiny: Model, tmp_path: Path) -> None:
    composition = Composition(3600)
    path = composition.write(tmp_path / "hour.flac")
    wrong = [
        errors(transcript.text.split(), text.split())
        for transcript, text in zip(
            tiny.transcribe_many(composition.clips, sample_rate=RATE), composition.texts, strict=True
        )
    ]
    clips = sum(wrong[which] for _, which in composition.parts) / len(composition.words)
    taken = {}
    for batch in (1, options.BATCH):
        begun = time.perf_counter()
        transcript = flat_memory(
            lambda progress, batch=batch: tiny.transcribe(path, batch=batch, progress=progress)  # type: ignore[misc]
        )
        taken[batch] = time.perf_counter() - begun
    check_times(transcript, composition)
    rate = errors(transcript.text.split(), composition.words) / len(composition.words)
    print(
        f"{len(composition.words)} words: {rate:.2%} wrong, {clips:.2%} of the clips alone; "
        + ", ".join(f"{seconds:.1f} s with batch={batch}" for batch, seconds in taken.items())
    )
    assert rate <= clips + 0.005


Failure = Callable[[int], bool]  # of a segment with so many samples


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[Failure], list[list[int]]]:
    """Lets steps raise an error as long as a segment of some length takes part; tells who took part in each."""
    lengths: dict[tuple[int, int], int] = {}
    end, run = native.NativeSession.end, native.NativeSession.run

    def hear(self: Any, sequence: int = 0, n_samples: int = -1) -> None:
        lengths[id(self), sequence] = n_samples
        end(self, sequence, n_samples)

    def install(fails: Failure) -> list[list[int]]:
        steps: list[list[int]] = []

        def step(self: Any, sequences: list[int], seconds: float) -> None:
            taking_part = [lengths[id(self), sequence] for sequence in sequences]
            if not steps or steps[-1] != taking_part:
                steps.append(taking_part)
            if any(map(fails, taking_part)):
                raise OutOfMemoryError("there is no memory for it")
            run(self, sequences, seconds)

        monkeypatch.setattr(native.NativeSession, "end", hear)
        monkeypatch.setattr(native.NativeSession, "run", step)
        return steps

    return install


def sound(*lengths: float) -> np.ndarray:
    """Speech-like segments of so many seconds, each of which becomes one of its own."""
    return np.concatenate(
        [part for seed, seconds in enumerate(lengths) for part in (make_tones(seconds, seed), np.zeros(RATE * 3))]
    ).astype(np.float32)


LENGTHS = (11, 12, 13, 14)


def places(transcript: Transcript) -> list[tuple[float, float]]:
    return [(segment.start, segment.end) for segment in transcript.segments]


def test_a_segment_that_fails_beside_others_is_tried_alone(
    nano: Model, fail: Callable[[Failure], list[list[int]]]
) -> None:
    samples = sound(*LENGTHS)
    wanted = nano.transcribe(samples, sample_rate=RATE, max_new_tokens=9)
    assert len(wanted.segments) == len(LENGTHS)
    third = round((wanted.segments[2].end - wanted.segments[2].start) * RATE)

    def only_beside_others(length: int) -> bool:
        return length == third and len(steps[-1]) > 1

    steps = fail(only_beside_others)
    transcript = nano.transcribe(samples, sample_rate=RATE, max_new_tokens=9)
    assert [third] in steps
    assert (transcript.text, transcript.segments) == (wanted.text, wanted.segments)
    assert transcript.complete == wanted.complete


def test_a_segment_that_fails_alone_is_split_and_then_given_up(
    nano: Model, fail: Callable[[Failure], list[list[int]]]
) -> None:
    samples = sound(*LENGTHS)
    wanted = nano.transcribe(samples, sample_rate=RATE, max_new_tokens=9)
    start, end = places(wanted)[2]
    third = round((end - start) * RATE)

    steps = fail(lambda length: length == third)
    split = nano.transcribe(samples, sample_rate=RATE, max_new_tokens=9)
    assert [third] in steps
    assert places(split)[:2] == places(wanted)[:2]
    assert places(split)[4:] == places(wanted)[3:]
    (first, middle), (other, last) = places(split)[2:4]
    assert (first, middle, last) == (start, other, end)
    assert start + (end - start) / 4 <= middle <= end - (end - start) / 4
    assert all(segment.error is None for segment in split.segments)
    assert split.segments[4].text == wanted.segments[3].text

    longer = max(round((b - a) * RATE) for a, b in places(split)[2:4])
    fail(lambda length: length in (third, longer))
    lost = nano.transcribe(samples, sample_rate=RATE, max_new_tokens=9)
    assert places(lost) == places(split)
    (failed,) = (segment for segment in lost.segments if segment.status == "failed")
    assert failed.error == "there is no memory for it"
    assert not lost.complete
    kept = [segment.text for segment in lost.segments if segment is not failed]
    assert kept == [s.text for s, t in zip(split.segments, lost.segments, strict=True) if t is not failed]


def test_a_recording_of_which_all_fails_raises(nano: Model, fail: Callable[[Failure], list[list[int]]]) -> None:
    samples = sound(*LENGTHS)
    fail(lambda length: True)
    with pytest.raises(OutOfMemoryError, match="no memory"):
        nano.transcribe(samples, sample_rate=RATE)
    with pytest.raises(OutOfMemoryError, match="no memory"):
        list(nano.segments(samples, sample_rate=RATE))
    (kept,) = nano.transcribe_many([samples], sample_rate=RATE)
    assert {segment.status for segment in kept.segments} == {"failed"}
    assert not kept.complete


def test_a_text_that_reaches_the_limit_is_tried_again_in_two_parts(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    composition = Composition(100, seed=1)  # whose pauses are shorter than that silence
    path = composition.write(tmp_path / "talk.flac")
    wanted = tiny.transcribe(path, silence=4)
    limit = max(len(segment.tokens) for segment in wanted.segments) - 1
    monkeypatch.setattr(options, "MAX_NEW_TOKENS", limit)
    got = tiny.transcribe(path, silence=4)
    assert got.complete
    assert len(got.segments) > len(wanted.segments)
    check_times(got, composition)
    assert tiny.transcribe(path, silence=4, batch=1).segments == got.segments

    cut = tiny.transcribe(path, silence=4, max_new_tokens=limit)  # that is what was asked for
    assert len(cut.segments) == len(wanted.segments)
    assert "truncated" in {segment.status for segment in cut.segments}

    monkeypatch.setattr(options, "MAX_NEW_TOKENS", 2)
    lost = tiny.transcribe(path, silence=4)
    assert {segment.status for segment in lost.segments} >= {"truncated"}
    assert not lost.complete
    assert [segment.start for segment in lost.segments] == sorted(segment.start for segment in lost.segments)


def test_a_text_that_loops_is_tried_again_in_two_parts(nano: Model) -> None:
    """The random model repeats itself in nearly everything."""
    transcript = nano.transcribe(sound(*LENGTHS), sample_rate=RATE)
    assert len(transcript.segments) > len(LENGTHS)
    assert "looped" in {segment.status for segment in transcript.segments}
    assert not transcript.complete
    assert all(before.end <= after.start for before, after in pairwise(transcript.segments))


def test_a_file_that_breaks_off_keeps_the_text_until_there(tiny: Model, tmp_path: Path) -> None:
    composition = Composition(100)
    samples = composition.samples(0, composition.length)
    wanted = tiny.transcribe(samples, sample_rate=RATE)
    broken = np.concatenate([samples, [np.nan], samples]).astype(np.float32)
    soundfile.write(tmp_path / "broken.wav", broken, RATE, subtype="FLOAT")
    for batch in (1, 4):
        transcript = tiny.transcribe(tmp_path / "broken.wav", batch=batch)
        *sound_ones, rest = transcript.segments
        assert not transcript.complete
        assert (rest.status, rest.text) == ("failed", "")
        assert rest.error is not None
        assert "a sample at" in rest.error
        assert "broken.wav" in rest.error
        # What cannot be read in one block with it is lost: a few seconds.
        text = " ".join(segment.text for segment in sound_ones)
        assert wanted.text.startswith(text)
        assert sound_ones[-1].end > composition.length / RATE - 30
        assert transcript.text == text
    streamed = list(tiny.segments(tmp_path / "broken.wav"))
    assert streamed[-1].status == "failed"
    (kept,) = tiny.transcribe_many([tmp_path / "broken.wav"])
    assert kept.segments == transcript.segments


def test_a_file_that_is_broken_from_its_beginning_raises(tiny: Model, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "broken.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a sample at 0\.000 s is nan"):
        tiny.transcribe(tmp_path / "broken.wav")


def test_progress_goes_up_to_the_end(tiny: Model, tmp_path: Path) -> None:
    path = Composition(100).write(tmp_path / "talk.flac")
    told: list[tuple[float, float | None]] = []
    tiny.transcribe(path, progress=lambda done, total: told.append((done, total)))
    done = [seconds for seconds, _ in told]
    assert done == sorted(done)
    assert done[0] == 0
    length = audio.open(path)
    assert done[-1] == length.duration
    assert {total for _, total in told} == {length.duration}
    length.close()

"""Audio is cut into segments without losing or doubling anything, however it comes in."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr import audio
from pycrispasr.options import Vad
from pycrispasr.segmentation import segmenter as segmenter_module
from pycrispasr.segmentation.segmenter import AudioSegment, Mark, Segmenter, SpeechEnd, SpeechStart, plan
from pycrispasr.segmentation.silero import FRAME

from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"
RATE = 16000
Marks = list[Mark]


class Told:
    """A voice activity detector that knows beforehand."""

    def __init__(self, probabilities: list[float]) -> None:
        self.rest, self.probabilities = 0, iter(probabilities)

    def push(self, samples: np.ndarray) -> list[float]:
        self.rest += len(samples)
        count, self.rest = divmod(self.rest, FRAME)
        return [next(self.probabilities) for _ in range(count)]


def cut(
    samples: np.ndarray, blocks: list[int], told: list[float] | None = None, silence: float = 0.8, vad: Vad = "on"
) -> Marks:
    """What a segmenter gives for audio in blocks of these sizes, again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter_module, "VoiceDetector", lambda: Told(told or []))
        return _cut(Segmenter(vad="off" if told is None else vad, silence=silence), samples, blocks)


def _cut(segmenter: Segmenter, samples: np.ndarray, blocks: list[int]) -> Marks:
    marks: Marks = []
    start = turn = 0
    while start < len(samples):
        end = start + blocks[turn % len(blocks)]
        marks += segmenter.push(samples[start:end])
        start, turn = end, turn + 1
    return [*marks, *segmenter.finish()]


def places(marks: Marks) -> list[tuple[int, int]]:
    return [(mark.start, mark.start + len(mark.samples)) for mark in marks if isinstance(mark, AudioSegment)]


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0, 130),
    seed=st.integers(0, 2**16),
    pauses=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 40)), max_size=6),
    blocks=st.lists(st.integers(700, 600_000), min_size=1, max_size=4),
)
def test_without_a_detector_all_samples_are_covered_once_and_no_segment_is_too_long_or_too_short(
    seconds: float, seed: int, pauses: list[tuple[float, float]], blocks: list[int]
) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE)).astype(np.float32)
    for place, length in pauses:
        start = round(place * len(samples))
        samples[start : start + round(length * RATE)] = 0
    segments = plan(samples)
    assert [start for start, _ in segments] == [0, *[end for _, end in segments[:-1]]][: len(segments)]
    assert (segments[-1][1] if segments else 0) == len(samples)
    lengths = [end - start for start, end in segments]
    assert all(0 < length <= 30 * RATE for length in lengths)
    assert len(lengths) <= 1 or min(lengths) >= RATE
    assert places(cut(samples, blocks)) == segments


@pytest.mark.parametrize("pause", [20.5, 24, 29.3])
def test_a_long_recording_is_cut_in_its_pause(pause: float) -> None:
    samples = make_tones(45)
    middle = round(pause * RATE)
    samples[middle - 4000 : middle + 4000] *= 0.01
    (_, end), (start, _) = plan(samples)
    assert end == start
    assert abs(end - middle) < 4000


def test_the_longest_clip_that_is_one_segment_has_thirty_seconds() -> None:
    assert plan(make_tones(30)) == [(0, 480000)]
    segments = plan(make_tones(30 + 1 / RATE))
    assert len(segments) == 2
    assert segments[1][1] - segments[1][0] >= RATE


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.9]), st.integers(1, 300)), max_size=40),
    blocks=st.lists(st.integers(500, 90_000), min_size=1, max_size=4),
    silence=st.sampled_from([0.1, 0.3, 0.8, 3.0, 40.0]),
    rest=st.integers(0, FRAME - 1),
)
def test_with_a_detector_all_speech_is_covered_once(
    runs: list[tuple[float, int]], blocks: list[int], silence: float, rest: int
) -> None:
    told = [probability for probability, count in runs for _ in range(count)]
    samples = np.arange(len(told) * FRAME + rest, dtype=np.float32)
    marks = cut(samples, blocks, told, silence)
    segments = places(marks)
    assert all(0 < end - start <= 30 * RATE for start, end in segments)
    assert all(before[1] <= after[0] for before, after in pairwise(segments))
    for mark in marks:
        if isinstance(mark, AudioSegment):
            np.testing.assert_array_equal(mark.samples, samples[mark.start : mark.start + len(mark.samples)])
    covered = np.zeros(len(samples), bool)
    for start, end in segments:
        covered[start:end] = True
    for i, (one, other) in enumerate(pairwise(told)):
        if min(one, other) >= 0.5:
            assert covered[i * FRAME : (i + 2) * FRAME].all(), i
    whole = cut(samples, [max(1, len(samples))], told, silence)
    assert places(whole) == segments
    assert [m for m in whole if not isinstance(m, AudioSegment)] == [
        m for m in marks if not isinstance(m, AudioSegment)
    ]


def test_an_utterance_has_a_little_on_both_sides_and_its_times_are_told() -> None:
    told = [0.0] * 100 + [0.9] * 50 + [0.0] * 100
    samples = np.zeros(len(told) * FRAME, np.float32)
    started, segment, silence = cut(samples, [1000], told)
    assert started == SpeechStart(100 * FRAME)
    assert isinstance(segment, AudioSegment)
    assert (segment.start, len(segment.samples)) == (100 * FRAME - 4800, 50 * FRAME + 2 * 4800)
    assert silence == SpeechEnd(150 * FRAME)


def test_a_pause_shorter_than_the_silence_does_not_end_an_utterance() -> None:
    told = [0.9] * 50 + [0.0] * 20 + [0.9] * 50
    samples = np.zeros(len(told) * FRAME, np.float32)
    assert places(cut(samples, [4000], told)) == [(0, len(samples))]
    assert len(places(cut(samples, [4000], told, silence=0.5))) == 2


def test_speech_that_does_not_end_is_cut_in_its_longest_pause() -> None:
    told = [0.9] * 700 + [0.1] * 5 + [0.9] * 60 + [0.1] * 9 + [0.9] * 500
    samples = np.zeros(len(told) * FRAME, np.float32)
    pause = (765 * FRAME + 774 * FRAME) // 2
    assert places(cut(samples, [4000], told)) == [(0, pause), (pause, len(samples))]


SPOKEN, QUIET, NOISE = 0.1, 0.0, 0.003  # loudness: the noise is 30 dB below speech
KINDS = {  # probability of speech, and loudness
    "speech": (0.9, SPOKEN),
    "doubt": (0.4, SPOKEN),  # what goes on while somebody speaks, and begins nothing by itself
    "music": (0.1, SPOKEN),
    "hiss": (0.1, NOISE),
    "silence": (0.0, QUIET),
}


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 400)), min_size=1, max_size=25),
    blocks=st.lists(st.integers(500, 900_000), min_size=1, max_size=4),
    silence=st.sampled_from([0.1, 0.8, 2.0, 40.0]),
    rest=st.integers(0, FRAME - 1),
)
def test_by_itself_all_that_is_spoken_or_loud_is_covered_once(
    runs: list[tuple[str, int]], blocks: list[int], silence: float, rest: int
) -> None:
    frames = ["speech"] * 4 + [kind for kind, count in runs for _ in range(count)]
    told = [KINDS[kind][0] for kind in frames]
    loudness = np.repeat([KINDS[kind][1] for kind in frames], FRAME).astype(np.float32)
    samples = np.concatenate([loudness, np.zeros(rest, np.float32)])
    samples[1::2] *= -1
    marks = cut(samples, blocks, told, silence, "auto")
    segments = places(marks)
    if len(samples) <= 30 * RATE:
        assert segments == [(0, len(samples))]
        return
    assert all(0 < end - start <= 30 * RATE for start, end in segments)
    assert all(before[1] <= after[0] for before, after in pairwise(segments))
    for mark in marks:
        if isinstance(mark, AudioSegment):
            np.testing.assert_array_equal(mark.samples, samples[mark.start : mark.start + len(mark.samples)])
    covered = np.zeros(len(samples), bool)
    for start, end in segments:
        covered[start:end] = True
    heard = [kind in ("speech", "doubt", "music") for kind in frames]
    for i in range(len(frames) - 1):
        if heard[i] and heard[i + 1]:
            assert covered[i * FRAME : (i + 2) * FRAME].all(), i
    place = 0
    for is_heard, group in groupby(heard):
        end = place + sum(1 for _ in group)
        if not is_heard and (end - place) * FRAME > silence * RATE + 2 * 4800 + 4 * FRAME:
            assert not covered[place * FRAME : end * FRAME].all(), place
        place = end
    assert places(cut(samples, [len(samples)], told, silence, "auto")) == segments


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(10, 500), st.integers(1, 40)), min_size=2, max_size=20),
    vad=st.sampled_from(["on", "auto"]),
)
def test_speech_is_cut_only_where_no_pause_is_long_enough(runs: list[tuple[int, int]], vad: Vad) -> None:
    """A cut without a gap lies in a pause, or else there is none in the second half of the longest segment."""
    told = [probability for speech, pause in runs for probability in [0.9] * speech + [0.1] * pause]
    samples = np.repeat([0.1 if probability > 0.5 else 0.0 for probability in told], FRAME).astype(np.float32)
    if len(samples) <= 30 * RATE:
        return
    segments = places(cut(samples, [50_000], told, 0.8, vad))
    quiet = np.repeat(np.array(told) < 0.5, FRAME)
    for (start, end), (following, until) in pairwise(segments):
        if end == following and not quiet[end - 1]:
            last = min(start + 30 * RATE, until - RATE)  # a shorter rest is not cut off
            window = quiet[start + 15 * RATE : last].astype(int)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], window, [0]])))
            assert max(edges[1::2] - edges[::2], default=0) < 3 * FRAME, (start, end)


def test_silence_that_is_kept_behind_speech_does_not_make_a_cut() -> None:
    """The speech is shorter than thirty seconds, and longer with what is kept behind it."""
    told = [0.9] * 929 + [0.1] * 9
    samples = np.repeat([0.1] * 929 + [0.0] * 9, FRAME).astype(np.float32)
    assert 929 * FRAME < 30 * RATE < len(samples)
    assert places(cut(samples, [50_000], told, 0.8, "on")) == [(0, 30 * RATE)]


def test_a_long_silence_that_has_not_ended_the_segment_does_not_make_a_cut_either() -> None:
    told = [0.9] * 600 + [0.1] * 10 + [0.9] * 300 + [0.1] * 100
    samples = np.repeat([0.1 if speech > 0.5 else 0.0 for speech in told], FRAME).astype(np.float32)
    assert places(cut(samples, [50_000], told, 2.5, "on")) == [(0, 30 * RATE)]


def test_by_itself_thirty_seconds_are_one_segment_and_more_are_not() -> None:
    silent = np.zeros(30 * RATE, np.float32)
    assert plan(silent, vad="auto") == [(0, 30 * RATE)]
    assert plan(np.zeros(30 * RATE + 1, np.float32), vad="auto") == []
    assert plan(np.zeros(0, np.float32), vad="auto") == []


def test_by_itself_music_and_noise_are_heard_and_silence_is_not() -> None:
    gap = np.zeros(8 * RATE, np.float32)
    clip = audio.load(SAMPLES / "hello.wav")
    music = 0.05 * np.sin(np.arange(5 * RATE) / 20).astype(np.float32)
    sound = np.concatenate([gap, clip, gap, music, gap, clip, gap])
    begins = [len(gap), 2 * len(gap) + len(clip), 3 * len(gap) + len(clip) + len(music)]
    found = plan(sound, vad="auto")
    assert len(found) == len(begins)
    for (start, end), begin, part in zip(found, begins, (clip, music, clip), strict=True):
        assert abs(start - begin) < RATE
        assert abs(end - begin - len(part)) < RATE
    assert len(plan(sound, vad="on")) == 2  # the music is no speech


def test_nothing_but_silence_gives_nothing() -> None:
    assert cut(np.zeros(60 * RATE, np.float32), [1600], [0.0] * 3000) == []


def test_a_single_frame_like_speech_is_no_speech() -> None:
    assert cut(np.zeros(RATE, np.float32), [1600], [0.0, 0.9] * 20) == []


def test_a_segmenter_that_hears_silence_keeps_hardly_any_of_it() -> None:
    segmenter = Segmenter(vad="on")
    for _ in range(60):
        assert not list(segmenter.push(np.zeros(RATE, np.float32)))
    assert segmenter.in_progress() is None
    assert segmenter.heard == 60 * RATE
    assert len(segmenter._held._data) < 60 * RATE / 2


def test_the_recorded_utterances_are_found() -> None:
    names = ["hello", "digits", "spelling"]
    clips = [audio.load(SAMPLES / f"{name}.wav") for name in names]
    gap = np.zeros(3 * RATE, np.float32)
    sound = np.concatenate([part for clip in clips for part in (gap, clip)] + [gap])
    segments = plan(sound, vad="on", silence=2)
    assert len(segments) == len(names)
    begin = 0
    for (start, end), clip in zip(segments, clips, strict=True):
        begin += len(gap)
        assert abs(start - begin) < RATE
        assert abs(end - begin - len(clip)) < RATE
        begin += len(clip)

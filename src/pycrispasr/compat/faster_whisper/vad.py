"""faster-whisper's module `vad`: where in audio somebody speaks, by Silero's detector.

What `get_speech_timestamps` does follows the description of its options at https://github.com/snakers4/silero-vad.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pycrispasr.audio import SAMPLE_RATE, Samples
from pycrispasr.errors import UnsupportedOperationError
from pycrispasr.segmentation.silero import FRAME, VoiceDetector

_HYSTERESIS = 0.15  # how far below the threshold speech ends
_BREATH = round(0.098 * SAMPLE_RATE)  # samples without speech at which long speech is split


@dataclasses.dataclass
class VadOptions:
    """Options of `get_speech_timestamps`.

    Attributes:
        threshold: From this probability on it is speech.
        neg_threshold: Below this one speech ends. None: 0.15 less than `threshold`.
        min_speech_duration_ms: Shorter speech is left out.
        max_speech_duration_s: Longer speech is split, in its last pause of 0.1 s if there is one.
        min_silence_duration_ms: How long a pause ends speech.
        speech_pad_ms: How much is added on each side.
    """

    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_duration_ms: int = 0
    max_speech_duration_s: float = float("inf")
    min_silence_duration_ms: int = 2000
    speech_pad_ms: int = 400


def get_speech_timestamps(
    audio: npt.NDArray[np.floating[Any]],
    vad_options: VadOptions | None = None,
    sampling_rate: int = SAMPLE_RATE,
    **kwargs: Any,
) -> list[dict[str, int]]:
    """Where somebody speaks.

    Args:
        audio: Samples at 16 kHz, shape `[n]`.
        vad_options: Or its fields as `kwargs`.
        sampling_rate: 16000.
        kwargs: Fields of `VadOptions`.

    Returns:
        Dictionaries with the first sample, "start", and the one behind the last, "end".

    Raises:
        UnsupportedOperationError: Another rate.
    """
    if sampling_rate != SAMPLE_RATE:
        raise UnsupportedOperationError(f"sampling_rate={sampling_rate}: the detector hears 16000 samples a second")
    options = vad_options or VadOptions(**kwargs)
    samples = np.asarray(audio, np.float32)
    padded = np.pad(samples, (0, -len(samples) % FRAME))
    speech = _speech(VoiceDetector().push(padded), len(samples), options)
    shortest = options.min_speech_duration_ms * SAMPLE_RATE / 1000
    kept = [(start, end) for start, end in speech if end - start > shortest]
    return _padded(kept, len(samples), round(options.speech_pad_ms * SAMPLE_RATE / 1000))


def _speech(probabilities: Sequence[float], size: int, options: VadOptions) -> list[tuple[int, int]]:
    """Runs of speech, in samples, before padding."""
    below = options.neg_threshold
    below = max(options.threshold - _HYSTERESIS, 0.01) if below is None else below
    pause = options.min_silence_duration_ms * SAMPLE_RATE / 1000
    pad = options.speech_pad_ms * SAMPLE_RATE / 1000
    longest = options.max_speech_duration_s * SAMPLE_RATE - FRAME - 2 * pad
    found: list[tuple[int, int]] = []
    start: int | None = None
    quiet: int | None = None  # since when no speech is heard
    breath: tuple[int, int] | None = None  # the last pause that is long enough for a split
    for frame, probability in enumerate(probabilities):
        now = frame * FRAME
        if start is None:
            if probability >= options.threshold:
                start, quiet, breath = now, None, None
            continue
        if probability >= options.threshold and quiet is not None:
            if now - quiet > _BREATH:
                breath = quiet, now
            quiet = None
        if now - start > longest:
            if breath is not None:
                found.append((start, breath[0]))
                start, breath = breath[1], None
            else:
                found.append((start, now))
                start = now if probability >= options.threshold else None
            quiet = None
            continue
        if probability < below:
            quiet = now if quiet is None else quiet
            if now - quiet >= pause:
                found.append((start, quiet))
                start = quiet = None
    if start is not None:
        found.append((start, size))
    return [(begin, end) for begin, end in found if end > begin]


def _padded(speech: Sequence[tuple[int, int]], size: int, pad: int) -> list[dict[str, int]]:
    """With some samples on each side; neighbours share what lies between them."""
    result = [{"start": start, "end": end} for start, end in speech]
    for number, one in enumerate(result):
        if number == 0:
            one["start"] = max(0, one["start"] - pad)
        if number == len(result) - 1:
            one["end"] = min(size, one["end"] + pad)
            continue
        following = result[number + 1]
        gap = following["start"] - one["end"]
        share = min(pad, gap // 2)
        one["end"] = min(size, one["end"] + share)
        following["start"] = max(0, following["start"] - share)
    return result


def collect_chunks(
    audio: Samples,
    chunks: Sequence[dict[str, int]],
    sampling_rate: int = SAMPLE_RATE,
    max_duration: float = float("inf"),
) -> tuple[list[Samples], list[dict[str, Any]]]:
    """The samples of speech, joined to pieces.

    Args:
        audio: Samples, shape `[n]`.
        chunks: What `get_speech_timestamps` gave.
        sampling_rate: Samples per second.
        max_duration: Seconds of a piece, at most, unless a chunk is longer.

    Returns:
        The pieces, at least one, and for each a dictionary: "offset" and "duration" in seconds of speech, and
        "segments", its chunks.
    """
    groups: list[list[dict[str, int]]] = [[]]
    length = 0
    for chunk in chunks:
        more = chunk["end"] - chunk["start"]
        if groups[-1] and length + more > max_duration * sampling_rate:
            groups.append([])
            length = 0
        groups[-1].append(chunk)
        length += more
    pieces = [
        np.concatenate([audio[one["start"] : one["end"]] for one in group]) if group else np.zeros(0, np.float32)
        for group in groups
    ]
    offset, told = 0, []
    for piece, group in zip(pieces, groups, strict=True):
        told.append({"offset": offset / sampling_rate, "duration": len(piece) / sampling_rate, "segments": group})
        offset += len(piece)
    return pieces, told


class SpeechTimestampsMap:
    """From times in the joined speech to those in the audio.

    Args:
        chunks: What `get_speech_timestamps` gave.
        sampling_rate: Samples per second.
        time_precision: Decimals of the times.
    """

    def __init__(self, chunks: Sequence[dict[str, int]], sampling_rate: int, time_precision: int = 2) -> None:
        self.sampling_rate, self.time_precision = sampling_rate, time_precision
        self.chunk_end_sample: list[int] = []
        self.total_silence_before: list[float] = []
        speech = 0
        for chunk in chunks:
            self.total_silence_before.append((chunk["start"] - speech) / sampling_rate)
            speech += chunk["end"] - chunk["start"]
            self.chunk_end_sample.append(speech)

    def get_original_time(self, time: float, chunk_index: int | None = None, is_end: bool = False) -> float:
        """A time in the audio, in seconds, for one in the joined speech; `is_end` for one at which a word ends."""
        index = self.get_chunk_index(time, is_end) if chunk_index is None else chunk_index
        return round(self.total_silence_before[index] + time, self.time_precision)

    def get_chunk_index(self, time: float, is_end: bool = False) -> int:
        """In which chunk a time of the joined speech lies."""
        sample = int(time * self.sampling_rate)
        find = bisect.bisect_left if is_end else bisect.bisect_right
        return min(find(self.chunk_end_sample, sample), len(self.chunk_end_sample) - 1)

"""Divides audio for models that hear recordings of an hour in one go: into as few parts as can be, which overlap."""

from __future__ import annotations

from collections.abc import Iterator

from pycrispasr.audio import SAMPLE_RATE, Samples
from pycrispasr.segmentation.segmenter import AudioSegment, HeldSamples


class PartsSegmenter:
    """Takes samples as they come and gives parts as they become complete. The blocks do not change the result.

    Args:
        longest: Seconds of a part, at the most. What is no longer is one part.
        overlap: Seconds that two parts in succession have in common, less than `longest`.
    """

    def __init__(self, longest: float, overlap: float) -> None:
        self._longest, self._overlap = round(longest * SAMPLE_RATE), round(overlap * SAMPLE_RATE)
        self._held = HeldSamples()
        self._start = 0  # of the part, in samples from the beginning of the audio

    def push(self, samples: Samples) -> Iterator[AudioSegment]:
        """The next samples, mono at 16 kHz, shape `[n]`. Gives the parts that end in them."""
        self._held.append(samples)
        while len(self._held.view()) > self._longest:
            yield AudioSegment(self._start, self._held.view()[: self._longest].copy(), overlapped=True)
            self._held.drop(self._longest - self._overlap)
            self._start += self._longest - self._overlap

    def finish(self) -> Iterator[AudioSegment]:
        """What is left when the audio has ended."""
        if len(self._held.view()):
            yield AudioSegment(self._start, self._held.view().copy())

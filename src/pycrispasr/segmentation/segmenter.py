"""Divides audio, as it comes, into segments of at most 30 seconds.

The model gives no times, so overlapping segments would repeat the words at their seams. Segments do not overlap: they
end at pauses where a voice activity detector looks for them, else where it is quietest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pycrispasr.audio import CHUNK_SECONDS, SAMPLE_RATE, Samples
from pycrispasr.options import ReadingOptions, Vad
from pycrispasr.segmentation.silero import FRAME, VoiceDetector

LONGEST = round(CHUNK_SECONDS * SAMPLE_RATE)
"""Samples of the longest segment."""

_REST = 1 * SAMPLE_RATE  # a shorter rest is never cut off
_SEARCH = 10 * SAMPLE_RATE  # the last part of the longest segment, where the quietest place is looked for
_PAUSE_SEARCH = 15 * SAMPLE_RATE  # the same for a pause between words
_PAUSE = 3 * FRAME  # the shortest of these

# As Silero's own code decides: speech begins above the first probability and ends below the second.
_SPEECH, _NO_SPEECH = 0.5, 0.35
_FRAMES = 2  # of speech, one after the other, make a beginning
_LOUD = 0.01  # of speech's power, or what no speech has is not quiet
_SOUND = 1e-6  # the power that is not quiet as long as no speech has been heard: -60 dB
_LEARN = 0.05  # the weight of a frame in speech's power
_PAD = round(0.3 * SAMPLE_RATE)  # is kept before and after speech

_STEP = 10 * SAMPLE_RATE  # samples that are taken in at once


class AudioSegment(NamedTuple):
    """The audio of a segment."""

    start: int  # in samples from the beginning of the audio
    samples: Samples
    overlapped: bool = False  # the next one begins before its end


class SpeechStart(NamedTuple):
    """Somebody began to speak."""

    place: int  # in samples from the beginning of the audio


class SpeechEnd(NamedTuple):
    """Speech ended, and silence followed for as long as ends a segment."""

    place: int  # the end of speech, in samples from the beginning of the audio


Mark = AudioSegment | SpeechStart | SpeechEnd


class Segmenter:
    """Takes samples as they come and gives segments as they become complete. The blocks do not change the result.

    Without a detector the segments cover all audio. Each cut is in the middle of the quietest 0.3 s of the last ten
    seconds that the segment may have, and no segment but a lone one is shorter than one second.

    With one, a segment begins 0.3 s before speech does, and ends 0.3 s after it, as soon as `silence` seconds without
    speech have followed; what lies between segments is left out. Speech that goes on for longer than a segment may
    be is cut in the middle of the longest pause of its second half, or else as above.

    With "auto", audio of 30 seconds or less is one segment. For more there is a detector, and only what is quiet too,
    20 dB below speech, is left out: noise and music are not, since somebody may speak in them unnoticed.

    Args:
        vad: Use a voice activity detector.
        silence: Seconds without speech that end a segment. None: 1.0 with "auto", else 0.8.

    Raises:
        UsageError: There is no such `vad`, or `silence` is not positive.
    """

    def __init__(self, *, vad: Vad = "off", silence: float | None = None) -> None:
        options = ReadingOptions(vad=vad, silence=silence)
        self._detector = VoiceDetector() if vad == "on" else None
        self._auto = vad == "auto"
        self._level = 0.0  # power of speech
        self._silence = round(options.silence_seconds * SAMPLE_RATE)
        self._held = HeldSamples()  # samples from here on
        self._start = 0  # of the segment, or the earliest place where the next one may begin
        self._open = vad != "on"
        self._now = 0  # samples that the detector has seen
        self._run = 0  # frames of speech before a beginning
        self._spoken = 0  # where speech ended last
        self._pauses: list[tuple[int, int]] = []  # inside the segment

    @property
    def heard(self) -> int:
        """Samples that were pushed."""
        return self._start + len(self._held.view())

    def in_progress(self) -> AudioSegment | None:
        """The segment in progress, or None where none has begun. Its samples stand until the next call.

        It may turn out to end before them.
        """
        return AudioSegment(self._start, self._held.view()) if self._open else None

    def push(self, samples: Samples) -> Iterator[Mark]:
        """The next samples, mono at 16 kHz, shape `[n]`. Gives what they bring about, in the order of time."""
        for first in range(0, len(samples), _STEP):
            step = samples[first : first + _STEP]
            self._held.append(step)
            if self._auto and self._detector is None:
                if self.heard <= LONGEST:
                    continue
                self._detector, self._open = VoiceDetector(), False
                step = self._held.view().copy()
            if self._detector is None:
                while len(self._held.view()) >= LONGEST + _REST:
                    yield self._cut(self._place(self._start + LONGEST))
            else:
                for probability in self._detector.push(step):
                    self._now += FRAME
                    yield from self._frame(probability)

    def finish(self) -> Iterator[AudioSegment]:
        """What is left when the audio has ended."""
        if self._open:
            end = self.heard
            yield from self._close(end if self._detector is None else min(self._spoken + _PAD, end))

    def _frame(self, probability: float) -> Iterator[Mark]:
        """Decides at the end of a frame, knowing nothing later."""
        loud = self._auto and self._loud(probability)
        if not self._open:
            self._run = self._run + 1 if probability >= _SPEECH or loud else 0
            begin = self._now - self._run * FRAME
            self._drop(begin - _PAD)
            if self._run == _FRAMES:
                self._open, self._run, self._spoken, self._pauses = True, 0, self._now, []
                yield SpeechStart(begin)
            return
        if probability >= _NO_SPEECH or loud:
            self._spoken = self._now
        if probability >= _NO_SPEECH:
            pass
        elif self._pauses and self._pauses[-1][1] == self._now - FRAME:
            self._pauses[-1] = self._pauses[-1][0], self._now
        else:
            self._pauses.append((self._now - FRAME, self._now))
        if self._now - self._spoken >= self._silence:
            yield from self._close(min(self._spoken + _PAD, self._now))
            self._open = False
            yield SpeechEnd(self._spoken)
        elif self._now - self._start >= LONGEST + _REST:
            longest = self._start + LONGEST
            pause = (self._spoken + self._now) // 2  # that of `_place` may be one in the speech, which need not be cut
            yield from self._speech(min(pause, longest) if self._spoken <= longest else self._place(longest))

    def _loud(self, probability: float) -> bool:
        """True where a frame is not quiet."""
        end = self._now - self._start
        power = float(np.square(self._held.view()[end - FRAME : end], dtype=np.float64).mean())
        if probability >= _SPEECH:
            self._level += (_LEARN if self._level else 1.0) * (power - self._level)
        return power > (_LOUD * self._level or _SOUND)

    def _close(self, end: int) -> Iterator[AudioSegment]:
        """The rest until there, which may have to be cut once more."""
        while (longest := self._start + LONGEST) < end:
            if self._detector is not None and self._spoken <= longest:
                end = longest  # what is kept behind speech does not make a cut
            else:
                yield from self._speech(self._place(min(longest, end - _REST)))
        if end > self._start:
            yield from self._speech(end)

    def _speech(self, end: int) -> Iterator[AudioSegment]:
        """What is cut off there, unless it is known that nobody speaks in it."""
        silent = self._detector is not None and self._spoken <= self._start
        cut = self._cut(end)
        if not silent:
            yield cut

    def _cut(self, end: int) -> AudioSegment:
        cut = AudioSegment(self._start, self._held.view()[: end - self._start].copy())
        self._drop(end)
        return cut

    def _drop(self, start: int) -> None:
        """Forgets what lies before."""
        if start > self._start:
            self._held.drop(start - self._start)
            self._start = start

    def _place(self, last: int) -> int:
        """Where speech that goes on is cut, at the latest there."""
        earliest = max(self._start + _PAUSE_SEARCH, last - _PAUSE_SEARCH)
        inside = [(max(begin, earliest), min(end, last)) for begin, end in self._pauses]
        _, middle = max(
            ((end - begin, (begin + end) // 2) for begin, end in inside if end - begin >= _PAUSE), default=(0, None)
        )
        self._pauses = [pause for pause in self._pauses if middle is not None and pause[1] > middle]
        if middle is None:
            return self._start + quietest(self._held.view(), last - _SEARCH - self._start, last - self._start)
        return middle


def plan(samples: Samples, *, vad: Vad = "off", silence: float | None = None) -> list[tuple[int, int]]:
    """Where a whole recording is cut.

    Args:
        samples: Mono at 16 kHz, shape `[n]`.
        vad: As for `Segmenter`.
        silence: As for `Segmenter`.

    Returns:
        (start, end) of every segment in samples, in order. Empty for no samples.
    """
    segmenter = Segmenter(vad=vad, silence=silence)
    marks = [*segmenter.push(samples), *segmenter.finish()]
    return [(mark.start, mark.start + len(mark.samples)) for mark in marks if isinstance(mark, AudioSegment)]


def quietest(samples: Samples, begin: int, end: int) -> int:
    """The middle of the quietest 0.3 s between two places; the last one where several are equally quiet.

    Args:
        samples: Mono at 16 kHz, shape `[n]`.
        begin: In samples, not negative.
        end: At least 0.3 s later.
    """
    hop = SAMPLE_RATE // 100
    window = 30
    frames = samples[begin : begin + (end - begin) // hop * hop].astype(np.float64).reshape(-1, hop)
    energy = np.convolve(np.square(frames).sum(axis=1), np.ones(window), mode="valid")
    last = len(energy) - 1 - int(np.argmin(energy[::-1]))
    return begin + (last + window // 2) * hop


class HeldSamples:
    """Samples that come in at one end and are dropped at the other."""

    def __init__(self) -> None:
        self._data = np.empty(2 * SAMPLE_RATE, np.float32)
        self._first = self._end = 0

    def view(self) -> Samples:
        """Those that are held; they stand until the next call."""
        return self._data[self._first : self._end]

    def append(self, samples: Samples) -> None:
        """Takes more of them."""
        if self._end + len(samples) > len(self._data):
            kept = self.view()
            self._data = np.empty(2 * (len(kept) + len(samples)), np.float32)
            self._data[: len(kept)] = kept
            self._first, self._end = 0, len(kept)
        self._data[self._end : self._end + len(samples)] = samples
        self._end += len(samples)

    def drop(self, count: int) -> None:
        """Forgets so many of the first."""
        self._first += count

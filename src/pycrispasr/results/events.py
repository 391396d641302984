"""What happens while somebody speaks: plain frozen data."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from pycrispasr.results.segment import Segment


@dataclasses.dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody began to speak. Only with a voice activity detector.

    Attributes:
        time: Seconds from the beginning of the audio.
    """

    time: float


@dataclasses.dataclass(frozen=True, slots=True)
class Partial:
    """What is said so far in the segment in progress.

    Attributes:
        start: Seconds from the beginning of the audio to that of the segment.
        end: Seconds from the beginning of the audio to where this text ends.
        committed: What two texts in succession agreed on. It only grows until the segment's `Final` comes.
        tentative: What follows it, and may still change. It begins with the space between the two, if there is one.
    """

    start: float
    end: float
    committed: str
    tentative: str


@dataclasses.dataclass(frozen=True, slots=True)
class Final:
    """The text of a segment that is complete: what `Model.transcribe` gives for the same audio and options.

    Attributes:
        segment: Its text, times, tokens and status, as in the `Transcript`.
    """

    segment: Segment


@dataclasses.dataclass(frozen=True, slots=True)
class Silence:
    """Nobody has spoken for the session's `silence` seconds. Only with a voice activity detector.

    Attributes:
        time: Seconds from the beginning of the audio to the end of speech.
    """

    time: float


@dataclasses.dataclass(frozen=True, slots=True)
class Overrun:
    """Samples were pushed for which there was no room. The session heard silence instead, so that times stay right.

    Attributes:
        start: Seconds from the beginning of the audio to the first lost sample.
        end: Seconds from the beginning of the audio to the end of the loss.
    """

    start: float
    end: float


Event: TypeAlias = SpeechStarted | Partial | Final | Silence | Overrun

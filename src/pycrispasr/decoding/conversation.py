"""Who spoke when in a whole recording, of what a model tells of parts of it.

A model that tells speakers apart numbers them within what it hears in one go. Of a recording that is too long for that
it hears parts that overlap: in the overlap it hears the same people twice, which tells who is who.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycrispasr.results.segment import Segment

_SLACK = 0.5  # seconds that an utterance may reach beyond a part's end without having been cut off there


class Utterance(NamedTuple):
    """A segment, and the number of its speaker in its part; None where the model does not tell."""

    speaker: int | None
    segment: Segment


@dataclasses.dataclass
class _Part:
    """What the model has told of a part."""

    start: float
    end: float | None  # where it ends, if another part follows
    utterances: Sequence[Utterance]
    done: bool


class Conversation:
    """Puts the utterances of overlapping parts together.

    The seam of two parts lies in the longest time of their overlap in which no utterance begins: what begins before it
    is taken from the first part, and from the second what begins behind it, or was cut off at the first one's end.
    A speaker of the second is the one of the first who speaks at the same times in the overlap; one who does not speak
    there gets a number of his own, with a warning.

    Args:
        names: Of speakers, in the order of their numbers. Others are called "Speaker 1" and so on.
        overlap: Seconds that two parts have in common.
    """

    def __init__(self, names: Sequence[str] = (), overlap: float = 0.0) -> None:
        self._names, self._overlap = names, overlap
        self._parts: list[_Part] = []
        self._current = 0  # the first part of which not all was given
        self._given = 0  # utterances of it that were given
        self._seam, self._cut = -math.inf, math.inf  # those are left out which begin before, unless they end behind
        self._numbers: dict[int, int] = {}  # of the recording's speakers, by those of the current part
        self._highest = 0
        self._unlabelled = 0
        self._unmatched: list[str] = []

    def update(
        self, place: int, start: float, end: float | None, utterances: Sequence[Utterance], *, done: bool
    ) -> Iterator[Segment]:
        """Takes what is known of a part by now, and gives what that makes final.

        Args:
            place: Which part, from 0.
            start: Seconds where it begins.
            end: Seconds where it ends, if another part follows, which begins before that. None: it is the last.
            utterances: All that are complete, in the order in which they begin.
            done: There will be no more.
        """
        self._parts[place : place + 1] = [_Part(start, end, utterances, done)]
        return self._ready(force=False)

    def rest(self) -> Iterator[Segment]:
        """All that was not given yet, where nothing more will come."""
        return self._ready(force=True)

    @property
    def warnings(self) -> list[str]:
        """What the result does not show, in sentences."""
        found = list(self._unmatched)
        if self._unlabelled:
            found.append(f"the model named no speaker for {self._unlabelled} of its segments: their text is kept")
        return found

    def _ready(self, *, force: bool) -> Iterator[Segment]:
        while self._current < len(self._parts):
            part = self._parts[self._current]
            found = [
                one
                for one in part.utterances
                if one.segment.start >= self._seam or one.segment.end > self._cut + _SLACK
            ]
            if part.end is None:
                yield from self._give(found)
                if not part.done:
                    return
                self._current += 1
                continue
            following = self._parts[self._current + 1] if self._current + 1 < len(self._parts) else None
            if following is None or not (force or (part.done and _has_heard(following, part.end))):
                border = part.end - self._overlap  # the next part may tell otherwise what lies behind it
                sure = itertools.takewhile(lambda one: one.segment.end <= border, found)  # noqa: B023
                yield from self._give(found if force else list(sure))
                return
            seam = _seam(part, following)
            yield from self._give([one for one in found if one.segment.start < seam])
            self._numbers = self._matched(part, following)
            self._current, self._given, self._seam, self._cut = self._current + 1, 0, seam, part.end

    def _give(self, utterances: Sequence[Utterance]) -> Iterator[Segment]:
        """Those that were not given yet, with their speakers' names."""
        for number, segment in utterances[self._given :]:
            self._given += 1
            self._unlabelled += number is None and bool(segment.text)
            yield dataclasses.replace(segment, speaker=None if number is None else self._name(number, segment.start))

    def _name(self, number: int, start: float) -> str:
        if number not in self._numbers:
            self._numbers[number] = number if self._current == 0 else self._highest + 1
            if self._current > 0:
                self._unmatched.append(
                    f"speaker {self._numbers[number]}, who begins at {start:.0f} s, does not speak where that part "
                    "overlaps with the one before: it may be somebody who has a number already"
                )
        number = self._numbers[number]
        self._highest = max(self._highest, number)
        return self._names[number - 1] if 1 <= number <= len(self._names) else f"Speaker {number}"

    def _matched(self, part: _Part, following: _Part) -> dict[int, int]:
        """The recording's numbers of the next part's speakers: those who speak together longest come first."""
        together: dict[tuple[int, int], float] = {}
        for a, b in itertools.product(part.utterances, following.utterances):
            seconds = min(a.segment.end, b.segment.end) - max(a.segment.start, b.segment.start)
            if a.speaker is not None and b.speaker is not None and seconds > 0:
                together[a.speaker, b.speaker] = together.get((a.speaker, b.speaker), 0.0) + seconds
        numbers: dict[int, int] = {}
        for before, number in sorted(together, key=together.__getitem__, reverse=True):
            known = self._numbers.get(before, before)
            if number not in numbers and known not in numbers.values():
                numbers[number] = known
        return numbers


def _has_heard(part: _Part, seconds: float) -> bool:
    """True where a part will tell no more of what lies before."""
    return part.done or any(one.segment.start >= seconds for one in part.utterances)


def _seam(part: _Part, following: _Part) -> float:
    """The middle of the longest time of the overlap in which nothing begins; nearest to its middle among equals."""
    begin, end = following.start, part.end or following.start
    starts = [one.segment.start for one in (*part.utterances, *following.utterances)]
    edges = [begin, *sorted(start for start in starts if begin < start < end), end]
    gaps = [(b - a, -abs((a + b) / 2 - (begin + end) / 2), (a + b) / 2) for a, b in itertools.pairwise(edges)]
    return max(gaps)[2]

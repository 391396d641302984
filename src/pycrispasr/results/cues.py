"""A transcript as subtitles: which words are on the screen at once, in which lines, and for how long."""

from __future__ import annotations

import dataclasses
import functools
import math
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycrispasr.errors import UsageError
from pycrispasr.results.segment import Segment, Word
from pycrispasr.text import is_wide, pieces, plain, separator

if TYPE_CHECKING:
    from pycrispasr.results.transcript import Transcript

_PAUSE = 0.6  # seconds without a word, after which a new cue begins


_SENTENCE, _CLAUSE = ".!?…。！？", ",;:，；：、"  # what ends them


_CLOSING = _SENTENCE + _CLAUSE + ")]}»”’」』）》】〉"  # may not begin a line


_OPENING = "([{«“‘「『（《【〈"  # may not end one


@dataclasses.dataclass(frozen=True, slots=True)
class Cue:
    """What is on the screen at once.

    Attributes:
        start: Seconds from the beginning of the audio, in whole milliseconds.
        end: Seconds from the beginning of the audio, in whole milliseconds, later than `start`.
        lines: The text.
        words: What the lines are made of, with times, where the segment has its words' times; else nothing. A word
            that is longer than a line is in several parts here.
        speaker: Who speaks, where the segment tells it.
    """

    start: float
    end: float
    lines: tuple[str, ...]
    words: tuple[Word, ...] = ()
    speaker: str | None = None

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


def cues(
    transcript: Transcript,
    *,
    max_line_chars: int = 42,
    max_lines: int = 2,
    max_cue_seconds: float = 7.0,
    names: bool = False,
) -> list[Cue]:
    """A transcript as subtitles.

    A cue ends where its segment does, before a pause between words, or where the next word finds no room: then rather
    after the end of a sentence or a clause. Where a segment has its words' times, these are the cues' times; else its
    time is shared out among its words by their lengths. Cues are in order, do not overlap, and last at least one
    millisecond. A segment without text gives none. Control characters are left out.

    Args:
        transcript: What was said.
        max_line_chars: The longest line. Wide characters, such as Chinese ones, count double. Only a word that is
            longer is cut in two.
        max_lines: The most lines of a cue.
        max_cue_seconds: How long a cue lasts at the most, also where its last word goes on.
        names: Write the name of a speaker before the first text of his, and where another one has spoken in between.

    Raises:
        UsageError: `max_line_chars` is below 2, `max_lines` below 1, or `max_cue_seconds` below 0.1 or infinite.
    """
    if max_line_chars < 2:
        raise UsageError(f"max_line_chars cannot be {max_line_chars}: it must be at least 2, for one wide character")
    if max_lines < 1:
        raise UsageError(f"max_lines cannot be {max_lines}: it must be at least 1")
    if not 0.1 <= max_cue_seconds < math.inf:
        raise UsageError(f"max_cue_seconds cannot be {max_cue_seconds}: it must be at least 0.1")
    found: list[Cue] = []
    free = 0  # milliseconds up to where the screen is taken
    speaker = None
    for segment in map(_plain, transcript.segments):
        spoken = _units(segment)
        if names and spoken and segment.speaker and segment.speaker != speaker:
            spoken = _named(segment.speaker, spoken)
        speaker = segment.speaker if spoken else speaker
        units = [part for unit in spoken for part in _cut(unit, max_line_chars)]
        while units:
            lines = _lines(units, max_line_chars, max_lines, max_cue_seconds)
            shown = [unit for line in lines for unit in line]
            units = units[len(shown) :]
            start = max(free, milliseconds(shown[0].start))
            free = max(start + 1, min(milliseconds(shown[-1].end), start + int(max_cue_seconds * 1000)))
            found.append(
                Cue(
                    start / 1000,
                    free / 1000,
                    tuple(map(_text, lines)),
                    tuple(dataclasses.replace(unit, text=unit.text.strip()) for unit in shown) if segment.words else (),
                    segment.speaker,
                )
            )
    return found


def _named(speaker: str, units: list[Word]) -> list[Word]:
    """Words with the name of their speaker in front of them."""
    name = [dataclasses.replace(units[0], text=text, end=units[0].start) for text in pieces(f"{speaker}:")]
    first = units[0].text
    return [*name, dataclasses.replace(units[0], text=separator(":", first) + first), *units[1:]]


def spaced_words(segment: Segment) -> Iterator[Word]:
    """A segment's words, each with the space before it, where its text has one."""
    at, before = 0, ""
    for word in segment.words or ():
        text = " ".join(word.text.split())
        if not text:
            continue
        place = segment.text.find(word.text, at)
        if place >= 0 and not segment.text[at:place].strip():
            space = " " if 0 < at < place else ""
            at = place + len(word.text)
        else:  # the text is no help
            space = separator(before, text)
        yield dataclasses.replace(word, text=space + text)
        before = text


def _plain(segment: Segment) -> Segment:
    """A segment without control characters."""
    speaker = segment.speaker and (" ".join(plain(segment.speaker).split()) or None)
    words = segment.words and tuple(dataclasses.replace(word, text=plain(word.text)) for word in segment.words)
    return dataclasses.replace(segment, text=plain(segment.text), words=words, speaker=speaker)


def _units(segment: Segment) -> list[Word]:
    """What is not cut: a segment's words with the spaces before them, and with punctuation that belongs to them."""
    units: list[Word] = []
    for word in spaced_words(segment) if segment.words else _words_by_length(segment):
        last = units[-1] if units else None
        if last and not word.text[0].isspace() and (word.text[0] in _CLOSING or last.text[-1] in _OPENING):
            units[-1] = Word(last.text + word.text, last.start, word.end, min(last.probability, word.probability))
        else:
            units.append(word)
    return units


def _words_by_length(segment: Segment) -> Iterator[Word]:
    """A segment's words with the spaces before them, and with times that share out its own."""
    words = [(" " if word[0].isspace() else "") + word.strip() for word in pieces(segment.text)]
    for word, (start, end) in zip(words, _shares(words, segment.start, segment.end), strict=True):
        yield Word(word, start, end, math.nan)


def _shares(texts: list[str], start: float, end: float) -> Iterator[tuple[float, float]]:
    """The time from start to end, shared out among texts by their lengths."""
    total = sum(map(_width, texts)) or 1  # there are characters without a width
    done = 0
    for text in texts:
        begin = start + (end - start) * done / total
        done += _width(text)
        yield begin, start + (end - start) * done / total


def _cut(unit: Word, limit: int) -> list[Word]:
    """A word in parts that are no longer than a line, with their shares of its time."""
    total = _width(unit.text.strip())
    if total <= limit:
        return [unit]
    parts, room = [""], limit
    for character in unit.text:
        width = _width(character.strip())
        if width > room:
            parts.append("")
            room = limit
        parts[-1] += character
        room -= width
    return [
        Word(part, start, end, unit.probability)
        for part, (start, end) in zip(parts, _shares(parts, unit.start, unit.end), strict=True)
    ]


def _lines(units: list[Word], limit: int, max_lines: int, seconds: float) -> list[list[Word]]:
    """The first units, as the lines of one cue."""
    end, lines = 0, 0
    for unit, begins_line in zip(units, _begins_line(units, limit), strict=True):
        lines += begins_line
        follows = end == 0 or (unit.start - units[end - 1].end < _PAUSE and unit.end - units[0].start <= seconds)
        if lines > max_lines or not follows:
            break
        end += 1
    if end < len(units) and units[end].start - units[end - 1].end < _PAUSE:
        for marks in (_SENTENCE, _CLAUSE):
            # A cue that is much shorter than need be would be worse than one that ends inside a sentence.
            best = next((i for i in range(end, end // 2, -1) if units[i - 1].text[-1] in marks), None)
            if best is not None:
                end = best
                break
    return _balanced(units[:end], limit)


def _balanced(units: list[Word], limit: int) -> list[list[Word]]:
    """As few lines as there can be, as long as each other as can be."""
    lines = _wrap(units, limit)
    max_lines = len(lines)
    while True:
        limit = max(map(_width_of_line, lines)) - 1
        tried = _wrap(units, limit)
        if len(tried) > max_lines or max(map(_width_of_line, tried)) > limit:
            return lines
        lines = tried


def _wrap(units: list[Word], limit: int) -> list[list[Word]]:
    lines: list[list[Word]] = []
    for unit, begins_line in zip(units, _begins_line(units, limit), strict=True):
        if begins_line:
            lines.append([])
        lines[-1].append(unit)
    return lines


def _begins_line(units: list[Word], limit: int) -> Iterator[bool]:
    """Whether a line begins with each unit, where every line is as full as it can be."""
    room = -1
    for unit in units:
        width = _width(unit.text)
        begins = width > room
        room = limit - _width(unit.text.strip()) if begins else room - width
        yield begins


def _text(line: list[Word]) -> str:
    return "".join(unit.text for unit in line).strip()


def _width_of_line(line: list[Word]) -> int:
    return _width(_text(line))


def _width(text: str) -> int:
    """Columns that it takes on a screen."""
    return len(text) if text.isascii() else sum(map(_columns, text))


@functools.lru_cache(1 << 12)
def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if is_wide(character) else 1


def milliseconds(seconds: float) -> int:
    """A time in whole milliseconds."""
    return round(seconds * 1000)

"""Transcripts and events as text for files and pipes: subtitles, tables, labels, JSON. See `docs/output.md`."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from pycrispasr.errors import UsageError
from pycrispasr.results.events import Event, Final, Overrun, Partial, Silence, SpeechStarted
from pycrispasr.results.segment import Segment, Word, without_nan
from pycrispasr.text import is_wide, pieces, separator

if TYPE_CHECKING:
    from pycrispasr.results.transcript import Transcript

Format = Literal["txt", "srt", "vtt", "tsv", "json", "audacity"]
FORMATS: tuple[Format, ...] = get_args(Format)

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
    """

    start: float
    end: float
    lines: tuple[str, ...]
    words: tuple[Word, ...] = ()

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


def cues(
    transcript: Transcript, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0
) -> list[Cue]:
    """A transcript as subtitles.

    A cue ends where its segment does, before a pause between words, or where the next word finds no room: then rather
    after the end of a sentence or a clause. Where a segment has its words' times, these are the cues' times; else its
    time is shared out among its words by their lengths. Cues are in order, do not overlap, and last at least one
    millisecond. A segment without text gives none.

    Args:
        transcript: What was said.
        max_line_chars: The longest line. Wide characters, such as Chinese ones, count double. Only a word that is
            longer is cut in two.
        max_lines: The most lines of a cue.
        max_cue_seconds: How long a cue lasts at the most, also where its last word goes on.

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
    for segment in transcript.segments:
        units = [part for unit in _units(segment) for part in _cut(unit, max_line_chars)]
        while units:
            lines = _lines(units, max_line_chars, max_lines, max_cue_seconds)
            shown = [unit for line in lines for unit in line]
            units = units[len(shown) :]
            start = max(free, _ms(shown[0].start))
            free = max(start + 1, min(_ms(shown[-1].end), start + int(max_cue_seconds * 1000)))
            found.append(
                Cue(
                    start / 1000,
                    free / 1000,
                    tuple(map(_text, lines)),
                    tuple(dataclasses.replace(unit, text=unit.text.strip()) for unit in shown) if segment.words else (),
                )
            )
    return found


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
    parts = [""]
    for character in unit.text:
        if _width((parts[-1] + character).strip()) > limit:
            parts.append("")
        parts[-1] += character
    return [
        Word(part, start, end, unit.probability)
        for part, (start, end) in zip(parts, _shares(parts, unit.start, unit.end), strict=True)
    ]


def _lines(units: list[Word], limit: int, most: int, seconds: float) -> list[list[Word]]:
    """The first units, as the lines of one cue."""
    end = 1  # of what there is room for
    while (
        end < len(units)
        and units[end].start - units[end - 1].end < _PAUSE
        and units[end].end - units[0].start <= seconds
        and len(_wrap(units[: end + 1], limit)) <= most
    ):
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
    most = len(lines)
    while True:
        limit = max(map(_width_of_line, lines)) - 1
        tried = _wrap(units, limit)
        if len(tried) > most or max(map(_width_of_line, tried)) > limit:
            return lines
        lines = tried


def _wrap(units: list[Word], limit: int) -> list[list[Word]]:
    lines: list[list[Word]] = []
    room = 0
    for unit in units:
        if not lines or _width(unit.text) > room:
            lines.append([])
            room = limit - _width(unit.text.strip())
        else:
            room -= _width(unit.text)
        lines[-1].append(unit)
    return lines


def _text(line: list[Word]) -> str:
    return "".join(unit.text for unit in line).strip()


def _width_of_line(line: list[Word]) -> int:
    return _width(_text(line))


def _width(text: str) -> int:
    """Columns that it takes on a screen."""
    return sum(
        0 if unicodedata.category(character) in ("Mn", "Me", "Cf") else 2 if is_wide(character) else 1
        for character in text
    )


def to_txt(transcript: Transcript) -> str:
    """The text alone, in one piece and without a newline at its end."""
    return transcript.text


def to_srt(
    transcript: Transcript, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0
) -> str:
    """SubRip subtitles, see `cues`. Characters stand as they are: the format knows no escapes."""
    found = cues(transcript, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds)
    return "\n".join(
        f"{number}\n{_clock(_ms(cue.start), ',')} --> {_clock(_ms(cue.end), ',')}\n{cue.text}\n"
        for number, cue in enumerate(found, 1)
    )


def to_vtt(
    transcript: Transcript, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0
) -> str:
    """WebVTT subtitles, see `cues`. Where words have times, these stand before them, for players that follow the voice.

    A note tells of each segment that failed.
    """
    found = cues(transcript, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds)
    blocks = [f"NOTE {_failure(segment).replace('-->', '->')}\n" for segment in _failed(transcript)]
    blocks += [f"{_clock(_ms(cue.start), '.')} --> {_clock(_ms(cue.end), '.')}\n{_vtt_text(cue)}\n" for cue in found]
    return "\n".join(["WEBVTT\n", *blocks])


def _vtt_text(cue: Cue) -> str:
    """A cue's text with the times at which its words begin, as far as they lie inside the cue, one after the other."""
    written, at, last = "", 0, _ms(cue.start)
    for word in cue.words:
        place, time = cue.text.index(word.text, at), _ms(word.start)
        written += html.escape(cue.text[at:place], quote=False)
        if at and last < time < _ms(cue.end):
            written += f"<{_clock(time, '.')}>"
            last = time
        written += html.escape(word.text, quote=False)
        at = place + len(word.text)
    return written + html.escape(cue.text[at:], quote=False)


def to_tsv(transcript: Transcript) -> str:
    """A line "start", "end", "text" for each segment with text, separated by tabs, below a header. In milliseconds."""
    rows = [
        f"{_ms(segment.start)}\t{_ms(segment.end)}\t{' '.join(segment.text.split())}\n"
        for segment in transcript.segments
        if segment.text
    ]
    return "start\tend\ttext\n" + "".join(rows)


def to_audacity(transcript: Transcript) -> str:
    """Labels for Audacity (File, Import, Labels): one for each word where words have times, else for each segment.

    A segment that failed gets a label with its error.
    """
    labels: list[tuple[float, float, str]] = []
    for segment in transcript.segments:
        if segment.words:
            labels += [(word.start, word.end, word.text) for word in segment.words]
        elif segment.text:
            labels.append((segment.start, segment.end, segment.text))
        if segment.status == "failed":
            labels.append((segment.start, segment.end, f"[{_failure(segment)}]"))
    return "".join(f"{start:.6f}\t{end:.6f}\t{' '.join(text.split())}\n" for start, end, text in labels)


def to_json(transcript: Transcript, *, indent: int | None = None, **extra: str) -> str:
    """One JSON object, with `extra` before the transcript's own fields: `docs/transcript.schema.json` describes it.

    Args:
        transcript: What was said.
        indent: Spaces for each level, or None for one line.
        extra: More fields, such as "audio".
    """
    return json.dumps({**extra, **transcript.to_dict()}, ensure_ascii=False, indent=indent)


def render(
    transcript: Transcript,
    format: Format,  # noqa: A002
    *,
    audio: str | None = None,
    max_line_chars: int = 42,
    max_lines: int = 2,
    max_cue_seconds: float = 7.0,
) -> str:
    """All that a file of this format holds, with a newline at its end.

    Args:
        transcript: What was said.
        format: One of `FORMATS`.
        audio: The name of the recording, for JSON.
        max_line_chars: As for `cues`.
        max_lines: As for `cues`.
        max_cue_seconds: As for `cues`.

    Raises:
        UsageError: There is no such format, or a limit is out of range.
    """
    if format == "srt" or format == "vtt":
        subtitles = to_srt if format == "srt" else to_vtt
        return subtitles(
            transcript, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds
        )
    if format == "json":
        return (to_json(transcript) if audio is None else to_json(transcript, audio=audio)) + "\n"
    if format == "txt":
        return to_txt(transcript) + "\n"
    if format == "tsv":
        return to_tsv(transcript)
    if format == "audacity":
        return to_audacity(transcript)
    raise UsageError(f"there is no format {format!r}: choose among {', '.join(FORMATS)}")


def event_to_json(event: Event) -> str:
    """One JSON object on one line: its "type", then its fields; of a `Final` those of its segment."""
    content = event.segment if isinstance(event, Final) else event
    fields = dataclasses.asdict(content, dict_factory=without_nan)
    return json.dumps({"type": _EVENTS[type(event)], **fields}, ensure_ascii=False)


_EVENTS = {SpeechStarted: "speech_started", Partial: "partial", Final: "final", Silence: "silence", Overrun: "overrun"}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(milliseconds: int, point: str) -> str:
    """Hours, minutes, seconds and milliseconds: "00:00:01,000"."""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _failed(transcript: Transcript) -> list[Segment]:
    return [segment for segment in transcript.segments if segment.status == "failed"]


def _failure(segment: Segment) -> str:
    """What went wrong, on one line."""
    return " ".join(f"{segment.start:.3f}-{segment.end:.3f} s failed: {segment.error or 'no reason known'}".split())


def bytes_text(count: int) -> str:
    """A size for people: "2.63 GB"."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"

"""Transcripts and events as text for files and pipes: subtitles, tables, labels, JSON. See `docs/output.md`.

A model's vocabulary may hold anything, and so may a text. Control characters are left out of every format but JSON,
which escapes them, and no text can end its cue, its line or its cell.
"""

from __future__ import annotations

import dataclasses
import html
import re
from typing import TYPE_CHECKING, Literal, get_args

from pycrispasr.errors import UsageError
from pycrispasr.results.cues import Cue, cues, milliseconds
from pycrispasr.results.events import Event, Final, Overrun, Partial, Silence, SpeechStarted
from pycrispasr.results.segment import Segment, without_nan
from pycrispasr.text import json_text, plain

if TYPE_CHECKING:
    from pycrispasr.results.transcript import Transcript

Format = Literal["txt", "srt", "vtt", "tsv", "json", "audacity"]
FORMATS: tuple[Format, ...] = get_args(Format)


def to_txt(transcript: Transcript) -> str:
    """The text alone, in one piece and without a newline at its end.

    Where segments have speakers, a line for each, with the name before the text.
    """
    if any(segment.speaker for segment in transcript.segments):
        return "\n".join(labelled(segment) for segment in transcript.segments if segment.text)
    return plain(transcript.text)


def labelled(segment: Segment) -> str:
    """A segment's text, with the name of its speaker before it, if it has one: "Speaker 1: Hello."."""
    return f"{_cell(segment.speaker)}: {_cell(segment.text)}" if segment.speaker else plain(segment.text)


def to_srt(
    transcript: Transcript, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0
) -> str:
    """SubRip subtitles, see `cues`.

    Characters stand as they are, since the format knows no escapes; only the arrow that marks times loses a dash. Where
    another speaker begins, the name stands before the text.
    """
    found = cues(
        transcript, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds, names=True
    )
    return "\n".join(
        f"{number}\n{_clock(milliseconds(cue.start), ',')} --> {_clock(milliseconds(cue.end), ',')}\n"
        f"{_without_arrows(cue.text)}\n"
        for number, cue in enumerate(found, 1)
    )


def to_vtt(
    transcript: Transcript, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0
) -> str:
    """WebVTT subtitles, see `cues`. Where words have times, these stand before them, for players that follow the voice.

    A voice span names each cue's speaker, and a note each segment that failed.
    """
    found = cues(transcript, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds)
    blocks = [f"NOTE {_without_arrows(_failure(segment))}\n" for segment in _failed(transcript)]
    blocks += [
        f"{_clock(milliseconds(cue.start), '.')} --> {_clock(milliseconds(cue.end), '.')}\n"
        f"{_voice(cue)}{_vtt_text(cue)}\n"
        for cue in found
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _without_arrows(text: str) -> str:
    """Without what marks a line of times in subtitles."""
    return re.sub("--+>", "->", text)


def _voice(cue: Cue) -> str:
    """The beginning of a voice span, which the cue's end ends."""
    return f"<v {html.escape(_cell(cue.speaker), quote=False)}>" if cue.speaker else ""


def _vtt_text(cue: Cue) -> str:
    """A cue's text with the times at which its words begin, as far as they lie inside the cue, one after the other."""
    written, at, last = "", 0, milliseconds(cue.start)
    for word in cue.words:
        place, time = cue.text.index(word.text, at), milliseconds(word.start)
        written += html.escape(cue.text[at:place], quote=False)
        if at and last < time < milliseconds(cue.end):
            written += f"<{_clock(time, '.')}>"
            last = time
        written += html.escape(word.text, quote=False)
        at = place + len(word.text)
    return written + html.escape(cue.text[at:], quote=False)


def to_tsv(transcript: Transcript) -> str:
    """A line "start", "end", "text" for each segment with text, separated by tabs, below a header. In milliseconds.

    Where segments have speakers, a column "speaker" stands before the text.
    """
    named = any(segment.speaker for segment in transcript.segments)
    rows = [
        f"{milliseconds(segment.start)}\t{milliseconds(segment.end)}\t"
        f"{_cell(segment.speaker or '') + chr(9) if named else ''}{_cell(segment.text)}\n"
        for segment in transcript.segments
        if _cell(segment.text)
    ]
    return f"start\tend\t{'speaker' + chr(9) if named else ''}text\n" + "".join(rows)


def to_audacity(transcript: Transcript) -> str:
    """Labels for Audacity (File, Import, Labels): one for each word where words have times, else for each segment.

    A segment's label begins with the name of its speaker. A segment that failed gets a label with its error.
    """
    labels: list[tuple[float, float, str]] = []
    for segment in transcript.segments:
        if segment.words:
            labels += [(word.start, word.end, word.text) for word in segment.words]
        elif segment.text:
            labels.append((segment.start, segment.end, labelled(segment)))
        if segment.status == "failed":
            labels.append((segment.start, segment.end, f"[{_failure(segment)}]"))
    return "".join(f"{start:.6f}\t{end:.6f}\t{_cell(text)}\n" for start, end, text in labels)


def _cell(text: str) -> str:
    """A text on one line, without tabs."""
    return " ".join(plain(text).split())


def to_json(transcript: Transcript, *, indent: int | None = None, **extra: str) -> str:
    """One JSON object, with `extra` before the transcript's own fields: `docs/transcript.schema.json` describes it.

    Args:
        transcript: What was said.
        indent: Spaces for each level, or None for one line.
        extra: More fields, such as "audio".
    """
    return json_text({**extra, **transcript.to_dict()}, indent=indent)


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
    return json_text({"type": _EVENTS[type(event)], **fields})


_EVENTS = {SpeechStarted: "speech_started", Partial: "partial", Final: "final", Silence: "silence", Overrun: "overrun"}


def _clock(milliseconds: int, point: str) -> str:
    """Hours, minutes, seconds and milliseconds: "00:00:01,000"."""
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _failed(transcript: Transcript) -> list[Segment]:
    return [segment for segment in transcript.segments if segment.status == "failed"]


def _failure(segment: Segment) -> str:
    """What went wrong, on one line."""
    return _cell(f"{segment.start:.3f}-{segment.end:.3f} s failed: {segment.error or 'no reason known'}")

"""Transcripts and events as text for files and pipes."""

from __future__ import annotations

import dataclasses
import json

from pycrispasr.events import Event, Final, Overrun, Partial, Silence, SpeechStarted
from pycrispasr.result import Transcript, without_nan


def to_txt(transcript: Transcript) -> str:
    """The text alone, in one piece and without a newline at its end."""
    return transcript.text


def to_json(transcript: Transcript, **extra: str) -> str:
    """One JSON object on one line, with `extra` before the transcript's own fields."""
    return json.dumps({**extra, **transcript.to_dict()}, ensure_ascii=False)


def event_to_json(event: Event) -> str:
    """One JSON object on one line: its "type", then its fields; of a `Final` those of its segment."""
    content = event.segment if isinstance(event, Final) else event
    fields = dataclasses.asdict(content, dict_factory=without_nan)
    return json.dumps({"type": _EVENTS[type(event)], **fields}, ensure_ascii=False)


_EVENTS = {SpeechStarted: "speech_started", Partial: "partial", Final: "final", Silence: "silence", Overrun: "overrun"}


def bytes_text(count: int) -> str:
    """A size for people: "2.63 GB"."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"

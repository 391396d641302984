"""A transcript as text for files and pipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycrispasr.result import Transcript


def to_txt(transcript: Transcript) -> str:
    """The text alone, in one piece and without a newline at its end."""
    return transcript.text


def to_json(transcript: Transcript, **extra: str) -> str:
    """One JSON object on one line, with `extra` before the transcript's own fields."""
    return json.dumps({**extra, **transcript.to_dict()}, ensure_ascii=False)

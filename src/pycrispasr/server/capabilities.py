"""What a model can be asked for: the only place where the server tells families of models apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pycrispasr.model import Model


@dataclasses.dataclass(frozen=True, slots=True)
class Capabilities:
    """What requests may ask a model for.

    Attributes:
        languages: Its languages, code (ISO 639-1) to English name. None: it does not tell.
        prompt: It has a place for text that comes before the audio.
        tokens: It gives tokens with probabilities, and takes audio in parts.
    """

    languages: Mapping[str, str] | None
    prompt: bool
    tokens: bool


_MOSS_TRANSCRIBE = Capabilities({"en": "english", "zh": "chinese"}, prompt=False, tokens=True)
_CRISPASR = Capabilities(None, prompt=False, tokens=False)


def capabilities(model: Model) -> Capabilities:
    """What a model can be asked for."""
    return _CRISPASR if model.runtime == "crispasr" else _MOSS_TRANSCRIBE

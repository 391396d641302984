"""What a model can be asked for: the only place where the server tells models apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pycrispasr.model import Model
from pycrispasr.options import TextKeywords


@dataclasses.dataclass(frozen=True, slots=True)
class Capabilities:
    """What requests may ask a model for.

    Attributes:
        languages: Its languages, code (ISO 639-1) to English name. None: it does not tell.
        takes_language: It can be told which of them is spoken; else it finds out by itself.
        prompt: It has a place for text that comes before the audio.
        tokens: It gives tokens with probabilities, and takes audio in parts.
        speakers: It tells speakers apart.
    """

    languages: Mapping[str, str] | None
    takes_language: bool
    prompt: bool
    tokens: bool
    speakers: bool = False

    def hints(
        self, language: str | None, languages: Sequence[str], prompt: str | None, keywords: Sequence[str]
    ) -> TextKeywords:
        """What the model is told of what is to be heard. What it has no place for is left out.

        Of several languages it finds the one that is spoken by itself.
        """
        hints: TextKeywords = {}
        named = [language] if language else list(languages)
        if len(named) == 1 and self.takes_language:
            hints["language"] = named[0].lower()
        context = [text for text in (prompt, *keywords) if text]
        if context and self.prompt:
            hints["context"] = context
        return hints


def capabilities(model: Model) -> Capabilities:
    """What a model can be asked for."""
    if model.runtime == "crispasr":
        return Capabilities(None, takes_language=False, prompt=False, tokens=False)
    # MOSS-Transcribe takes no language, and has been trained on these two.
    languages = model.languages or {"en": "English", "zh": "Chinese"}
    return Capabilities(
        languages,
        takes_language=bool(model.languages),
        prompt=model.takes_context,
        tokens=True,
        speakers=model.tells_speakers,
    )

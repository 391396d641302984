"""The parts of a transcript: segments, tokens and words, plain frozen data."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Status = Literal["ok", "truncated", "looped", "failed", "cancelled"]


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A word, and when it was said.

    Attributes:
        text: The word with its punctuation, without whitespace around it. Writing that has no spaces, such as Chinese,
            gives a "word" for each character.
        start: Seconds from the beginning of the audio.
        end: Seconds from the beginning of the audio.
        probability: The smallest probability of its tokens. Of a text that was known (`Model.align`): the smaller one
            of what the aligner gave its two times.
    """

    text: str
    start: float
    end: float
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One step of the decoder.

    Attributes:
        id: Index in the model's vocabulary, or -1 where the runtime does not tell it.
        text: The characters that became complete with this token. A token can end inside a UTF-8 character: that
            character is in the text of the token which completes it, and this text can be empty.
        probability: Softmax of the decoder's logits at this token, 0 to 1; NaN where the runtime does not tell it.
        start: Seconds from the beginning of the audio, or None where no times were asked for.
        end: Seconds from the beginning of the audio, or None.
    """

    id: int
    text: str
    probability: float
    start: float | None = None
    end: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A piece of audio, and its text: of at most 30 seconds, or what one speaker says where the model tells that.

    Attributes:
        start: Seconds from the beginning of the audio.
        end: Seconds from the beginning of the audio.
        text: Its text, without surrounding whitespace.
        tokens: The tokens that the text was decoded from.
        status: "ok"; "truncated" when the limit on new tokens, or the model's context, was reached before the model
            said that the text is complete; "looped" when the same phrase came again and again, and decoding was
            stopped; "failed" when it could not be worked on, see `error`; "cancelled" when decoding was stopped inside
            this segment.
        words: Its words with their times, where these were asked for, or else None.
        error: What went wrong where the status is "failed", or else None.
        language: Code of the language, "en" for example; its English name where there is no code for it; None where the
            model tells none, or heard no speech.
        speaker: Who speaks: a name that was given, or "Speaker 1" and so on in the order in which they are first heard.
            None where the model does not tell.
    """

    start: float
    end: float
    text: str
    tokens: tuple[Token, ...]
    status: Status
    words: tuple[Word, ...] | None = None
    error: str | None = None
    language: str | None = None
    speaker: str | None = None


def without_nan(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes dictionaries for `dataclasses.asdict` in which None stands for NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in fields}

"""What a model writes, taken apart: which bytes of its tokens are text, and what the others say about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """Text of one token.

    Attributes:
        step: Which token it is of, counted from the first one that the model wrote.
        content: Bytes, which may end inside a character.
        turn: Which of the reader's turns it belongs to.
    """

    step: int
    content: bytes
    turn: int = 0


@dataclasses.dataclass
class Turn:
    """What somebody says without a break, as the model tells it.

    Attributes:
        start: Seconds from the beginning of what the model heard. None: it does not say.
        speaker: Number of the speaker, from 1. None: it does not say.
        end: Seconds. None: it does not say, or not yet.
        closed: Nothing will be added to it.
    """

    start: float | None
    speaker: int | None
    end: float | None = None
    closed: bool = False


class Reader(Protocol):
    """Reads the tokens of one segment as they come."""

    language: str | None
    """Code of the language, as far as it is known."""

    @property
    def turns(self) -> Sequence[Turn] | None:
        """Who spoke when, as far as it was read. None: the text is not divided."""

    def read(self, content: bytes) -> list[Piece]:
        """Takes the bytes of the next token; gives what is known to be text now, of this one and those held back."""

    def end(self) -> list[Piece]:
        """The model has ended the text by itself: what is known to be text now."""


class PlainReader:
    """Everything is text.

    Args:
        language: Code of the language, if it is known.
    """

    turns = None

    def __init__(self, language: str | None = None) -> None:
        self.language = language
        self._steps = 0

    def read(self, content: bytes) -> list[Piece]:
        """As for `Reader`."""
        self._steps += 1
        return [Piece(self._steps - 1, content)]

    def end(self) -> list[Piece]:
        """As for `Reader`."""
        return []

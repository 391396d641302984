"""Text that can be shown while somebody speaks: what is committed, and what may still change (LocalAgreement)."""

from __future__ import annotations

import dataclasses
import difflib

from pycrispasr.text import join, pieces, separator


@dataclasses.dataclass(frozen=True, slots=True)
class LiveText:
    """The text of a session so far.

    Attributes:
        committed: Only ever grows. Two texts in succession agreed on it, or it is final; where a final text differs
            from what had been committed, that stays as it is here.
        tentative: What follows it, and may still change. It begins with the space between the two, if there is one.
    """

    committed: str = ""
    tentative: str = ""

    def __str__(self) -> str:
        return self.committed + self.tentative


class Stabilizer:
    """Makes a `LiveText` of hypotheses and final texts (LocalAgreement of two, word by word).

    A word is committed when two hypotheses in succession have it in the same place, and another word after it: the
    last word of a hypothesis may be cut off in the middle.
    """

    def __init__(self) -> None:
        self._before = ""  # text of the segments that are complete
        self._committed: list[str] = []  # pieces of this segment that are committed
        self._last: list[str] = []  # pieces of the last hypothesis
        self._text = LiveText()

    @property
    def text(self) -> LiveText:
        """All of it."""
        return self._text

    def hear(self, hypothesis: str) -> tuple[str, str]:
        """The next hypothesis for this segment.

        Returns:
            What is committed of this segment, and what is tentative.
        """
        now = pieces(hypothesis)
        before, rest = self._rest(self._last), self._rest(now)
        agreed = 0
        for one, other in zip(before[:-1], rest[:-1], strict=False):
            if one != other:
                break
            agreed += 1
        self._committed += rest[:agreed]
        self._last = now
        tentative = "".join(rest[agreed:])
        self._show(tentative)
        return "".join(self._committed), tentative

    def end(self, final: str) -> None:
        """The final text of this segment; the next one begins."""
        self._committed += self._rest(pieces(final))
        self._show("")
        self._before, self._committed, self._last = self._text.committed, [], []

    def _show(self, tentative: str) -> None:
        committed = join(self._before, "".join(self._committed))
        self._text = LiveText(committed, separator(committed, tentative) + tentative)

    def _rest(self, text: list[str]) -> list[str]:
        """What follows the committed pieces in a text, also where it has changed its mind about them."""
        committed = len(self._committed)
        if text[:committed] == self._committed:
            return text[committed:]
        blocks = difflib.SequenceMatcher(None, self._committed, text, autojunk=False).get_matching_blocks()
        same = [block for block in blocks if block.size]
        if not same:
            return text[committed:]
        last = same[-1]
        return text[last.b + committed - last.a :]  # what was committed after it has as many other pieces in its place

"""Text that can be shown while somebody speaks: what stands, and what may still change."""

from __future__ import annotations

import dataclasses
import difflib
import re
import unicodedata


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


class Caption:
    """Makes a `LiveText` of hypotheses and final texts.

    A word is committed when two hypotheses in succession have it in the same place, and another word after it: the
    last word of a hypothesis may be cut off in the middle.
    """

    def __init__(self) -> None:
        self._before = ""  # text of the stretches that are complete
        self._stands: list[str] = []  # pieces of this stretch that are committed
        self._last: list[str] = []  # pieces of the last hypothesis
        self._text = LiveText()

    @property
    def text(self) -> LiveText:
        """All of it."""
        return self._text

    def hear(self, hypothesis: str) -> tuple[str, str]:
        """The next hypothesis for this stretch.

        Returns:
            What is committed of this stretch, and what is tentative.
        """
        now = pieces(hypothesis)
        before, rest = self._rest(self._last), self._rest(now)
        agreed = 0
        for one, other in zip(before[:-1], rest[:-1], strict=False):
            if one != other:
                break
            agreed += 1
        self._stands += rest[:agreed]
        self._last = now
        tentative = "".join(rest[agreed:])
        self._show(tentative)
        return "".join(self._stands), tentative

    def end(self, final: str) -> None:
        """The final text of this stretch; another one begins."""
        self._stands += self._rest(pieces(final))
        self._show("")
        self._before, self._stands, self._last = self._text.committed, [], []

    def _show(self, tentative: str) -> None:
        stands = "".join(self._stands)
        committed = self._before + separator(self._before, stands) + stands
        self._text = LiveText(committed, separator(committed, tentative) + tentative)

    def _rest(self, text: list[str]) -> list[str]:
        """What follows the committed pieces in a text, also where it has changed its mind about them."""
        stands = len(self._stands)
        if text[:stands] == self._stands:
            return text[stands:]
        blocks = difflib.SequenceMatcher(None, self._stands, text, autojunk=False).get_matching_blocks()
        same = [block for block in blocks if block.size]
        if not same:
            return text[stands:]
        last = same[-1]
        return text[last.b + stands - last.a :]  # what was committed after it has as many other pieces in its place


def pieces(text: str) -> list[str]:
    """Words with the space before them; each character alone where writing has no spaces."""
    found = []
    for word in re.findall(r"\s*\S+", text.strip()):
        piece = ""
        for character in word:
            if piece.strip() and (_wide(character) or _wide(piece[-1])):
                found.append(piece)
                piece = ""
            piece += character
        found.append(piece)
    return found


def separator(before: str, after: str) -> str:
    """A space where two texts that were cut apart need one: not beside Chinese, whose writing has none."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if _wide(before[-1]) or _wide(after[0]) else " "


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"

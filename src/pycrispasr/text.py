"""Words and the spaces between them, in writing with spaces and without; text and sizes for people."""

from __future__ import annotations

import re
import unicodedata


def pieces(text: str) -> list[str]:
    """Words with the space before them; each character alone where writing has no spaces."""
    found = []
    for word in re.findall(r"\s*\S+", text.strip()):
        piece = ""
        for character in word:
            if piece.strip() and (is_wide(character) or is_wide(piece[-1])):
                found.append(piece)
                piece = ""
            piece += character
        found.append(piece)
    return found


def separator(before: str, after: str) -> str:
    """A space where two texts that were cut apart need one: not beside Chinese, whose writing has none."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if is_wide(before[-1]) or is_wide(after[0]) else " "


def join(before: str, after: str) -> str:
    """Two texts that were cut apart."""
    return before + separator(before, after) + after


def is_wide(character: str) -> bool:
    """True for a character of two columns, such as a Chinese one."""
    return unicodedata.east_asian_width(character) in "WF"


def printable(text: str) -> str:
    """Text of a stranger as it may stand in a message: what would steer a terminal or end the line is escaped.

    As `repr` does, without its quotes: control characters, line separators, marks of direction, lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def bytes_text(count: int) -> str:
    """A size for people: "2.63 GB"."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"

"""Words and the spaces between them, in writing with spaces and without; text and sizes for people."""

from __future__ import annotations

import json
import re
import unicodedata

# What steers a terminal, ends a line, or changes the order in which others are shown; and lone surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = "\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029"  # of these what separates words or lines


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

    As in a string of Python's: control characters, line separators, overrides of direction, lone surrogates.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str) -> str:
    """What was said as files of text and terminals may have it: without what `printable` escapes.

    Newlines and tabs stay; what else separates lines becomes a space.
    """
    if text.isprintable():
        return text
    return _CONTROLS.sub(_plain_character, text.replace("\r\n", "\n"))


def _plain_character(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else " " * (found[0] in _BREAKS)


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON in which letters stand as they are, and all that `printable` escapes is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)  # has newlines between values, never in a string
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def bytes_text(count: int) -> str:
    """A size for people: "2.63 GB"."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"

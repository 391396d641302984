"""Writes csrc/unicode_ranges.h: the code points that the pre-tokenizer's pattern calls letters, numbers and spaces.

    python tools/make_unicode_ranges.py > csrc/unicode_ranges.h

Source: the Unicode data of the running Python (`unicodedata.unidata_version`). Letters are the general categories L*,
numbers N*, spaces the property White_Space.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable

WHITE_SPACE = {
    *range(0x9, 0xE),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
}


def ranges(belongs: Callable[[int], bool]) -> list[tuple[int, int]]:
    """The maximal runs of code points that belong, as inclusive pairs."""
    found: list[tuple[int, int]] = []
    for point in range(sys.maxunicode + 1):
        if belongs(point):
            if found and found[-1][1] == point - 1:
                found[-1] = (found[-1][0], point)
            else:
                found.append((point, point))
    return found


def table(name: str, pairs: list[tuple[int, int]]) -> str:
    """One C++ array of inclusive ranges, wrapped at 120 columns."""
    lines, line = [], "   "
    for low, high in pairs:
        item = f" {{0x{low:X}, 0x{high:X}}},"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    return f"constexpr Range {name}[] = {{\n" + "\n".join(lines) + "\n};\n"


def main() -> None:
    """Prints the header."""
    category = unicodedata.category
    print("// Made by tools/make_unicode_ranges.py from Unicode " + unicodedata.unidata_version + ".")
    print("// clang-format off\n#pragma once\n\n#include <cstdint>\n\nnamespace pcr {\n")
    print("struct Range {\n    uint32_t low, high;  // both inclusive\n};\n")
    print(table("letter_ranges", ranges(lambda p: category(chr(p))[0] == "L")))
    print(table("number_ranges", ranges(lambda p: category(chr(p))[0] == "N")))
    print(table("space_ranges", ranges(lambda p: p in WHITE_SPACE)))
    print("}  // namespace pcr")


if __name__ == "__main__":
    main()

"""Turns the C header into the pure-Python module that cffi reads at run time: build_cdefs.py HEADER OUT.

CMake runs it at every build, so the declarations Python uses are those the library was compiled from.
"""

import argparse
import re
from pathlib import Path

from cffi import FFI

C_PLUS_PLUS_ONLY = re.compile(r"^#ifdef __cplusplus$.*?^#endif$", re.DOTALL | re.MULTILINE)
PREPROCESSOR_LINE = re.compile(r"^[ \t]*#(?:.*\\\n)*.*$", re.MULTILINE)


def declarations(header: str) -> str:
    """The header's plain C declarations: what cffi's parser understands."""
    text = C_PLUS_PLUS_ONLY.sub("", header)
    text = PREPROCESSOR_LINE.sub("", text)
    return re.sub(r"\bPCR_API\b", "", text)


def main() -> None:
    """Reads the header and writes the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("header", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    ffi = FFI()
    ffi.set_source("pycrispasr._cdefs", None)
    ffi.cdef(declarations(args.header.read_text(encoding="utf-8")))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_python_code(str(args.out))
    args.out.touch()  # cffi leaves an unchanged file alone, and the build would ask again every time


if __name__ == "__main__":
    main()

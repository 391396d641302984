"""Runs one of `targets.py` with Atheris, which takes libFuzzer's options; where there is no Atheris, only the seeds.

python fuzz/fuzz.py TARGET [-runs=N] [-max_total_time=SECONDS] [CORPUS SEEDS...]
"""

from __future__ import annotations

import gc
import operator
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import targets

try:
    import atheris
except ImportError:
    atheris = None


def main() -> None:
    """Runs the command line."""
    target, options = targets.TARGETS[sys.argv[1]], sys.argv[2:]
    if atheris is None:
        files = [path for option in options if option[0] != "-" for path in sorted(Path(option).iterdir())]
        for path in files:
            target(path.read_bytes())
        print(f"Done {len(files)} runs, of the seeds only: there is no Atheris")
        return
    # Atheris's own hook for imports does not see a package that is installed to be edited.
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType) and (function.__module__ or "").startswith("pycrispasr"):
            atheris.instrument_func(function)
    begun = False

    def run(data: bytes) -> None:
        nonlocal begun
        if not begun:  # Fuzz() has put the function there that is used
            atheris._trace_cmp = _without_arrays(atheris._trace_cmp)
            begun = True
        target(data)

    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


def _without_arrays(trace: Any) -> Any:
    """Atheris's own function for comparisons, but for those of arrays, whose results it never frees (3.0.0)."""
    operators = operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge

    def compare(left: Any, right: Any, kind: int, *rest: Any) -> Any:
        if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
            return operators[kind](left, right)
        return trace(left, right, kind, *rest)

    return compare


if __name__ == "__main__":
    main()

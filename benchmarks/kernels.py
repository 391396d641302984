"""Our kernels one by one, against ggml's and against what the machine can do at most.

    python benchmarks/kernels.py [--quick] [--threads N] [--json FILE]

Products of audio rows are told in operations a second beside the processor's peak (benchmarks/peak.cpp, compiled here
when there is a C++ compiler), products of single tokens in bytes of the matrix a second beside the peak of reading
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from pycrispasr.lab.bench import machine
from pycrispasr.runtimes import native

# Rows and columns of the published model's matrices, and types that their files have.
SHAPES = ((1280, 1280, "f16"), (5120, 1280, "f16"), (1280, 5120, "f16"), (2048, 2048, "q4_k"), (6144, 2048, "q4_k"))
TOKEN_SHAPES = ((6144, 2048, "q4_k"), (6144, 2048, "q8_0"), (6144, 2048, "f16"))


def peak(threads: int) -> dict[str, float]:
    """What the machine can do at most, by name, and what AVX2 alone can; nothing without a compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        return {}
    found = {}
    for prefix, march in {"": "native", "avx2 ": "haswell" if "avx2" in native.kernels() else ""}.items():
        if not march:
            continue
        with tempfile.TemporaryDirectory() as folder:
            program = os.path.join(folder, "peak")
            source = Path(__file__).with_name("peak.cpp")
            command = [compiler, "-O2", "-std=c++17", f"-march={march}", "-pthread", str(source), "-o", program]
            subprocess.run(command, check=True)
            shown = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True).stdout
        for name, value in (line.split() for line in shown.splitlines()):
            found.setdefault(name if name == "read" else prefix + name, float(value))
    return found


def measure(threads: int, n_rows: int, quick: bool) -> dict[str, object]:
    """Every kernel on every shape."""
    rng = np.random.default_rng(0)
    repeats = 1 if quick else 15
    cases = [
        (name, p) for name in native.kernels() for p in ("bf16", "f32") if p == "f32" or "bf16" in name or name == "amx"
    ]
    results = []
    for n_out, n_in, kind in SHAPES[:1] if quick else SHAPES:
        values = (rng.standard_normal((n_out, n_in)) * 0.05).astype(np.float32)
        matrix = native.convert_rows(values, "f32", kind, n_in)
        rows = rng.standard_normal((n_rows, n_in)).astype(np.float32)
        for name, precision in [*cases, ("ggml", "auto")]:
            _, seconds = native.product(
                rows, matrix, kind, n_out, kernels=name, precision=precision, threads=threads, repeats=repeats
            )
            rate = 2 * n_rows * n_out * n_in / seconds
            results.append(
                {"kernels": name, "precision": precision, "shape": [n_out, n_in], "type": kind, "flops": rate}
            )
    tokens = []
    for n_out, n_in, kind in TOKEN_SHAPES[:1] if quick else TOKEN_SHAPES:
        many = n_out if quick else 40 * n_out  # more than the caches hold
        values = (rng.standard_normal((n_out, n_in)) * 0.05).astype(np.float32)
        matrix = np.tile(native.convert_rows(values, "f32", kind, n_in), (many // n_out, 1))
        for name in (native.kernels()[-1], "ggml"):
            for n_x in (1, 4):
                rows = rng.standard_normal((n_x, n_in)).astype(np.float32)
                _, seconds = native.product(
                    rows, matrix, kind, many, kernels=name, each=True, threads=threads, repeats=repeats
                )
                tokens.append({"kernels": name, "type": kind, "tokens": n_x, "bytes": matrix.nbytes / seconds})
    return {"products": results, "tokens": tokens}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small shape, once")
    parser.add_argument("--threads", type=int, default=native.usable_cores())
    parser.add_argument("--rows", type=int, default=390, help="audio rows; 390 are 30 s")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report: dict[str, object] = {"machine": machine(args.threads), "peak": peak(args.threads), "rows": args.rows}
    report |= (measured := measure(args.threads, 16 if args.quick else args.rows, args.quick))
    print(report["machine"])
    for name, value in report["peak"].items():  # type: ignore[attr-defined]
        print(f"peak {name:<9} {value / 1e9:9.1f} G{'B' if name == 'read' else 'FLOP'}/s")
    for case in measured["products"]:  # type: ignore[attr-defined]
        name = f"{case['kernels']} {case['precision']}"
        print(f"{name:<20} {case['shape']!s:<14} {case['type']:<6} {case['flops'] / 1e9:9.1f} GFLOP/s")
    for case in measured["tokens"]:  # type: ignore[attr-defined]
        print(f"{case['kernels']:<20} {case['tokens']} tokens       {case['type']:<6} {case['bytes'] / 1e9:9.1f} GB/s")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

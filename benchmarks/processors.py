"""Every kernel set that this processor runs, beside ggml's products of the same instructions and CrispASR's library.

    python benchmarks/processors.py MODEL.gguf --wheel pycrispasr-….whl [--sets avx2,avx512_bf16] [--json FILE]

The wheel is one of the portable build (tools/build_wheel.sh): it holds ggml's CPU code once for each instruction set.
For each kernel set a process of its own loads the library of the same instructions and runs three sides in turns: our
kernels, ggml's products (kernels="ggml") and crispasr, whose one build uses AVX2. Then each kind of product by itself,
as "auto" computes it with that kernel set, against ggml's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

# ggml's library of the same instructions.
GGML_BUILDS = {
    "generic": "x64",
    "avx2": "haswell",
    "avx2_vnni": "alderlake",
    "avx512": "skylakex",
    "avx512_bf16": "zen4",
    "amx": "sapphirerapids",
}
PRODUCTS = (
    ("f16", 1280, 1280), ("f16", 5120, 1280), ("q4_k", 6144, 2048), ("q5_k", 6144, 2048), ("q6_k", 2048, 6144),
    ("q8_0", 2048, 2048), ("q4_0", 2048, 2048), ("bf16", 2048, 2048), ("f32", 1280, 1280),
)  # fmt: skip
ROWS = (1, 4, 8, 16, 390)


def stages(kernels: str, model: Path, threads: int, runs: int, tokens: int) -> dict[str, Any]:
    """Medians of each stage, of our kernels, ggml's products and crispasr."""
    from pycrispasr.lab import bench

    samples = bench.noise()
    sides = {
        "ours": bench.Ours(model, samples, threads, kernels=kernels),
        "ggml": bench.Ours(model, samples, threads, kernels="ggml"),
        "crispasr": bench.Crispasr(model, samples, threads, (tokens + 8) * runs),
    }
    times = bench.with_sums(bench.measure(list(sides.values()), runs), tokens)
    shown = ("log-mel", "encoder + adapter", "prefill", "token", "clip")
    return {side: {stage: statistics.median(times[stage][i]) for stage in shown} for i, side in enumerate(sides)}


def products(kernels: str, threads: int) -> list[dict[str, Any]]:
    """Each kind of product with these kernels and with ggml's, in turns: seconds of the fastest run."""
    import numpy as np

    from pycrispasr.runtimes import native

    rng = np.random.default_rng(0)
    found = []
    for kind, n_out, n_in in PRODUCTS:
        values = (rng.standard_normal((n_out, n_in)) * 0.05).astype(np.float32)
        once = native.convert_rows(values, "f32", kind, n_in)
        for n_rows in ROWS:
            many = 16 if n_rows <= 4 else 1  # more than the caches hold
            matrix = np.tile(once, (many, 1))
            rows = rng.standard_normal((n_rows, n_in)).astype(np.float32)
            seconds: dict[str, list[float]] = {kernels: [], "ggml": []}
            for _ in range(5):
                for name, kept in seconds.items():
                    _, took = native.product(
                        rows, matrix, kind, many * n_out, kernels=name, each=n_rows <= 16, threads=threads, repeats=3
                    )
                    kept.append(took)
            best = {name: min(kept) for name, kept in seconds.items()}
            found.append({
                "type": kind, "shape": [n_out, n_in], "rows": n_rows, "ours": best[kernels], "ggml": best["ggml"],
                "flops": 2 * n_rows * many * n_out * n_in / best[kernels], "bytes": matrix.nbytes / best[kernels],
            })  # fmt: skip
    return found


def package_with(wheel: Path, build: str, folder: Path) -> None:
    """Unpacks the wheel with one build of ggml's CPU code."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = Path(name).name
            if "-cpu-" not in file or file.split("-cpu-")[1].split(".")[0] == build:
                archive.extract(name, folder)


def in_a_process_of_its_own(kernels: str, args: argparse.Namespace) -> dict[str, Any]:
    """What `main` prints as a worker."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if args.wheel:
            package_with(args.wheel, GGML_BUILDS[kernels], Path(folder))
            environment["PYCRISPASR_UNPACKED"] = folder
        command = [sys.executable, __file__, str(args.model), "--worker", kernels, "--threads", str(args.threads)]
        command += ["--runs", str(args.runs), "--tokens", str(args.tokens)]
        shown = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(shown)
    return result


def table(results: dict[str, Any]) -> str:
    """As text."""
    lines = []
    for kernels, result in results.items():
        sides = result["stages"]
        lines.append(f"{kernels}  (ggml: {result['ggml']})")
        if sides:
            lines.append(f"  {'':<20}{'ours':>10}{'ggml':>10}{'crispasr':>10}{'x ggml':>9}{'x crispasr':>12}")
        for stage, seconds in sides.get("ours", {}).items():
            ggml, other = sides["ggml"][stage], sides["crispasr"][stage]
            ratios = f"{ggml / seconds:>9.2f}{other / seconds:>12.2f}"
            lines.append(f"  {stage:<20}{seconds:>10.4f}{ggml:>10.4f}{other:>10.4f}{ratios}")
        lines.append(f"  {'product':<20}{'rows':>6}{'GFLOP/s':>10}{'GB/s':>8}{'x ggml':>9}")
        for p in result["products"]:
            name = f"{p['type']} {p['shape'][0]} x {p['shape'][1]}"
            rates = f"{p['flops'] / 1e9:>10.0f}{p['bytes'] / 1e9:>8.1f}"
            lines.append(f"  {name:<20}{p['rows']:>6}{rates}{p['ggml'] / p['ours']:>9.2f}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wheel", type=Path, help="portable wheel; without it the installed package's ggml is used")
    parser.add_argument("--sets", help="kernel sets, with commas between them; all that run here otherwise")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=3, help="0: only the products")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if folder := os.environ.get("PYCRISPASR_UNPACKED"):  # comes before an editable install, too
        sys.path.insert(0, folder)
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    from pycrispasr.lab import bench
    from pycrispasr.runtimes import native

    args.threads = args.threads or native.usable_cores()
    if args.worker:
        result = {
            "stages": stages(args.worker, args.model, args.threads, args.runs, args.tokens) if args.runs else {},
            "products": products(args.worker, args.threads),
            "ggml": GGML_BUILDS[args.worker] if folder else "this build's",
        }
        print(json.dumps(result))
        return
    print(bench.machine(args.threads), flush=True)
    results = {}
    for kernels in args.sets.split(",") if args.sets else native.kernels():
        results[kernels] = in_a_process_of_its_own(kernels, args)
        print(table({kernels: results[kernels]}), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": bench.machine(args.threads), "sets": results}, indent=2), "utf-8")


if __name__ == "__main__":
    main()

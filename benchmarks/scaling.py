"""How the cost of a transcription grows: with the audio's length, with threads, with the batch.

    python benchmarks/scaling.py MODEL [--minutes 1 2 5] [--threads 1 2] [--batches 1 2 4 8] [--out FOLDER]

Writes scaling.json, and scaling.png with the extra [plot]. Each measurement runs in a process of its own, so that its
peak memory is its own; measurements that are compared take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from pycrispasr.lab.bench import machine

SCRIPT = """
import json, resource, sys, time
import numpy as np
import pycrispasr
model_path, recording = sys.argv[1:3]
seconds, threads, batch, tokens = map(int, sys.argv[3:])
if recording:
    sound = np.resize(pycrispasr.audio.load(recording), 16000 * seconds)
else:  # noise whose loudness changes like speech; and the same for every length
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(16000 * seconds, np.float32)
    sound.reshape(-1, 1600)[:] *= rng.uniform(0.005, 0.1, (10 * seconds, 1)).astype(np.float32)
with pycrispasr.Model(model_path, threads=threads) as model:
    model.transcribe(sound[:16000], sample_rate=16000, max_new_tokens=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = model.transcribe(sound, sample_rate=16000, max_new_tokens=tokens, batch=batch)
    took = time.perf_counter() - start
print(json.dumps({"seconds": took, "tokens": result.timings.tokens, "segments": len(result.segments),
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "sound": sound.nbytes}))
"""


def run(model: str, recording: str, seconds: int, threads: int, batch: int, tokens: int) -> dict[str, float]:
    """One transcription in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, model, recording, *map(str, (seconds, threads, batch, tokens))]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(one[name] for one in runs) for name in runs[0]}


def main() -> None:
    """Measures, and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recording", default="", help="is heard again and again; noise without it")
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 2, 5, 10, 30, 60])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--batch-seconds", type=int, default=240, help="audio for the measurements of batches")
    parser.add_argument("--tokens", type=int, default=100, help="limit for each stretch")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    most = max(args.threads, default=1)
    report: dict[str, object] = {"machine": machine(most), "model": Path(args.model).name, "tokens": args.tokens}

    def series(values: list, call) -> list[dict[str, float]]:  # type: ignore[no-untyped-def, type-arg]
        kept: list[list[dict[str, float]]] = [[] for _ in values]
        for _ in range(args.runs):
            for value, results in zip(values, kept, strict=True):
                results.append(call(value))
        return [{"of": value} | median(results) for value, results in zip(values, kept, strict=True)]

    report["length"] = series(
        args.minutes, lambda m: run(args.model, args.recording, round(60 * m), most, 4, args.tokens)
    )
    report["threads"] = series(args.threads, lambda n: run(args.model, args.recording, 30, n, 1, args.tokens))
    report["batch"] = series(
        args.batches, lambda n: run(args.model, args.recording, args.batch_seconds, most, n, args.tokens)
    )
    for name, unit in (("length", "minutes"), ("threads", "threads"), ("batch", "side by side")):
        for one in report[name]:  # type: ignore[attr-defined]
            figures = f"{one['seconds']:8.2f} s  {one['peak'] / 1e6:7.0f} MB  {one['tokens']:.0f} tokens"
            print(f"{one['of']:>6g} {unit:<13} {figures}")
    (args.out / "scaling.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    draw(report, args.out / "scaling.png")


def draw(report: dict, path: Path) -> None:  # type: ignore[type-arg]
    """The three curves, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    length = report["length"]
    axes[0].plot([one["of"] for one in length], [one["seconds"] for one in length], "o-", label="seconds")
    axes[0].set(xlabel="minutes of audio", ylabel="seconds", ylim=(0, None), title="length")
    memory = axes[0].twinx()
    memory.plot(
        [one["of"] for one in length], [(one["peak"] - one["sound"]) / 1e6 for one in length], "s--", color="0.6"
    )
    memory.set(ylabel="MB at most, samples not counted (grey)", ylim=(0, None))
    for place, name, label in ((1, "threads", "threads"), (2, "batch", "stretches side by side")):
        one = report[name]
        axes[place].plot([x["of"] for x in one], [one[0]["seconds"] / x["seconds"] for x in one], "o-")
        axes[place].set(
            xlabel=label, ylabel=f"times faster than with {one[0]['of'] if one else 1}", ylim=(0, None), title=name
        )
    figure.suptitle(f"{report['model']}, {report['machine']['processor']}", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

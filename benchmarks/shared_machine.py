"""What a clip takes beside programs that are never idle: threads by default, one thread, and a process on one CPU.

    python benchmarks/shared_machine.py [MODEL] [--seconds 6] [--rounds 10] [--clips 3] [--json FILE]

A process for each kind keeps the model open. In every round each of them transcribes on the machine as it is, and then
beside loops, one for each CPU that it may use. A loop ends by itself when this process has ended.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pycrispasr.runtimes import native

SAMPLE = Path(__file__).parent.parent / "samples" / "long.wav"

# Transcribes so many times for each line of standard input: the seconds that passed and those of processors.
WORKER = """
import sys, time
import numpy as np
import pycrispasr
model_path, recording, seconds, threads = sys.argv[1:]
sound = np.resize(pycrispasr.audio.load(recording), round(16000 * float(seconds)))
with pycrispasr.Model(model_path, threads=int(threads) or None) as model:
    for line in sys.stdin:
        for _ in range(int(line)):
            start, before = time.perf_counter(), time.process_time()
            model.transcribe(sound, sample_rate=16000)
            print(time.perf_counter() - start, time.process_time() - before, flush=True)
"""
LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclasses.dataclass
class Kind:
    """How a process transcribes, and what it took: seconds, and seconds of processors, of each clip."""

    name: str
    threads: int
    cpus: set[int]
    alone: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    beside: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def start(code: str, cpus: set[int], *arguments: object) -> subprocess.Popen[str]:
    """A Python process that may run on these CPUs only."""
    return subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cpus)), sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def busy(cpus: set[int]) -> Iterator[None]:
    """As many loops as CPUs, on any of them."""
    loops = [start(LOOP, cpus) for _ in cpus]
    try:
        time.sleep(0.3)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def clips(worker: subprocess.Popen[str], count: int) -> list[tuple[float, float]]:
    """Seconds of so many clips."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{count}\n")
    worker.stdin.flush()
    lines = [worker.stdout.readline().split() for _ in range(count)]
    return [(float(seconds), float(processors)) for seconds, processors in lines]


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--recording", type=Path, default=SAMPLE)
    parser.add_argument("--seconds", type=float, default=6, help="of audio")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clips", type=int, default=3, help="of each kind in a round, alone and beside the loops")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    every, one = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}
    kinds = [
        Kind(f"{len(every)} CPUs, {native.usable_cores()} threads (the default)", 0, every),
        Kind(f"{len(every)} CPUs, 1 thread", 1, every),
        Kind("1 CPU, threads by default", 0, one),
    ]
    workers = [start(WORKER, kind.cpus, args.model, args.recording, args.seconds, kind.threads) for kind in kinds]
    for worker in workers:
        clips(worker, 5)
    for _ in range(args.rounds):
        for kind, worker in zip(kinds, workers, strict=True):
            kind.alone += clips(worker, args.clips)
            with busy(kind.cpus):
                kind.beside += clips(worker, args.clips)
    for worker in workers:
        worker.communicate()
    print(
        f"{args.seconds:g} s of audio, {args.rounds * args.clips} clips: medians of seconds, and of processors' seconds"
    )
    print(f"{'':<42}{'alone':>8}{'used':>8}{'beside':>8}{'used':>8}{'ratio':>7}")
    for kind in kinds:
        alone, used = (statistics.median(values) for values in zip(*kind.alone, strict=True))
        beside, used_beside = (statistics.median(values) for values in zip(*kind.beside, strict=True))
        print(f"{kind.name:<42}{alone:8.4f}{used:8.4f}{beside:8.4f}{used_beside:8.4f}{beside / alone:7.2f}")
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(kind) | {"cpus": sorted(kind.cpus)} for kind in kinds]))


if __name__ == "__main__":
    main()

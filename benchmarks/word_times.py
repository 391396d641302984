"""How far the times of words are from the truth, on recordings of voices that training never heard.

    python benchmarks/word_times.py [MODEL] [--recordings 100]

The recordings are composed of the clips in tests/data/words. Only words that the model understood can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import pycrispasr

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Prints a table."""
    sys.path.insert(0, str(ROOT))
    from tests.spoken import Clip, clips, compose, deviations

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--recordings", type=int, default=100, help="that are composed for each row")
    arguments = parser.parse_args()
    rows: list[tuple[str, Iterable[Clip]]] = [("words with pauses, 2 to 20 s", composed(arguments.recordings, compose))]
    rows += [
        (f"the same with noise at {noise} dB", composed(arguments.recordings, compose, noise)) for noise in (30, 20, 10)
    ]
    rows += [
        ("words with pauses, 90 s", (compose(Random(f"long/{i}"), 90) for i in range(arguments.recordings // 20))),
        ("fluent phrases", clips("phrases")),
    ]
    with pycrispasr.Model(arguments.model) as model:
        print("| recordings | words | compared | start: median | 95 % | end: median | 95 % | times |")
        print("|---|--:|--:|--:|--:|--:|--:|---|")
        for title, recordings in rows:
            found, said = [], 0
            for clip in recordings:
                transcript = model.transcribe(clip.samples, sample_rate=16000, word_timestamps=True)
                words = [word for segment in transcript.segments for word in segment.words or ()]
                found.append(deviations(words, clip.words))
                said += len(clip.words)
            errors = 1000 * np.abs(np.concatenate(found))
            figures = " | ".join(
                f"{np.median(errors[:, k]):.0f} ms | {np.percentile(errors[:, k], 95):.0f} ms" for k in (0, 1)
            )
            print(f"| {title} | {said} | {len(errors)} | {figures} | {transcript.word_times} |", flush=True)


def composed(count: int, compose: Callable[..., Any], noise: float | None = None) -> Iterator[Any]:
    """So many recordings of different lengths."""
    for i in range(count):
        random = Random(i)
        yield compose(random, random.uniform(2, 20), noise)


if __name__ == "__main__":
    main()

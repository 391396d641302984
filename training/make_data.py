"""Make the training bank and the held-out clips: `python training/make_data.py`.

The bank is a folder of shards, each a `.npy` of joined 16-bit samples beside a `.jsonl` of the clips in it. Clip number
n is drawn from a random stream of its own, so a bank can be continued: shards that exist are not made again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np

import heldout
import voices
from words import VOCABULARY, Words, text

SHARD = 50


def save_shard(stem: Path, clips: Iterable[voices.Clip]) -> None:
    """Write one shard; its `.jsonl` appears last and whole, so a reader never sees half a shard."""
    lines, samples, start = [], [], 0
    for clip in clips:
        stop = start + len(clip.samples)
        record = {"start": start, "stop": stop, "words": clip.words, "spans": clip.spans, "voice": clip.voice}
        lines.append(json.dumps(record) + "\n")
        samples.append(clip.samples)
        start = stop
    np.save(stem.with_suffix(".npy"), np.concatenate(samples))
    part = stem.with_suffix(".part")
    part.write_text("".join(lines))
    os.replace(part, stem.with_suffix(".jsonl"))


def bank_text(index: int) -> tuple[Words, list[str]]:
    """Words and punctuation of Kokoro's clip `index`: single words, lists with pauses, and fluent phrases.

    Single words and lists walk through shuffled decks of the vocabulary, so all words are spoken equally often.
    """
    random = Random(index)
    kind, turn = index % 20, index // 20
    if kind < 11:
        width, slot = (1, kind) if kind < 6 else (4, kind - 6)
        place = turn * (6 if width == 1 else 20) + slot * width
        deck = Random(f"{width}/{place // 92}").sample(VOCABULARY, 92)
        words = deck[place % 92 : place % 92 + width]
        return words, [", "] * (len(words) - 1) + [random.choice(".....?!")]
    words = text(random, random.choice((2, 3, 3, 4, 4, 5, 6, 7, 8, 10)), loose=0.3)
    comma = random.choice((0.0, 0.0, 0.1, 0.3))
    marks = [", " if random.random() < comma else " " for _ in words[:-1]]
    return words, [*marks, random.choice(".....?")]


def make_kokoro(work: Path, worker: int, workers: int, count: int) -> None:
    """This worker's share of the shards of Kokoro's clips."""
    kokoro = voices.Kokoro(work / "downloads")
    for shard in range(worker, count // SHARD, workers):
        stem = work / "bank" / f"kokoro-{shard:04d}"
        if stem.with_suffix(".jsonl").exists():
            continue
        clips = []
        for index in range(shard * SHARD, (shard + 1) * SHARD):
            random = Random(f"voice/{index}")
            words, marks = bank_text(index)
            clips.append(kokoro.say(words, kokoro.training_voice(random), random.uniform(0.8, 1.3), marks))
        save_shard(stem, clips)


def make_small_engines(work: Path) -> None:
    """One shard of single words by espeak-ng, flite and festival."""
    stem = work / "bank" / "small-engines"
    if not stem.with_suffix(".jsonl").exists():
        save_shard(stem, voices.small_engines(VOCABULARY, Random(5)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="folder for everything made")
    parser.add_argument("--clips", type=int, default=1800, help="clips spoken by Kokoro")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that run Kokoro")
    arguments = parser.parse_args()
    work: Path = arguments.work
    (work / "bank").mkdir(parents=True, exist_ok=True)
    voices.download(work / "downloads")
    jobs = [multiprocessing.Process(target=make_small_engines, args=(work,))]
    for worker in range(arguments.workers):
        share = (work, worker, arguments.workers, arguments.clips)
        jobs.append(multiprocessing.Process(target=make_kokoro, args=share))
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise SystemExit("a worker failed; see its error above")
    heldout.make(work, voices.Kokoro(work / "downloads"))


if __name__ == "__main__":
    main()

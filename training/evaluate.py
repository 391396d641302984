"""Word errors of a checkpoint on the held-out clips: `python training/evaluate.py`.

Greedy decoding with transformers' own modules in float32, clip by clip; text and reference are compared as words.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import soundfile
import torch

from heldout import ROWS
from reference import Reference

TABLE = {title: (row,) for row, title in ROWS.items()} | {
    "all of 2-8 words without noise": ("phrases", "joined"),
    "all of 9-24 words": ("long phrases", "long joined", "slow"),
}


def word_errors(said: list[str], heard: list[str]) -> int:
    """Substitutions, insertions and deletions on the cheapest way from one list to the other."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--checkpoint", type=Path, help="default: WORK/checkpoint")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th clip: a quick look")
    parser.add_argument("--q8-0", action="store_true", help="round every matrix as a Q8_0 file does")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.work / "heldout"
    model = Reference(arguments.checkpoint or arguments.work / "checkpoint", arguments.q8_0)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    with open(arguments.work / "evaluation.jsonl", "w") as details:
        for line in (folder / "manifest.jsonl").read_text().splitlines()[:: arguments.every]:
            clip = json.loads(line)
            samples, _ = soundfile.read(folder / clip["file"], dtype="float32")
            heard = model.transcribe(samples)
            errors = word_errors(clip["text"].split(), heard.split())
            for i, value in enumerate((1, len(clip["text"].split()), errors, errors > 0)):
                counts[clip["row"]][i] += value
            print(json.dumps(clip | {"heard": heard, "errors": errors}), file=details)
    print("| clips | number | words | word errors | word error rate | clips with an error |\n|---|--:|--:|--:|--:|--:|")
    for title, rows in TABLE.items():
        clips, words, errors, wrong = (sum(counts[row][i] for row in rows) for i in range(4))
        rate = f"{100 * errors / words:.2f} %" if words else "–"
        print(f"| {title} | {clips} | {words} | {errors} | {rate} | {wrong} |")


if __name__ == "__main__":
    main()

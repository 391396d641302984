"""Word error rates of one model in several types, on recordings whose text is known.

    python benchmarks/word_errors_by_type.py MODEL.gguf FOLDER [--types f32,f16,q4_k] [--imatrix FILE] [--every 10]

MODEL.gguf is a file in F32, or as the checkpoint has it. FOLDER has a `manifest.jsonl`, whose lines name a `file` of
the folder and its `text`, as `training/heldout.py` writes it. Text and reference are compared as words, in lower case.
Prints a table in Markdown; its last row is the last type with the importance matrix, where one is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from pycrispasr import Model, audio
from pycrispasr.models import gguf_file
from pycrispasr.models.quantize import quantize

TYPES = "f32,f16,q8_0,q6_k,q5_k,q4_k"


def word_errors(said: list[str], heard: list[str]) -> int:
    """Substitutions, insertions and deletions on the cheapest way from one list to the other."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]


def measure(model: Path, clips: list[tuple[np.ndarray, list[str]]]) -> tuple[list[str], int]:
    """What a model file hears in every clip, and its word errors in all."""
    with Model(model) as opened:
        texts = [opened.transcribe(samples, sample_rate=audio.SAMPLE_RATE).text for samples, _ in clips]
    errors = sum(word_errors(words, text.lower().split()) for (_, words), text in zip(clips, texts, strict=True))
    return texts, errors


def main() -> None:
    """Makes each file, and prints its row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--types", default=TYPES, help=f"default: {TYPES}")
    parser.add_argument("--imatrix", type=Path, help="what `pycrispasr imatrix` wrote, from other recordings")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th clip: a quick look")
    options = parser.parse_args()

    lines = (options.folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:: options.every]
    entries = [json.loads(line) for line in lines]
    clips = [(audio.load(options.folder / entry["file"]), entry["text"].lower().split()) for entry in entries]
    said = sum(len(words) for _, words in clips)
    print(f"{len(clips)} clips, {said} words\n")
    print("| type | file | matrices of it | word errors | word error rate | texts as the first row's | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
    runs = [(kind, None) for kind in options.types.split(",")]
    if options.imatrix:
        runs.append((runs[-1][0], options.imatrix))
    first: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, importance in runs:
            path = Path(folder) / "model.gguf"
            quantize(options.model, path, type=kind, importance=importance)
            matrices = [
                tensor
                for tensor in gguf_file.load(path)[1]
                if len(tensor.shape) > 1 and not tensor.name.startswith("audio.")
            ]
            share = f"{sum(tensor.type == kind.upper() for tensor in matrices)} of {len(matrices)}"
            start = time.perf_counter()
            texts, errors = measure(path, clips)
            seconds = time.perf_counter() - start
            first = first or texts
            same = sum(a == b for a, b in zip(texts, first, strict=True))
            title = kind.upper() + (" with an importance matrix" if importance else "")
            print(
                f"| {title} | {path.stat().st_size / 1e6:,.2f} MB | {share} | {errors} | {100 * errors / said:.2f} % "
                f"| {same} of {len(texts)} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

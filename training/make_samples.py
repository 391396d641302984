"""Make the demonstration recordings: `python training/make_samples.py`.

Each text is spoken by held-out voices in turn until the trained model writes it exactly; that recording is kept, with
its text beside it. Where none is exact, the first stays and a warning is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from reference import Reference
from voices import HELD_OUT, SAMPLE_RATE, Kokoro, download

# File, sample rate, channels and text; a comma is a short pause.
SAMPLES = [
    ("hello.wav", 16_000, 1, "hello"),
    ("thank-you-goodbye.wav", 16_000, 1, "thank you goodbye"),
    ("digits.wav", 24_000, 1, "four zero seven one, nine two six eight"),
    ("spelling.wav", 16_000, 1, "whiskey hotel india sierra papa echo romeo"),
    ("date.mp3", 24_000, 1, "friday november twenty seven twenty twenty six"),
    ("decimal.wav", 44_100, 2, "minus two hundred thirty four point five"),
    (
        "long.wav",
        16_000,
        1,
        "hello, please start tomorrow, monday march sixteen, no, cancel monday, continue wednesday april twenty one, "
        "yes, seven thousand three hundred fifty, thank you, goodbye",
    ),
]
LONG_SECONDS = 17


def encoded(file: Path, speech: np.ndarray, rate: int, channels: int) -> np.ndarray:
    """Write 16 kHz speech as asked for; what a reader of the file gets, as 16 kHz mono, comes back."""
    samples = soxr.resample(speech, SAMPLE_RATE, rate) if rate != SAMPLE_RATE else speech
    frames = np.stack([samples] * channels, axis=1)
    if channels == 2:
        frames[:, 1] *= 0.7
    soundfile.write(file, frames, rate, "PCM_16" if file.suffix == ".wav" else None)
    read, _ = soundfile.read(file, dtype="float32", always_2d=True)
    mono = read.mean(axis=1)
    return soxr.resample(mono, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else mono


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="folder with the checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    download(arguments.work / "downloads")
    kokoro, model = Kokoro(arguments.work / "downloads"), Reference(arguments.work / "checkpoint")
    folder = arguments.work / "samples"
    folder.mkdir(exist_ok=True)
    for turn, (name, rate, channels, text) in enumerate(SAMPLES):
        spoken = text.split()
        words = [word.rstrip(",") for word in spoken]
        marks = [", " if word.endswith(",") else " " for word in spoken[:-1]] + ["."]
        for attempt in range(8):
            voice = HELD_OUT[(turn + attempt) % len(HELD_OUT)]
            clip = kokoro.say(words, voice, (1.0, 0.95)[attempt // 4], marks)
            speech = clip.samples / 32768
            if name.startswith("long"):
                speech = spread(speech, clip.spans, marks)
            margin = np.zeros(SAMPLE_RATE // 5)
            heard = model.transcribe(encoded(folder / name, np.concatenate([margin, speech, margin]), rate, channels))
            if heard == " ".join(words):
                break
        else:
            print(f"not exact: {name}: {heard}")
        (folder / name).with_suffix(".txt").write_text(" ".join(words) + "\n")
        print(f"{name}: {voice}, {len(speech) / SAMPLE_RATE:.1f} s, {heard}")


def spread(speech: np.ndarray, spans: list[tuple[int, int]], marks: list[str]) -> np.ndarray:
    """Lengthen the pauses at commas until the recording lasts `LONG_SECONDS`."""
    missing = max(0, LONG_SECONDS * SAMPLE_RATE - len(speech)) // max(1, marks.count(", "))
    parts, start = [], 0
    for i, mark in enumerate(marks[:-1]):
        if mark == ", ":
            middle = (spans[i][1] + spans[i + 1][0]) // 2
            parts += [speech[start:middle], np.zeros(missing)]
            start = middle
    return np.concatenate([*parts, speech[start:]])


if __name__ == "__main__":
    main()

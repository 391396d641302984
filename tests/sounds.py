"""Sounds to compute with, and how alike two results are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from pycrispasr import audio

SAMPLES = Path(__file__).parent.parent / "samples"
# Those of the bundled recordings that the bundled model hears right however they are cut out.
NAMES = ["hello", "digits", "spelling", "thank-you-goodbye"]
RATE = 16000


def make_tones(seconds: float, seed: int = 0) -> np.ndarray:
    """Sweeping tones and noise of changing loudness, so that no window resembles another: float32 `[n]` at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16000)) / 16000
    tones = sum(np.sin(2 * np.pi * (f * t + 40 * np.sin(t * r))) for f, r in rng.uniform((80, 0.5), (3000, 9), (4, 2)))
    loudness = 0.1 + np.abs(np.sin(t * rng.uniform(1, 6) + rng.uniform(0, 3)))
    return (0.1 * loudness * (tones + rng.standard_normal(len(t)))).astype(np.float32)


def cosines(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows."""
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    return (got * wanted).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(wanted, axis=-1)


class Composition:
    """Recordings one after the other, in random order, with silence of random length before each."""

    def __init__(self, seconds: float, seed: int = 0) -> None:
        self.clips = [audio.load(SAMPLES / f"{name}.wav") for name in NAMES]
        self.texts = [(SAMPLES / f"{name}.txt").read_text(encoding="utf-8").strip() for name in NAMES]
        rng = np.random.default_rng(seed)
        self.parts: list[tuple[int, int]] = []  # where each begins, and which it is
        self.length = 0
        while self.length < seconds * RATE:
            which = int(rng.integers(len(NAMES)))
            begin = self.length + int(rng.integers(RATE, 3 * RATE))
            self.parts.append((begin, which))
            self.length = begin + len(self.clips[which])
        self.length += RATE

    @property
    def words(self) -> list[str]:
        return " ".join(self.texts[which] for _, which in self.parts).split()

    def blocks(self) -> Iterator[np.ndarray]:
        """All of it."""
        for start in range(0, self.length, 60 * RATE):
            yield self.samples(start, min(start + 60 * RATE, self.length))

    def write(self, path: Path) -> Path:
        """A file of it, in the format that the ending names, of 16 bits."""
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for block in self.blocks():
                file.write(block)
        return path

    def samples(self, start: int, end: int) -> np.ndarray:
        """Any part of it."""
        sound = np.zeros(end - start, np.float32)
        first = int(np.searchsorted([begin for begin, _ in self.parts], start)) - 1
        for begin, which in self.parts[max(0, first) :]:
            if begin >= end:
                break
            clip = self.clips[which][max(0, start - begin) : end - begin]
            place = max(0, begin - start)
            sound[place : place + len(clip)] = clip
        return sound

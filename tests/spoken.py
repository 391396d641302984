"""Speech whose words have known times: the clips of tests/data/words, and recordings composed of them."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import soundfile

from pycrispasr import Word

RATE = 16000
FOLDER = Path(__file__).parent / "data" / "words"

Spoken = tuple[str, float, float]  # a word, and when it is said, in seconds


class Clip(NamedTuple):
    samples: np.ndarray
    words: list[Spoken]


@functools.cache
def clips(kind: str) -> list[Clip]:
    """The clips of "words" or of "phrases"."""
    found = []
    files: dict[str, np.ndarray] = {}
    for clip in json.loads((FOLDER / "clips.json").read_text(encoding="utf-8")):
        name = clip["file"]
        if name.endswith(f"-{kind}.opus"):
            if name not in files:
                files[name], rate = soundfile.read(FOLDER / name, dtype="float32")
                assert rate == RATE
            words = [(word, start / RATE, end / RATE) for word, start, end in clip["words"]]
            found.append(Clip(files[name][clip["first"] : clip["last"]], words))
    return found


def compose(random: Random, seconds: float, noise: float | None = None) -> Clip:
    """Words in any order and at different levels, with pauses of 50 to 800 ms, about so many seconds long.

    Args:
        random: Decides.
        seconds: After which no other word begins.
        noise: Decibels by which white noise is weaker than all of it; None for none.
    """
    words: list[Spoken] = []
    parts: list[np.ndarray] = []
    place = 0
    while place < seconds * RATE or not words:
        pause = np.zeros(round(random.uniform(0.05, 0.8) * RATE), np.float32)
        clip = random.choice(clips("words"))
        place += len(pause)
        words += [(word, place / RATE + start, place / RATE + end) for word, start, end in clip.words]
        parts += [pause, clip.samples * np.float32(10 ** (random.uniform(-3, 3) / 20))]
        place += len(clip.samples)
    samples = np.concatenate([*parts, np.zeros(round(random.uniform(0, 0.8) * RATE), np.float32)])
    if noise is not None:
        hiss = np.random.default_rng(random.randrange(2**32)).standard_normal(len(samples)).astype(np.float32)
        samples = samples + hiss * np.float32(samples.std() * 10 ** (-noise / 20))
    return Clip(samples, words)


def deviations(heard: Sequence[Word], said: Sequence[Spoken]) -> np.ndarray:
    """How much later than the truth the words that were understood begin and end: seconds, `[words, 2]`."""
    matcher = difflib.SequenceMatcher(
        None, [word.text for word in heard], [word for word, _, _ in said], autojunk=False
    )
    return np.array(
        [
            (heard[block.a + k].start - said[block.b + k][1], heard[block.a + k].end - said[block.b + k][2])
            for block in matcher.get_matching_blocks()
            for k in range(block.size)
        ]
    ).reshape(-1, 2)

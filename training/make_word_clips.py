"""Make the clips with known word times in tests/data/words: `python training/make_word_clips.py`.

Voices that training never hears speak single words, whose sound itself says where they begin and end, and phrases,
whose word times are those that Kokoro spoke by. Each voice has a file of its words and one of its phrases, one clip
after the other; `clips.json` says what lies where, in samples at 16 kHz.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import numpy as np
import soundfile

import voices
from voices import HELD_OUT, SAMPLE_RATE, Kokoro
from words import VOCABULARY, text

WORDS = 12  # of each voice
PHRASES = 6
FRAME = SAMPLE_RATE // 100
BEFORE, AFTER = 320, 640  # samples that stay around a word


def word_clip(samples: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A word's sound with a little around it, and where in this it begins and ends, to 10 ms.

    Sounds of less than 60 ms that lie 80 ms or more before or behind all others are the synthesiser's clicks.
    """
    level = np.abs(samples[: len(samples) // FRAME * FRAME]).reshape(-1, FRAME).max(axis=1)
    loud = np.concatenate([[False], level > 0.015 * level.max(), [False]])
    sounds = np.flatnonzero(loud[1:] != loud[:-1]).reshape(-1, 2).tolist()
    while len(sounds) > 1 and sounds[-1][1] - sounds[-1][0] < 7 and sounds[-1][0] - sounds[-2][1] >= 8:
        sounds.pop()
    while len(sounds) > 1 and sounds[0][1] - sounds[0][0] < 7 and sounds[1][0] - sounds[0][1] >= 8:
        sounds.pop(0)
    start, end = sounds[0][0] * FRAME, sounds[-1][1] * FRAME
    first, last = max(0, start - BEFORE), min(len(samples), end + AFTER)
    clip = samples[first:last].astype(np.float64)
    fade = min(last - end, AFTER)
    clip[len(clip) - fade :] *= np.linspace(1, 0, fade)
    return np.round(clip).astype(np.int16), start - first, end - first


def write(path: Path, parts: list[np.ndarray]) -> None:
    soundfile.write(path, np.concatenate(parts) / 32768, SAMPLE_RATE, "OPUS", format="OGG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="folder for downloads")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "data" / "words")
    arguments = parser.parse_args()
    voices.download(arguments.work / "downloads")
    kokoro = Kokoro(arguments.work / "downloads")
    arguments.out.mkdir(parents=True, exist_ok=True)
    deck = Random("word clips").sample(VOCABULARY, WORDS * len(HELD_OUT))
    late = []  # how much later Kokoro's times of a word begin than its sound
    clips = []
    for number, voice in enumerate(HELD_OUT):
        random = Random(f"word clips/{voice}")
        parts, place, file = [], 0, f"{voice}-words.opus"
        for word in deck[number * WORDS : (number + 1) * WORDS]:
            spoken = kokoro.say([word], voice, random.uniform(0.85, 1.15), [random.choice("...?")])
            samples, start, end = word_clip(spoken.samples)
            clips.append({"file": file, "first": place, "last": place + len(samples), "words": [[word, start, end]]})
            loud = np.flatnonzero(np.abs(spoken.samples) > 0.015 * np.abs(spoken.samples).max())
            late.append((spoken.spans[0][0] - loud[0]) / SAMPLE_RATE)
            parts.append(samples)
            place += len(samples)
        write(arguments.out / file, parts)
        parts, place, file = [], 0, f"{voice}-phrases.opus"
        for _ in range(PHRASES):
            words = text(random, random.randint(4, 10))
            spoken = kokoro.say(words, voice, random.uniform(0.85, 1.15))
            spans = [[word, *span] for word, span in zip(words, spoken.spans, strict=True)]
            clips.append({"file": file, "first": place, "last": place + len(spoken.samples), "words": spans})
            parts.append(spoken.samples)
            place += len(spoken.samples)
        write(arguments.out / file, parts)
    lines = ",\n".join(json.dumps(clip) for clip in clips)
    (arguments.out / "clips.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(clips)} clips; Kokoro's words begin {np.median(late) * 1000:.0f} ms behind their sound (median)")


if __name__ == "__main__":
    main()

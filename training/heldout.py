"""The held-out clips: speech of voices that training never hears, and sounds without speech.

Each clip is a 16-bit WAV of 16 kHz; `manifest.jsonl` has a line for each with its file, its row in the table of results
and its exact text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import soundfile

from voices import HELD_OUT, SAMPLE_RATE, Clip, Kokoro
from words import VOCABULARY, Words, text

ROWS = {
    "words": "isolated words",
    "phrases": "2-8 words, spoken as one phrase",
    "joined": "2-8 words, joined from single words",
    "long phrases": "9-24 words, spoken as one phrase",
    "long joined": "9-24 words, joined from phrases and words",
    "slow": "14-24 words, joined with pauses to 22-30 s",
    "noise 15 dB": "2-8 words, with noise at 15 dB",
    "no speech": "silence, noise, hum and clicks",
}
SECONDS = 30


def noise(random: np.random.Generator, length: int, slope: float) -> np.ndarray:
    """Noise of unit power whose amplitude falls as 1/f^slope: white, pink, brown."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum /= np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20) ** slope
    samples = np.fft.irfft(spectrum, length)
    return samples / samples.std()


def no_speech(random: Random, generator: np.random.Generator, index: int) -> np.ndarray:
    """Silence, coloured noise, hum or clicks of half a second to twelve, at any level down to the last bit."""
    length = int(random.uniform(0.5, 12) * SAMPLE_RATE)
    level = 10 ** (random.uniform(-80, -12) / 20)
    kind = index % 6
    if kind == 0:
        return np.zeros(length) if index % 12 else generator.choice((-1, 0, 1), length) / 32768
    if kind < 4:
        return noise(generator, length, (0.0, 0.5, 1.0)[kind - 1]) * level
    if kind == 4:
        time = np.arange(length) / SAMPLE_RATE
        hum = sum(random.random() * np.sin(2 * np.pi * random.choice((50, 60)) * k * time) for k in range(1, 6))
        return (hum + 0.02 * generator.standard_normal(length)) * level
    clicks = 0.001 * generator.standard_normal(length)
    for place in generator.integers(0, length - 400, random.randint(1, 10)):
        clicks[place : place + 400] += generator.standard_normal(400) * np.exp(-np.arange(400) / 40)
    return clicks * level


def join(random: Random, clips: list[Clip], longest_gap: float = 0.4) -> tuple[np.ndarray, Words]:
    """Clips one after another with gaps of up to `longest_gap` seconds, until the next would pass 30 s."""
    parts, words, length = [], [], 0
    for clip in clips:
        gap = int(random.uniform(0, longest_gap) * SAMPLE_RATE)
        if length + len(clip.samples) + gap > SECONDS * SAMPLE_RATE:
            break
        parts += [clip.samples / 32768 * 10 ** (random.uniform(-3, 3) / 20), np.zeros(gap)]
        length += len(clip.samples) + gap
        words += clip.words
    return np.concatenate(parts), words


def clips(kokoro: Kokoro, per_voice: int, long_per_voice: int) -> Iterator[tuple[str, np.ndarray, Words, str]]:
    """Row, samples, text and voice of every clip: each word once, then `per_voice` clips a row and voice.

    Speaking long phrases takes most of the time, so of them there are `long_per_voice`.
    """
    generator = np.random.default_rng(11)
    for voice in HELD_OUT:
        random = Random(f"held out/{voice}")

        def speak(words: Words, voice: str = voice, random: Random = random) -> Clip:
            comma = random.choice((0.0, 0.1, 0.3))
            marks = [", " if random.random() < comma else " " for _ in words[:-1]] + [random.choice("...?")]
            return kokoro.say(words, voice, random.uniform(0.85, 1.15), marks)

        def samples(clip: Clip) -> np.ndarray:
            return clip.samples / 32768

        single = {word: speak([word]) for word in VOCABULARY}
        for word, clip in single.items():
            yield "words", samples(clip), [word], voice
        phrases = [speak(text(random, random.randint(2, 8))) for _ in range(per_voice)]
        for clip in phrases:
            yield "phrases", samples(clip), clip.words, voice
        for clip in phrases:
            speech = samples(clip)
            level = np.sqrt(np.mean(speech**2)) * 10 ** (-15 / 20)
            yield (
                "noise 15 dB",
                speech + level * noise(generator, len(speech), random.choice((0, 0.5, 1))),
                clip.words,
                voice,
            )
        for _ in range(per_voice):
            yield "joined", *join(random, [single[w] for w in text(random, random.randint(2, 8))]), voice
        for _ in range(per_voice):
            parts: list[Clip] = []
            count = random.randint(9, 24)
            while (missing := count - sum(len(part.words) for part in parts)) > 0:
                fitting = [phrase for phrase in phrases if len(phrase.words) <= missing]
                phrase = random.choice(fitting) if fitting and random.random() < 0.4 else None
                parts += (
                    [phrase] if phrase else [single[word] for word in text(random, min(missing, random.randint(1, 4)))]
                )
            yield "long joined", *join(random, parts), voice
        for _ in range(long_per_voice):
            clip = speak(text(random, random.randint(9, 24)))
            if len(clip.samples) <= SECONDS * SAMPLE_RATE:
                yield "long phrases", samples(clip), clip.words, voice
        random = Random(f"slow/{voice}")
        for _ in range(per_voice):
            parts = [single[word] for word in text(random, random.randint(16, 24))]
            spoken = sum(len(part.samples) for part in parts) / SAMPLE_RATE
            yield "slow", *join(random, parts, 2 * (random.uniform(24, 30) - spoken) / len(parts)), voice
    random = Random("no speech")
    for index in range(4 * per_voice):
        yield "no speech", no_speech(random, generator, index), [], "none"


def make(work: Path, kokoro: Kokoro, per_voice: int = 50, long_per_voice: int = 15) -> None:
    """Write `work/heldout`, unless it is there."""
    folder = work / "heldout"
    manifest = folder / "manifest.jsonl"
    if manifest.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (row, samples, words, voice) in enumerate(clips(kokoro, per_voice, long_per_voice)):
        file = f"{row.replace(' ', '-')}-{index:04d}.wav"
        peak = max(1.0, float(np.abs(samples).max(initial=0)))
        soundfile.write(folder / file, samples / peak, SAMPLE_RATE, "PCM_16")
        lines.append(json.dumps({"file": file, "row": row, "text": " ".join(words), "voice": voice}) + "\n")
    manifest.write_text("".join(lines))

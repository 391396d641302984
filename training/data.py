"""Training examples: clips of the bank joined into utterances, spoilt a little, with the place of every word known."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from model import CHUNK, Batch, audio_rows, conv_length
from voices import SAMPLE_RATE
from words import VOCABULARY, Words, text

HOP = 160
ROW = 8 * HOP
CLASS = {word: index for index, word in enumerate(VOCABULARY, start=1)}
MAX_COUNT = 47
HISTORY = 3
LATE = 2  # rows after which the decoder's audio rows must know a word


def mel_filters(bins: int) -> Tensor:
    """Whisper's filters, [bins, 201]."""
    return torch.tensor(mel_filter_bank(201, bins, 0.0, 8000.0, SAMPLE_RATE, "slaney", "slaney").T, dtype=torch.float32)


FILTERS = mel_filters(128)
WINDOW = torch.hann_window(400)


def mel_power(samples: np.ndarray, filters: Tensor = FILTERS) -> Tensor:
    """Mel power [bins, n // 160] of samples at 16 kHz: WhisperFeatureExtractor before its logarithm."""
    spectrum = torch.stft(torch.from_numpy(samples), 400, HOP, window=WINDOW, return_complex=True)[:, :-1]
    return filters @ (spectrum.real.square() + spectrum.imag.square())


def log_mel(power: Tensor) -> Tensor:
    """Logarithm, at most 80 dB under the clip's maximum, scaled to about -1 … 1."""
    logarithm = power.clamp(min=1e-10).log10()
    return (torch.maximum(logarithm, logarithm.max() - 8) + 4) / 4


@dataclass
class Piece:
    """A stretch of speech that can be joined to others: a word or a phrase."""

    samples: np.ndarray
    words: Words
    spans: list[tuple[int, int]]


@dataclass
class Bank:
    """All clips of a folder of shards. Clips are also cut at pauses, so that lists yield single words."""

    folder: Path
    words: dict[str, dict[str, list[Piece]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    phrases: list[Piece] = field(default_factory=list)
    shards: set[str] = field(default_factory=set)
    clips: int = 0

    PAUSE = SAMPLE_RATE // 8

    def refresh(self) -> None:
        """Read the shards that have appeared since the last call."""
        for index in sorted(self.folder.glob("*.jsonl")):
            if index.name in self.shards:
                continue
            self.shards.add(index.name)
            samples = np.load(index.with_suffix(".npy"))
            for line in index.read_text().splitlines():
                clip = json.loads(line)
                spans = [(a, b) for a, b in clip["spans"]]
                whole = Piece(samples[clip["start"] : clip["stop"]], clip["words"], spans)
                self.clips += 1
                parts = self.cut(whole)
                if len(whole.words) > 1:
                    self.phrases.append(whole)
                    if 1 < len(parts) < len(whole.words):
                        self.phrases += [part for part in parts if len(part.words) > 1]
                engine = "kokoro" if index.name.startswith("kokoro") else "small"
                for part in parts:
                    if len(part.words) == 1:
                        self.words[engine][part.words[0]].append(part)

    def cut(self, piece: Piece) -> list[Piece]:
        """The parts of a piece between its pauses."""
        parts, first, start = [], 0, 0
        for i, (_, end) in enumerate(piece.spans):
            last = i + 1 == len(piece.spans)
            if not last and piece.spans[i + 1][0] - end < self.PAUSE:
                continue
            stop = len(piece.samples) if last else (end + piece.spans[i + 1][0]) // 2
            spans = [(a - start, b - start) for a, b in piece.spans[first : i + 1]]
            parts.append(Piece(piece.samples[start:stop], piece.words[first : i + 1], spans))
            first, start = i + 1, stop
        return parts


@dataclass
class Example:
    features: Tensor
    words: Words
    heard: np.ndarray
    """The class of the word in each row, 0 between words."""
    count: np.ndarray
    """How many words have begun by each row, `LATE` rows after the fact."""
    history: np.ndarray
    """The classes of the words before the one that `count` stands at, the nearest first, [rows, HISTORY]."""
    rows: np.ndarray
    """First and last row of every word, [words, 2]."""


def faster(samples: np.ndarray, factor: float) -> np.ndarray:
    """Tape speed: tempo and pitch together."""
    places = np.arange(int(len(samples) / factor)) * factor
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


class Composer:
    """Draws examples from a bank. `clean` is the share of utterances that are left without augmentation."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.bank, self.random, self.numpy, self.clean = bank, Random(seed), np.random.default_rng(seed), 0.08
        self.noises = [self.coloured_noise(slope) for slope in (0.0, 0.5, 1.0, 1.0, 1.5)]
        seconds = np.arange(len(self.noises[0])) / SAMPLE_RATE
        hum = sum(self.random.uniform(0.1, 1) * np.sin(2 * np.pi * f * seconds) for f in (50, 60, 100, 120, 150, 180))
        self.noises.append((hum / hum.std() + 0.3 * self.noises[0]).astype(np.float32))

    def coloured_noise(self, slope: float, seconds: int = 40) -> np.ndarray:
        """Noise whose amplitude falls as 1/f^slope."""
        spectrum = np.fft.rfft(self.numpy.standard_normal(seconds * SAMPLE_RATE))
        spectrum /= np.maximum(np.fft.rfftfreq(seconds * SAMPLE_RATE, 1 / SAMPLE_RATE), 30) ** slope
        noise = np.fft.irfft(spectrum)
        return (noise / noise.std()).astype(np.float32)

    def noise(self, length: int) -> np.ndarray:
        track = self.random.choice(self.noises)
        start = self.random.randrange(len(track) - length)
        return track[start : start + length]

    def pieces(self, limit: int, phrases: float) -> list[Piece]:
        """What is said next, at most `limit` words: a phrase as it was spoken, or single words put in its place."""
        random = self.random
        if limit > 1 and random.random() < phrases:
            phrase = random.choice(self.bank.phrases)
            if len(phrase.words) <= limit:
                return [phrase]
        engine = "kokoro" if random.random() < 0.75 or not self.bank.words["small"] else "small"
        words = text(random, min(limit, random.randint(1, 6)), loose=1.0 if limit == 1 else 0.4)
        spoken = self.bank.words[engine]
        return [random.choice(spoken[word]) for word in words if spoken[word]]

    def speech(self, seconds: float, limit: int) -> tuple[np.ndarray, Words, list[tuple[int, int]]]:
        """About `seconds` of joined pieces with gaps between them, at most `limit` words."""
        random = self.random
        end = int(seconds * SAMPLE_RATE)
        track = np.zeros(end + 6 * SAMPLE_RATE, np.float32)
        words: Words = []
        spans: list[tuple[int, int]] = []
        lead = random.choice((random.uniform(0, 0.1), random.uniform(0.05, 0.4), random.uniform(0.1, 0.8)))
        place = int(lead * SAMPLE_RATE)
        pace = random.uniform(0.87, 1.15) if random.random() < 0.7 else 1.0
        gaps = random.choice(("tight", "usual", "usual", "wide"))
        phrases = random.choice((0.0, 0.4, 0.8))
        while place < end and len(words) < limit:
            for piece in self.pieces(limit - len(words), phrases):
                factor = pace * random.uniform(0.96, 1.04)
                samples = piece.samples.astype(np.float32) / 32768
                if abs(factor - 1) > 0.01:
                    samples = faster(samples, factor)
                else:
                    factor = 1.0
                if (words and place + len(samples) > end + SAMPLE_RATE // 2) or place + len(samples) > len(track):
                    return self.finish(track, words, spans)
                samples *= 10 ** (random.uniform(-6, 3) / 20 if random.random() < 0.3 else random.uniform(-2, 2) / 20)
                fade = np.linspace(0, 1, 80, dtype=np.float32)
                samples[:80] *= fade
                samples[-80:] *= fade[::-1]
                track[place : place + len(samples)] += samples
                words += piece.words
                spans += [(place + int(a / factor), place + int(b / factor)) for a, b in piece.spans]
                place += len(samples)
                gap = {
                    "tight": random.uniform(-0.09, 0.02),
                    "usual": 10 ** random.uniform(-1.7, -0.45) - 0.06,
                    "wide": random.uniform(0.05, 0.8),
                }[gaps]
                if random.random() < 0.03:
                    gap = random.uniform(0.5, 2.0)
                place += int(gap * SAMPLE_RATE)
        return self.finish(track, words, spans)

    def finish(self, track: np.ndarray, words: Words, spans: list) -> tuple[np.ndarray, Words, list]:
        """Cut the track after its last word, with a tail or without."""
        tail = self.random.choice((0.06, self.random.uniform(0.06, 0.3), self.random.uniform(0.1, 0.9)))
        stop = (spans[-1][1] if spans else 0) + int(tail * SAMPLE_RATE)
        return track[: max(stop, SAMPLE_RATE)], words, spans

    def spoil(self, samples: np.ndarray) -> np.ndarray:
        """A room at times, noise at 6 to 60 dB mostly, any level."""
        random = self.random
        length = len(samples)
        if random.random() < 0.22:
            decay = random.uniform(0.08, 0.5)
            taps = int(SAMPLE_RATE * min(0.35, decay))
            room = self.numpy.standard_normal(taps) * np.exp(-6.9 * np.arange(taps) / SAMPLE_RATE / decay)
            room[: int(random.uniform(8, 80))] = 0
            room *= random.uniform(0.1, 0.8) / np.sqrt((room**2).sum() + 1e-9)
            room[0] = 1
            size = 1 << (length + taps).bit_length()
            samples = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(room, size), size)[:length]
        if random.random() < 0.8:
            ratio = random.uniform(6, 25) if random.random() < 0.55 else random.uniform(25, 60)
            level = np.sqrt(np.mean(samples**2) + 1e-12) * 10 ** (-ratio / 20)
            samples = samples + self.noise(length) * level
        peak = 10 ** (random.uniform(-28, -0.5) / 20)
        return (samples / np.abs(samples).max() * peak).astype(np.float32)

    def no_speech(self, length: int) -> np.ndarray:
        """Nothing, noise, tones or clicks, at any level."""
        random = self.random
        kind = random.random()
        if kind < 0.15:
            return np.zeros(length, np.float32)
        sound = self.noise(length)
        if kind > 0.75:
            sound = sound * 10 ** (random.uniform(-50, -10) / 20)
            for place in self.numpy.integers(0, length, random.randint(1, 12)):
                size = min(random.randint(20, 600), length - place)
                click = self.numpy.standard_normal(size) * np.exp(-np.arange(size) * random.uniform(3, 8) / size)
                sound[place : place + size] += click
        elif kind > 0.45:
            sound = sound * 10 ** (random.uniform(-60, -5) / 20)
            time = np.arange(length) / SAMPLE_RATE
            base = 10 ** random.uniform(1.6, 3)
            for harmonic in range(1, random.randint(2, 9)):
                sound = sound + random.random() * np.sin(2 * np.pi * base * harmonic * time + random.random() * 6)
        level = 10 ** (random.uniform(-75, -10) / 20)
        return np.clip(sound * level, -1, 1).astype(np.float32)

    def features(self, samples: np.ndarray, clean: bool) -> Tensor:
        """Log-mel frames, with a random equaliser, band limits and masks unless `clean`."""
        random = self.random
        power = mel_power(samples)
        if clean:
            return log_mel(power)
        if random.random() < 0.7:
            bins = np.linspace(0, 1, 128)
            curve = random.uniform(-1.2, 1.2) * (bins - 0.5)
            curve += np.interp(bins, np.linspace(0, 1, 7), self.numpy.standard_normal(7) * 0.25)
            if random.random() < 0.15:
                curve[random.randint(84, 108) :] -= random.uniform(1.5, 5)
            if random.random() < 0.12:
                curve[: random.randint(3, 14)] -= random.uniform(1, 3)
            power = power * torch.from_numpy(10**curve).float()[:, None]
        frames = log_mel(power)
        if random.random() < 0.25:
            bin_ = random.randrange(118)
            frames[bin_ : bin_ + random.randint(3, 12)] = float(frames.min()) + random.random() * 0.3
        if random.random() < 0.15:
            frame = random.randrange(max(1, frames.shape[1] - 8))
            frames[:, frame : frame + random.randint(2, 7)] = frames.min()
        return frames

    def example(self, seconds: float, limit: int, length: int | None = None) -> Example:
        """One utterance; exactly `length` samples if given (a short clip of one word)."""
        random = self.random
        words: Words = []
        spans: list[tuple[int, int]] = []
        if random.random() < 0.05:
            samples = self.no_speech(length or int(seconds * SAMPLE_RATE))
        else:
            samples, words, spans = self.speech(seconds, limit)
            if length is not None:
                samples, words, spans = self.window(length)
        clean = random.random() < self.clean
        samples = samples * np.float32(random.uniform(0.1, 1)) if clean or not words else self.spoil(samples)
        return label(self.features(samples, clean), words, spans)

    def window(self, length: int) -> tuple[np.ndarray, Words, list[tuple[int, int]]]:
        """One word in exactly `length` samples."""
        while True:
            piece = self.pieces(1, 0.0)[0]
            samples = piece.samples.astype(np.float32) / 32768
            if len(samples) <= length:
                break
        place = self.random.randint(0, length - len(samples))
        track = np.zeros(length, np.float32)
        track[place : place + len(samples)] = samples
        return track, piece.words, [(a + place, b + place) for a, b in piece.spans]


def label(features: Tensor, words: Words, spans: list[tuple[int, int]]) -> Example:
    """Attach what each encoder row should know."""
    frames = features.shape[1]
    starts = [np.arange(conv_length(min(CHUNK, frames - c))) * ROW + c * HOP for c in range(0, frames, CHUNK)]
    time = np.concatenate(starts)
    heard, count = np.zeros(len(time), np.int64), np.zeros(len(time), np.int64)
    rows = np.zeros((len(words), 2), np.int64)
    for i, (word, (start, stop)) in enumerate(zip(words, spans, strict=True)):
        heard[(time >= start) & (time < stop)] = CLASS[word]
        count += time >= start + LATE * ROW
        rows[i] = np.searchsorted(time, (start, stop + LATE * ROW))
    rows = rows.clip(max=len(time))
    rows[:, 0] = np.minimum(rows[:, 0], len(time) - 1)
    rows[:, 1] = np.maximum(rows[:, 1], rows[:, 0] + 1)
    classes = np.array([0] * (HISTORY + 1) + [CLASS[word] for word in words])
    history = np.stack([classes[count + HISTORY - back].clip(0) for back in range(1, HISTORY + 1)], axis=1)
    return Example(features, words, heard, count.clip(max=MAX_COUNT), history, rows)


@dataclass
class Curriculum:
    seconds: float
    words: int


def draw_batch(composer: Composer, shape: Random, level: Curriculum, budget: float) -> list[Example]:
    """About `budget` seconds of examples of one length. `shape` draws the length; workers share it to keep in step."""
    kind = shape.random()
    if kind < 0.1:
        length = shape.randint(50, 99) * HOP
        return [composer.example(1.0, 1, length) for _ in range(int(budget))]
    if kind < 0.25:
        seconds, limit = shape.uniform(1.0, 2.5), shape.choice((1, 3))
    else:
        seconds, limit = 1.5 * (level.seconds / 1.5) ** shape.random() ** 0.7, level.words
    chunks = math.ceil(seconds)
    clips = max(1, round(budget / chunks))
    return [composer.example(chunks - composer.random.uniform(0.5, 0.9), limit) for _ in range(clips)]


def collate(examples: list[Example], tokens: list[list[int]]) -> Batch:
    """Pad to the longest clip: to whole chunks, unless every clip is shorter than one."""
    frames = [example.features.shape[1] for example in examples]
    width = max(frames)
    if width > CHUNK:
        width += -width % CHUNK
    elif min(frames) < width:
        width = CHUNK
    features = torch.zeros(len(examples), 128, width)
    for i, example in enumerate(examples):
        features[i, :, : frames[i]] = example.features
    return Batch(features, torch.tensor([audio_rows(n) for n in frames]), tokens)

"""Sounds to compute with, and how alike two results are."""

from __future__ import annotations

import numpy as np


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

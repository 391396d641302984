"""What several test files use: small random models, and sounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from generate_model import generate

from pycrispasr import Model


def make_sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes like that of words: float32 `[n]` at 16 kHz."""
    rng = np.random.default_rng(seed)
    n = round(seconds * 16000)
    loudness = np.repeat(rng.uniform(0.05, 1, n // 1600 + 1), 1600)[:n]
    return (0.1 * loudness * rng.standard_normal(n)).astype(np.float32)


@pytest.fixture(scope="session")
def nano_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of about 2 MB. What it writes is nonsense, but always the same for the same sound."""
    path = tmp_path_factory.mktemp("models") / "nano.gguf"
    generate(path, preset="nano", type="f32")
    return path


@pytest.fixture(scope="session")
def nano(nano_path: Path) -> Iterator[Model]:
    """The random model, opened once for all tests that leave it open."""
    with Model(nano_path, threads=1) as model:
        yield model

"""What several test files use: a small random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pycrispasr import Model
from pycrispasr.random_model import generate


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


@pytest.fixture(scope="session")
def tiny() -> Iterator[Model]:
    """The bundled model."""
    with Model("tiny") as model:
        yield model

"""What several test files use: a small random model; and tests that run alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from pycrispasr import Model
from pycrispasr.models.random_model import generate

from . import hub_server

try:
    import fcntl
except ImportError:  # Windows: several workers are not kept apart there
    fcntl = None  # type: ignore[assignment]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job does not listen to Ctrl-C, and what it starts would not either.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: many tests wait for processes."""
    return (os.cpu_count() or 1) + 1


@contextlib.contextmanager
def locked(config: pytest.Config, name: str, *, exclusive: bool) -> Iterator[None]:
    """Holds a lock that the workers of one run share."""
    if fcntl is None or not hasattr(config, "workerinput"):
        yield
        return
    folder = Path(config.option.basetemp).parent  # xdist gives each worker a folder in that of the run
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `serial` runs while no other worker runs any."""
    serial = item.get_closest_marker("serial") is not None
    with contextlib.ExitStack() as stack:
        with locked(item.config, "gate", exclusive=True):  # who waits behind this one does not overtake a serial test
            stack.enter_context(locked(item.config, "run", exclusive=serial))
        return (yield)


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
    with Model("tiny", threads=1) as model:
        yield model


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.Hub]:
    """The hub of this process, with one published file and one of somebody else, and an empty cache."""
    with hub_server.serve() as server:
        server.add(hub_server.MOSS, hub_server.Q4_K, hub_server.CONTENT)
        server.add("org/repo", "model.gguf", b"old" * 1000, (hub_server.OLD,))
        server.add("org/repo", "model.gguf", b"new" * 1000, (hub_server.NEW,))
        server.add("org/repo", "README.md", b"read me")
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is written at a time
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server

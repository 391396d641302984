"""Memory does not grow with use."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pycrispasr import Model, ModelFormatError

from .sounds import make_tones

pytestmark = pytest.mark.serial

MIB = 1 << 20


FEW_AND_MANY = pytest.mark.parametrize("cycles", [80, pytest.param(400, marks=pytest.mark.slow)])


def growth(work: Callable[[], None], cycles: int) -> int:
    """Bytes by which the process grew over `cycles` calls, after as many as it takes to settle."""
    process = psutil.Process()
    for _ in range(cycles):  # each thread takes its time to have an arena of the allocator
        work()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(cycles):
        work()
    gc.collect()
    return int(process.memory_info().rss - before)


@FEW_AND_MANY
def test_open_transcribe_and_close_again_and_again_keep_memory_level(nano_path: Path, cycles: int) -> None:
    sound = make_tones(1)

    def work() -> None:
        with Model(nano_path, threads=1) as model:
            model.transcribe(sound, sample_rate=16000, max_new_tokens=5)

    threads = threading.active_count()
    assert growth(work, cycles) < 6 * MIB
    assert threading.active_count() == threads


@FEW_AND_MANY
def test_sessions_streams_and_errors_keep_memory_level(nano: Model, cycles: int) -> None:
    sound = make_tones(2)

    def work() -> None:
        next(nano.stream(sound, sample_rate=44100, max_new_tokens=5))
        with nano.session(max_new_tokens=3) as session:
            session.feed(sound)
            session.cancel()
            session.reset()
            session.feed(sound)
            session.finish()

    assert growth(work, cycles) < 6 * MIB


@FEW_AND_MANY
def test_files_that_fail_to_open_keep_memory_level(nano_path: Path, tmp_path: Path, cycles: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(nano_path.read_bytes()[:-100])

    def work() -> None:
        try:
            Model(cut)
        except ModelFormatError:
            return
        raise AssertionError("a cut file was opened")

    assert growth(work, 2 * cycles) < 4 * MIB


@FEW_AND_MANY
def test_one_session_used_again_keeps_memory_level(nano: Model, cycles: int) -> None:
    sounds = [make_tones(seconds) for seconds in (0.5, 3, 1)]
    with nano.session(max_new_tokens=5) as session:

        def work() -> None:
            for sound in sounds:
                session.feed(sound)
                session.finish()
                session.reset()

        assert growth(work, cycles) < 4 * MIB


def test_threads_of_closed_models_are_gone(nano_path: Path) -> None:
    process = psutil.Process()
    before = process.num_threads()
    for _ in range(3):
        with Model(nano_path, threads=2) as model:
            model.transcribe(np.zeros(4000, np.float32), sample_rate=16000, max_new_tokens=1)
    until = time.monotonic() + 30  # a thread that has been joined is counted for a moment
    while process.num_threads() > before:
        assert time.monotonic() < until
        time.sleep(0.01)

"""Memory does not grow with use."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pycrispasr import Model, ModelFormatError

from .sounds import make_tones

pytestmark = pytest.mark.serial

MIB = 1 << 20


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


def test_200_times_open_transcribe_and_close_keep_memory_level(nano_path: Path) -> None:
    sound = make_tones(1)

    def work() -> None:
        with Model(nano_path, threads=1) as model:
            model.transcribe(sound, sample_rate=16000, max_new_tokens=5)

    threads = threading.active_count()
    assert growth(work, 200) < 6 * MIB
    assert threading.active_count() == threads


def test_200_sessions_streams_and_errors_keep_memory_level(nano: Model) -> None:
    sound = make_tones(2)

    def work() -> None:
        next(nano.stream(sound, sample_rate=44100, max_new_tokens=5))
        with nano.session(max_new_tokens=3) as session:
            session.feed(sound)
            session.cancel()
            session.reset()
            session.feed(sound)
            session.finish()

    assert growth(work, 200) < 6 * MIB


def test_files_that_fail_to_open_keep_memory_level(nano_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(nano_path.read_bytes()[:-100])

    def work() -> None:
        try:
            Model(cut)
        except ModelFormatError:
            return
        raise AssertionError("a cut file was opened")

    assert growth(work, 400) < 4 * MIB


def test_one_session_used_again_keeps_memory_level(nano: Model) -> None:
    sounds = [make_tones(seconds) for seconds in (0.5, 3, 1)]
    with nano.session(max_new_tokens=5) as session:

        def work() -> None:
            for sound in sounds:
                session.feed(sound)
                session.finish()
                session.reset()

        assert growth(work, 200) < 4 * MIB


def test_threads_of_closed_models_are_gone(nano_path: Path) -> None:
    process = psutil.Process()
    before = process.num_threads()
    for _ in range(3):
        with Model(nano_path, threads=2) as model:
            model.transcribe(np.zeros(4000, np.float32), sample_rate=16000, max_new_tokens=1)
    assert process.num_threads() <= before

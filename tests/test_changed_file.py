"""A model file that others shorten or write to while it is open is told of, and never ends the process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr import Model, ModelFormatError
from pycrispasr.models import hub

from .sounds import make_tones

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nobody can write to a file that is mapped")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copy(hub.resolve("tiny"), tmp_path / "model.gguf"))


@pytest.mark.parametrize("left", [0, 4096, 2_000_003])
def test_a_file_that_was_cut_short_is_told_of(left: int, copy: Path) -> None:
    with Model(copy) as model:
        model.transcribe(make_tones(1), sample_rate=16000)
        os.truncate(copy, left)
        for _ in range(2):
            with pytest.raises(ModelFormatError, match=r"model\.gguf' was cut short"):
                model.transcribe(make_tones(1), sample_rate=16000)
    with pytest.raises(ModelFormatError, match=r"model\.gguf"):
        Model(copy)


def test_a_file_that_was_written_to_is_told_of(copy: Path) -> None:
    with Model(copy) as model:
        model.transcribe(make_tones(1), sample_rate=16000)
        with copy.open("r+b") as file:
            file.seek(3_000_000)
            file.write(bytes(1000))
        with pytest.raises(ModelFormatError, match="was written to"):
            model.transcribe(make_tones(1), sample_rate=16000)


def test_a_file_that_was_replaced_is_no_matter(copy: Path, tmp_path: Path) -> None:
    """As downloads and most editors do it: the one that is open stays as it is."""
    with Model(copy) as model:
        wanted = model.transcribe(make_tones(1), sample_rate=16000).segments
        (tmp_path / "other").write_bytes(b"other")
        os.replace(tmp_path / "other", copy)
        assert model.transcribe(make_tones(1), sample_rate=16000).segments == wanted


def test_nothing_that_happens_to_the_file_matters_without_mapping(copy: Path) -> None:
    with Model(copy, mmap=False) as model, Model(copy) as mapped:
        wanted = mapped.transcribe(make_tones(1), sample_rate=16000).segments
        os.truncate(copy, 0)
        assert model.transcribe(make_tones(1), sample_rate=16000).segments == wanted


CUT_WHILE_DECODING = """
import os, sys, threading, time
import numpy as np
from pycrispasr import Model, ModelFormatError

path = sys.argv[1]
sound = np.tile(0.1 * np.sin(np.arange(16000) / 20), 20).astype(np.float32)
with Model(path) as model:
    threading.Timer(0.2, os.truncate, (path, 70_000)).start()
    try:
        while True:
            model.transcribe(sound, sample_rate=16000)
    except ModelFormatError as error:
        print(error)
"""


def test_a_file_that_is_cut_short_while_it_is_read_does_not_end_the_process(copy: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CUT_WHILE_DECODING, copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cut short" in done.stdout or "not finite" in done.stdout


def test_other_bus_errors_go_to_the_handler_before() -> None:
    script = (
        "import faulthandler, os, signal, pycrispasr\n"
        "faulthandler.enable()\n"
        "model = pycrispasr.Model('tiny')\n"
        "os.kill(os.getpid(), signal.SIGBUS)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_other_bus_errors_end_the_process_as_ever() -> None:
    script = "import os, signal, pycrispasr\npycrispasr.Model('tiny')\nos.kill(os.getpid(), signal.SIGBUS)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS

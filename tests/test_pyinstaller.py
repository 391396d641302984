"""Programs that PyInstaller packs: they need no options for this package."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pycrispasr
from pycrispasr.runtimes import native

from .sounds import SAMPLES

PROGRAM = """
import sys
import pycrispasr
from pycrispasr.models import hub
print(pycrispasr.transcribe(sys.argv[1], model="tiny", vad="on").text, len(hub.models()))
"""


def test_pyinstaller_is_led_to_the_hook() -> None:
    (entry,) = importlib.metadata.entry_points(group="pyinstaller40", name="hook-dirs").select(
        value="pycrispasr._pyinstaller:hook_dirs"
    )
    (folder,) = entry.load()()
    assert (Path(folder) / "hook-pycrispasr.py").is_file()


@pytest.mark.slow
def test_a_packed_program_transcribes(tmp_path: Path) -> None:
    pytest.importorskip("PyInstaller")
    if Path(pycrispasr.__file__).parent != native.library_path().parent:
        pytest.skip("PyInstaller does not understand editable installs")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "program.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=500)
    environment = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # nothing of this Python
    done = subprocess.run(
        [tmp_path / "dist" / "program" / "program", SAMPLES / "hello.wav"], cwd=tmp_path, env=environment,
        capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == "hello"

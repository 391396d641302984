"""The programs in examples/ run, and end with the text of the recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "samples" / "long.txt").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_hears_every_word(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, example, "samples/long.wav"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.strip().splitlines()
    if example.stem == "audio_callback":  # a line for each utterance
        lines = [" ".join(line.partition(" s  ")[2] for line in lines if "somebody speaks" not in line)]
    assert lines[-1] == TEXT

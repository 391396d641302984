"""Many clients at once, some of which go away or read slowly: no text is wrong or lost, and the metrics add up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serve_load.py"


@pytest.mark.parametrize(
    ("clients", "seconds"),
    [(16, 2), pytest.param(64, 120, marks=[pytest.mark.slow, pytest.mark.serial])],
    ids=["few", "many"],
)
def test_no_text_is_wrong_or_lost_and_the_metrics_add_up(clients: int, seconds: int) -> None:
    command = [sys.executable, str(SCRIPT), "--clients", str(clients), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.rstrip().endswith("no text was wrong or lost")

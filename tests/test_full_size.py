"""The published model's shapes: a generated 2B file in Q4_K loads, transcribes, and stays within its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr.models.random_model import generate

pytestmark = pytest.mark.full_size

# In a process of its own, since what is measured is the most that a process ever had.
SCRIPT = """
import json, resource, sys
import numpy as np
import pycrispasr
rng = np.random.default_rng(0)
sound = (0.1 * np.repeat(rng.uniform(0.05, 1, 300), 1600) * rng.standard_normal(480000)).astype(np.float32)
with pycrispasr.Model(sys.argv[1]) as model:
    result = model.transcribe(sound, sample_rate=16000, max_new_tokens=100)
    print(json.dumps({
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "tokens": result.timings.tokens,
        "status": result.segments[0].status, "file": model.info.file_bytes, "timings": str(result.timings),
    }))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "2b-q4_k.gguf"
    generate(path, preset="2b", type="q4_k")
    return path


def test_thirty_seconds_take_at_most_500_megabytes_above_the_file(path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    print(found)
    assert run.stderr == ""
    assert found["tokens"] == 100
    assert found["status"] == "truncated"
    assert found["peak"] <= found["file"] + 500e6


def test_info_tells_the_published_sizes(path: Path) -> None:
    command = [sys.executable, "-m", "pycrispasr", "info", str(path), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["memory"]["weights"] == pytest.approx(2.62 * 2**30, rel=0.01)

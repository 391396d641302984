"""Benchmarks run and tell what they measured; nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pycrispasr.errors import UsageError
from pycrispasr.lab import bench
from pycrispasr.models import random_model
from pycrispasr.runtimes import crispasr

from .sounds import make_tones

ROOT = Path(__file__).parent.parent
STAGES = ["log-mel", "encoder", "adapter", "encoder + adapter", "prefill", "token", "2 s, 5 tokens", "second load"]


def test_every_stage_is_timed(nano_path: Path) -> None:
    report = bench.bench(nano_path, make_tones(2), sample_rate=16000, runs=2, tokens=5, threads=1)
    assert [row.name for row in report.rows] == STAGES
    assert all(row.seconds > 0 and len(row.ours) == 2 and row.ratio is None for row in report.rows)
    assert (report.audio_seconds, report.audio_rows, report.against) == (2, 26, None)
    assert report.file_bytes == nano_path.stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["seconds"] == report.rows[0].seconds
    shown = bench.table(report)
    assert all(name in shown for name in STAGES)


@pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45")
def test_both_runtimes_are_timed_in_turns(tmp_path: Path) -> None:
    random_model.generate(tmp_path / "model.gguf", preset="vocab", type="q8_0")
    report = bench.bench(
        tmp_path / "model.gguf", make_tones(2), sample_rate=16000, against="crispasr", runs=1, tokens=5, threads=1
    )
    assert report.against == "crispasr"
    assert [row.name for row in report.rows if row.ratio] == STAGES[:-1]
    assert "crispasr" in bench.table(report)


def test_the_command_prints_json_and_draws(nano_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "pycrispasr", "bench", str(nano_path), "--runs", "1", "--tokens", "3", "--json"]
    command += ["--plot", str(tmp_path / "bench.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["audio_seconds"] == 30
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_told(nano_path: Path) -> None:
    with pytest.raises(UsageError, match="compared with 'whisper': give 'crispasr'"):
        bench.bench(nano_path, against="whisper")
    with pytest.raises(UsageError, match="runs cannot be 0"):
        bench.bench(nano_path, runs=0)


def test_the_trace_tells_every_graph(nano_path: Path) -> None:
    sound = ROOT / "samples" / "digits.wav"
    sound = sound if sound.exists() else sorted((ROOT / "samples").glob("*.wav"))[0]
    command = [
        sys.executable,
        "-m",
        "pycrispasr",
        "transcribe",
        "-m",
        str(nano_path),
        "--max-new-tokens",
        "3",
        str(sound),
    ]
    for value, wanted in (("1", True), ("0", False), ("", False)):
        environment = {"PATH": "", "PYCRISPASR_TRACE": value, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert ("graph encoder: " in done.stderr) is wanted
        assert ("graph step: " in done.stderr) is wanted


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["kernels.py", "--quick", "--threads", "1"], id="kernels.py", marks=pytest.mark.slow),
        pytest.param(
            ["scaling.py", "MODEL", "--minutes", "0.05", "--threads", "1", "--batches", "1", "2", "--batch-seconds",
             "40", "--tokens", "2", "--runs", "1", "--out", "OUT"],
            id="scaling.py",
        ),
    ],
)  # fmt: skip
def test_the_scripts_run(command: list[str], nano_path: Path, tmp_path: Path) -> None:
    command = [{"MODEL": str(nano_path), "OUT": str(tmp_path)}.get(word, word) for word in command]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / command[0], *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

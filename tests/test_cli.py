"""The command line, called as a person calls it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pycrispasr
from pycrispasr import Model
from pycrispasr.cli import common
from pycrispasr.results.segment import Token
from pycrispasr.text import plain

from . import gguf_edit
from .command import COMMAND, run
from .sounds import make_tones


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    paths = [folder / "one.wav", folder / "two words.flac", folder / "three.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, make_tones(0.6, seed), 16000)
    return paths


def texts(nano: Model, paths: Sequence[Path], limit: int) -> list[str]:
    """What the command prints for them: a random model's text may have control characters."""
    return [plain(nano.transcribe(path, max_new_tokens=limit).text) for path in paths]


def test_each_file_s_text_is_one_line_in_order(nano: Model, nano_path: Path, sounds: list[Path]) -> None:
    done = run("transcribe", "-m", nano_path, "--max-new-tokens", 12, *sounds)
    assert done.returncode == 0
    assert done.stdout.split("\n") == [*texts(nano, sounds, 12), ""]
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["pycrispasr"] * 3
    assert all("cut" in line and str(path) in line for path, line in zip(sounds, done.stderr.splitlines(), strict=True))


def test_json_is_one_object_for_each_file(nano: Model, nano_path: Path, sounds: list[Path]) -> None:
    done = run("transcribe", "-m", nano_path, "-f", "json", "--max-new-tokens", 3, *sounds)
    assert done.returncode == 0
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["audio"] for item in objects] == [str(path) for path in sounds]
    for item, path in zip(objects, sounds, strict=True):
        transcript = nano.transcribe(path, max_new_tokens=3)
        assert item["text"] == transcript.text
        assert [token["id"] for token in item["segments"][0]["tokens"]] == [
            token.id for token in transcript.segments[0].tokens
        ]


def test_text_appears_while_the_command_still_works(nano_path: Path, sounds: list[Path]) -> None:
    command = [*COMMAND, "transcribe", "-m", nano_path, "--max-new-tokens", "5", "--threads", "1", sounds[0], "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()  # comes although the second recording has not
        assert process.poll() is None
        process.stdin.write(sounds[0].read_bytes())
        process.stdin.close()
        assert process.stdout.readline() == first
        assert process.wait(60) == 0


def test_tokens_are_printed_without_whitespace_at_the_ends(capsys: pytest.CaptureFixture[str]) -> None:
    for pieces, wanted in (
        ([" hello", " wor", "ld", " ", "\n"], "hello world"),
        ([" ", "", " a ", " b"], "a  b"),
        ([], ""),
        ([" "], ""),
    ):
        common.print_tokens([Token(0, piece, 1.0) for piece in pieces])
        assert capsys.readouterr().out == wanted


def test_a_failed_file_does_not_stop_the_others(
    nano: Model, nano_path: Path, sounds: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    missing = tmp_path / "missing.wav"
    done = run("transcribe", "-m", nano_path, "--max-new-tokens", 4, missing, sounds[0], text, sounds[1])
    assert done.returncode == 1
    assert done.stdout.split("\n") == [*texts(nano, sounds[:2], 4), ""]
    errors = [line for line in done.stderr.splitlines() if "cut" not in line]
    assert len(errors) == 2
    assert "missing.wav" in errors[0]
    assert "text.wav" in errors[1]
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_one_sentence(sounds: list[Path]) -> None:
    done = run("transcribe", "-m", "missing.gguf", sounds[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "missing.gguf" in done.stderr
    done = run("transcribe", "-m", sounds[0], sounds[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert "GGUF" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("transcribe",),
        ("transcribe", "-f", "docx", "a.wav"),
        ("transcribe", "--beam-size", "5", "a.wav"),
        ("transcribe", "--threads", "0", "a.wav"),
        ("transcribe", "--max-new-tokens", "-1", "a.wav"),
        ("translate", "a.wav"),
        ("info",),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_tells_on_stderr(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: pycrispasr" in done.stderr


def test_help_names_every_command_and_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("transcribe", "info", "devices", "convert", "quantize", "imatrix"):
        assert command in done.stdout
    done = run("transcribe", "--help")
    for option in ("--model", "--format", "--device", "--threads", "--max-new-tokens"):
        assert option in done.stdout


def test_the_installed_command_tells_its_version() -> None:
    command = Path(sys.executable).with_name("pycrispasr" + (".exe" if os.name == "nt" else ""))
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"pycrispasr {pycrispasr.__version__} (ggml ")
    assert done.stderr == ""


def test_info_prints_metadata_sizes_types_and_memory(nano_path: Path) -> None:
    done = run("info", nano_path)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("moss_transcribe.llm.hidden_size", "384 texts", "F32", "memory:", "parameters"):
        assert words in done.stdout
    done = run("info", "--json", nano_path)
    content = json.loads(done.stdout)
    assert content["metadata"]["general.architecture"] == "moss_transcribe"
    assert content["sizes"]["llm_hidden"] == content["metadata"]["moss_transcribe.llm.hidden_size"] == 64
    assert sum(group["bytes"] for group in content["types"]) <= nano_path.stat().st_size
    assert sum(group["parameters"] for group in content["types"]) >= content["sizes"]["parameters"]
    assert content["memory"]["weights"] == content["sizes"]["weight_bytes"]
    assert 0 < content["memory"]["buffers"] < 20e6
    assert len(content["tensors"]) == sum(group["count"] for group in content["types"])
    assert content["checked"] == {"tensors": True, "finite": None}


def test_info_lists_tensors_and_reads_all_of_them_when_asked(nano_path: Path, tmp_path: Path) -> None:
    done = run("info", "--tensors", "--check", nano_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "llm.blk.1.ffn.down.weight        F32      (64, 160)                    40,960\n" in done.stdout
    assert done.stdout.endswith("all values are finite\n")

    matrix = gguf_edit.tensor(nano_path, "enc.proj1.weight")
    matrix[5, 6] = np.nan
    damaged = gguf_edit.rewrite(nano_path, tmp_path / "damaged.gguf", tensors={"enc.proj1.weight": matrix})
    assert run("info", damaged).returncode == 0
    done = run("info", "--check", damaged)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'enc.proj1.weight' of" in done.stderr
    assert "not a finite number" in done.stderr
    lacking = gguf_edit.rewrite(nano_path, tmp_path / "lacking.gguf", tensors={"enc.proj1.bias": None})
    done = run("info", lacking)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'enc.proj1.bias'" in done.stderr


def test_devices_are_listed() -> None:
    done = run("devices")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cpu ")
    assert re.search(r"^ +few rows: float by \w+, F32; Q4_K, Q5_K, Q6_K, Q8_0 by ", done.stdout, re.MULTILINE)
    listed = json.loads(run("devices", "--json").stdout)
    assert "cpu" in [device["name"] for device in listed["devices"]]
    assert list(listed["kernels"]) == ["many rows", "few rows"]


def test_verbose_tells_times_on_stderr_only(nano: Model, nano_path: Path, sounds: list[Path]) -> None:
    done = run("transcribe", "-v", "-m", nano_path, "--max-new-tokens", 3, sounds[0])
    assert done.stdout.split("\n") == [*texts(nano, sounds[:1], 3), ""]
    assert "0.6 s of audio" in done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(nano_path: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    soundfile.write(long, np.tile(make_tones(10), 12), 16000)
    with subprocess.Popen(
        [*COMMAND, "transcribe", "-m", nano_path, "--threads", "1", long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_characters_that_the_terminal_lacks_do_not_stop_the_command(nano_path: Path, sounds: list[Path]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("transcribe", "-m", nano_path, "-f", "json", "--max-new-tokens", 60, sounds[0], env=environment)
    assert done.returncode == 0


def test_convert_tells_what_it_lacks(tmp_path: Path) -> None:
    done = run("convert", tmp_path / "missing", tmp_path / "out.gguf")
    assert done.returncode == 1
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("convert", tmp_path, tmp_path / "out.gguf", "--type", "q9").returncode == 2

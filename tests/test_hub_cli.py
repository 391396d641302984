"""`pycrispasr models`, called as a person calls it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pycrispasr import ModelNotFoundError, UsageError
from pycrispasr.cli import app
from pycrispasr.models import hub

from . import hub_server
from .hub_server import CONTENT, MOSS, NEW, OLD, environment

COMMAND = (sys.executable, "-m", "pycrispasr", "models")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_tells_type_size_and_place(server: hub_server.Hub) -> None:
    lines = [line.split(maxsplit=3) for line in run().splitlines()]
    assert lines[0] == ["name", "type", "size", "where"]
    assert [line[0] for line in lines[1:]] == [model.name for model in hub.models()]
    assert lines[2] == ["moss-transcribe", "Q4_K", "~2.82", "GB  not here"]
    path = run("download", "moss-transcribe").strip()
    assert Path(path).read_bytes() == CONTENT
    assert run().splitlines()[2].split() == ["moss-transcribe", "Q4_K", "1.02", "MB", path]


def test_the_list_shows_revisions(server: hub_server.Hub, nano_path: Path) -> None:
    server.add("org/nano", "nano.gguf", nano_path.read_bytes(), (OLD,))
    path = run("download", "org/nano:nano.gguf", "--revision", "v1").strip()
    assert run().splitlines()[-1].split() == ["org/nano:nano.gguf", "(revision", f"{OLD})", "F32", "1.14", "MB", path]
    assert run("path", "org/nano:nano.gguf", "--revision", OLD).strip() == path


def test_json_is_for_programs(server: hub_server.Hub) -> None:
    path = run("download", "moss-transcribe").strip()
    listed = {model["name"]: model for model in json.loads(run("--json"))}
    assert listed["moss-transcribe"]["path"] == path
    assert listed["moss-transcribe"]["size"] == len(CONTENT)
    assert listed["moss-transcribe"]["licence"] == "Apache-2.0"
    assert listed["moss-transcribe:q8_0"] == {
        "name": "moss-transcribe:q8_0",
        "type": "Q8_0",
        "repo": MOSS,
        "file": "moss-transcribe-preview-2b-q8_0.gguf",
        "revision": None,
        "size": None,
        "approximate_size": 3_520_000_000,
        "sha256": None,
        "description": listed["moss-transcribe"]["description"],
        "licence": "Apache-2.0",
        "path": None,
    }


def test_path_never_fetches(server: hub_server.Hub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"run `pycrispasr models download moss-transcribe` first"):
        run("path", "moss-transcribe")
    assert not server.requests
    assert run("path", "tiny") == f"{hub.resolve('tiny')}\n"
    path = run("download", "moss-transcribe")
    assert run("path", "moss-transcribe") == path


def test_remove(server: hub_server.Hub) -> None:
    path = Path(run("download", "moss-transcribe").strip())
    result = CliRunner().invoke(app, ["models", "remove", "moss-transcribe"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{path}\nmoss-transcribe: 1.02 MB removed\n"
    assert not path.exists()
    assert (
        CliRunner().invoke(app, ["models", "remove", "moss-transcribe"]).stderr == "moss-transcribe: not in the cache\n"
    )
    with pytest.raises(UsageError, match=r"'tiny' does not lie in the Hugging Face hub's cache, but is "):
        run("remove", "tiny")


def on_a_terminal(arguments: list[str], env: dict[str, str], answer: bytes = b"") -> tuple[int, str]:
    """Exit status, and all that a terminal shows of a command."""
    pty = pytest.importorskip("pty")
    main, side = pty.openpty()
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar needs a width
    with subprocess.Popen([*COMMAND, *arguments], env=env, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        if answer:
            os.write(main, answer)
        shown = b""
        while True:
            try:
                block = os.read(main, 1 << 16)
            except OSError:  # Linux: the other side is closed
                break
            if not block:
                break
            shown += block
    os.close(main)
    return process.returncode, shown.decode()


def test_a_terminal_shows_how_much_has_arrived_and_how_fast(server: hub_server.Hub, tmp_path: Path) -> None:
    server.add("org/large", "large.gguf", CONTENT * 24)
    status, shown = on_a_terminal(["download", "org/large"], environment(server, tmp_path))
    assert status == 0
    assert "large.gguf: 100%" in shown
    assert "24.6M/24.6M" in shown
    assert "B/s]" in shown
    assert "checking: 100%" in shown
    assert shown.strip().splitlines()[-1].endswith(f"{NEW}/large.gguf")


def test_progress_bars_can_be_turned_off(server: hub_server.Hub, tmp_path: Path) -> None:
    env = environment(server, tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="1")
    status, shown = on_a_terminal(["download", "org/repo"], env)
    assert status == 0
    assert [Path(line).name for line in shown.splitlines()] == ["model.gguf"]


def test_nothing_but_the_path_is_shown_elsewhere(server: hub_server.Hub, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "download", "org/repo"],
        env=environment(server, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert [Path(line).name for line in done.stdout.splitlines()] == ["model.gguf"]


@pytest.mark.parametrize(("answer", "options"), [(b"y\n", []), (b"n\n", []), (b"", ["--yes"])])
def test_a_terminal_is_asked_before_anything_is_removed(
    server: hub_server.Hub, tmp_path: Path, answer: bytes, options: list[str]
) -> None:
    path = hub.resolve("moss-transcribe")
    env = environment(server, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache"))
    status, shown = on_a_terminal(["remove", "moss-transcribe", *options], env, answer)
    assert ("Remove it?" in shown) == bool(answer)
    assert status == (answer == b"n\n")
    assert path.exists() == (answer == b"n\n")


def test_a_failure_is_one_line(server: hub_server.Hub, tmp_path: Path) -> None:
    server.status = 500
    done = subprocess.run(
        [*COMMAND, "download", "moss-transcribe"],
        env=environment(server, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pycrispasr: {server.url} fails to give out moss-transcribe (500): try again later\n"

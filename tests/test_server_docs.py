"""What docs/serve.md shows works against a server, and what runs the server in a container or as a unit fits it."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pycrispasr.cli import app

from .serving import ServerOptions, Serving, serving
from .test_docs import ROOT, ROUNDED, Block, blocks_of, trimmed

BLOCKS = [block for block in blocks_of("docs/serve.md") if block.reason]
RUN = "needs the server; tests/test_server_docs.py runs it"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


def shown_behind(block: Block) -> str:
    """The block of text behind one that `test_docs` does not run."""
    text = (ROOT / block.page).read_text("utf-8")
    behind = text[text.index(block.code) + len(block.code) :]
    found = re.match(r"```\n\n```text\n(.*?)```\n", behind, re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block.line)) for block in BLOCKS if block.reason == RUN])
def test_examples_print_what_is_shown(server: Serving, block: Block, tmp_path: Path) -> None:
    command = [sys.executable, "-c"]
    if block.language == "sh":
        if shutil.which("curl") is None or sys.platform == "win32":
            pytest.skip("there is no curl, or no bash")
        command = ["bash", "-euo", "pipefail", "-c"]
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    code = block.code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run(
        [*command, code], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    got, expected = done.stdout, shown_behind(block)
    assert trimmed(ROUNDED.sub("#", got)) == trimmed(ROUNDED.sub("#", expected))
    assert [*map(float, ROUNDED.findall(got))] == pytest.approx([*map(float, ROUNDED.findall(expected))], abs=0.011)


def options() -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    return {name: one for one in command.commands["serve"].params for name in one.opts}


def test_the_page_has_every_option_with_its_default() -> None:
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    table = page[page.index("## Options") : page.index("The first model is loaded at once")]
    for name in options():
        assert name.startswith("--no-") or not name.startswith("--") or f"`{name}" in table, name
    defaults = ServerOptions()
    for name in ("max_upload", "max_seconds", "parallel", "queue", "sessions", "timeout"):
        option = options()["--" + name.replace("_", "-")]
        assert option.default == getattr(defaults, name)
        (row,) = re.findall(rf"^\| `{option.opts[0]} \w+` \| (\S+) \|", table, re.MULTILINE)
        assert float(row) == option.default


def test_the_image_starts_the_server_and_looks_after_it(server: Serving) -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    entry, usual = (json.loads(line) for line in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE))
    program, command, *arguments = [*entry, *usual]
    assert (program, command) == ("pycrispasr", "serve")
    assert {one for one in arguments if one.startswith("-")} <= set(options())
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    (check,) = re.findall(r"^    CMD (\[.*\])$", text, re.MULTILINE)
    _, *check_arguments = json.loads(check)

    def healthy(port: int) -> bool:
        code = [part.replace(":8000", f":{port}") for part in check_arguments]
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run([sys.executable, *code], env=environment, capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    assert healthy(server.port)
    server.service.models.first.failure = RuntimeError()
    assert not healthy(server.port)
    server.service.models.first.failure = None


def test_the_unit_gives_options_that_there_are_and_time_to_end() -> None:
    (block,) = (one for one in BLOCKS if one.language == "ini")
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block.code)
    service = unit["Service"]
    _, command, *arguments = shlex.split(service["ExecStart"])
    assert command == "serve"
    assert {one for one in arguments if one.startswith("-")} <= set(options())
    assert int(service["TimeoutStopSec"]) > options()["--grace"].default
    compose = (ROOT / "compose.yaml").read_text("utf-8")
    (seconds,) = re.findall(r"stop_grace_period: (\d+)s", compose)
    assert int(seconds) > options()["--grace"].default

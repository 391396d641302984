"""What the documentation shows works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pycrispasr.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/word-times.md")  # whose examples run without a network
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.strip().splitlines()[-1].strip())
def test_every_python_example_runs(example: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_the_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert first is not None
    assert first[1].splitlines() == [
        "pip install . && pycrispasr transcribe -m tiny samples/*.wav",
        "pip install '.[test]' && pytest",
    ]


def test_every_command_of_the_readme_exists() -> None:
    commands = re.findall(
        r"pycrispasr (\w+)", "\n".join(re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))
    )
    assert {"transcribe", "info", "devices", "convert", "quantize", "bench"} == set(commands)
    for command in set(commands):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("models.md", {"convert", "quantize", "imatrix", "info"}),
        ("performance.md", {"bench", "diff"}),
        ("word-times.md", {"transcribe", "align-heads"}),
    ],
)
def test_every_command_and_option_of_the_pages_exists(name: str, commands: set[str]) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?pycrispasr ([\w-]+)(.*)$", page, re.MULTILINE)
    assert commands <= {command for command, _ in lines}
    for command, rest in lines:
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert set(re.findall(r" (--?[a-z][\w-]*)", rest.partition("#")[0])) <= set(
            re.findall(r"--?[a-z][\w-]*", shown.stdout)
        )


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/performance.md", "docs/word-times.md"]
)
def test_files_that_the_documents_name_are_there(name: str) -> None:
    for path in re.findall(
        r"`((?:csrc|src|tests|tools|cmake|licenses|training|benchmarks)/[\w./]+)`", (ROOT / name).read_text("utf-8")
    ):
        assert (ROOT / path).exists() or list((ROOT / path).parent.glob(Path(path).name + ".*")), path

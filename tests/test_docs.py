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
PAGES = [
    "README.md",
    "docs/audio.md",
    "docs/command-line.md",
    "docs/drop-in.md",
    "docs/long-audio.md",
    "docs/output.md",
    "docs/streaming.md",
    "docs/word-times.md",
]
EXAMPLES = [
    pytest.param(code, shown, id=f"{page}: {code.strip().splitlines()[-1].strip()}")
    for page in PAGES
    for code, shown in re.findall(
        r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?",
        (ROOT / page).read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
]


@pytest.mark.parametrize(("example", "shown"), EXAMPLES)
def test_every_python_example_of_the_pages_runs_and_prints_what_is_shown(example: str, shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert shown.strip() in ("", done.stdout.strip())


def test_the_command_line_page_shows_what_is_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    (listed,) = re.findall(r"^```text\n(audio,speaker\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "list.csv").write_text(listed, encoding="utf-8")
    shown = re.findall(r"^```sh\n(pycrispasr[^\n]*)\n```\n\n```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 4

    def without_times(text: str) -> str:
        return re.sub(r"in [\d.]+ s|[\d.]+ times", "", text)

    for command, wanted in shown:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        results = tmp_path / "results.csv"
        got = results.read_text("utf-8") if "--results" in command else done.stdout or done.stderr
        assert without_times(got) == without_times(wanted)


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
    assert {"transcribe", "live", "models", "info", "devices", "convert", "quantize", "bench"} == set(commands)
    for command in set(commands):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("command-line.md", {"transcribe", "live", "models", "info", "devices", "convert", "quantize", "bench"}),
        ("long-audio.md", {"transcribe"}),
        ("models.md", {"models", "convert", "quantize", "imatrix", "info"}),
        ("performance.md", {"bench", "diff"}),
        ("word-times.md", {"transcribe", "align-heads"}),
    ],
)
def test_every_command_and_option_of_the_pages_exists(name: str, commands: set[str]) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?pycrispasr ([\w-]+)(.*)$", page, re.MULTILINE)
    assert commands <= {command for command, _ in lines}
    for command, rest in lines:
        groups = {group.name: group.typer_instance for group in app.registered_groups}
        words = rest.split()
        within = [words[0]] if command in groups and words and words[0][0] not in "-#" else []  # models download
        shown = CliRunner().invoke(app, [command, *within, "--help"])
        assert shown.exit_code == 0, (command, rest)
        assert set(re.findall(r" (--?[a-z][\w-]*)", rest.partition("#")[0])) <= set(
            re.findall(r"--?[a-z][\w-]*", shown.stdout)
        )


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/performance.md", "docs/ray.md"])
def test_files_that_the_documents_name_are_there(name: str) -> None:
    for path in re.findall(
        r"`((?:csrc|docs|src|tests|tools|cmake|licenses|training|benchmarks)/[\w./]+)`",
        (ROOT / name).read_text("utf-8"),
    ):
        assert (ROOT / path).exists() or list((ROOT / path).parent.glob(Path(path).name + ".*")), path

"""What the documentation shows works: every block of code in it is run, or says why it is not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

import pycrispasr
from pycrispasr import errors
from pycrispasr.cli import app

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>\n]+) -->\n\n?)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of code of a page, and the block of text behind it, which shows what it prints."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    shown: str | None


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        language, code, reason = match["language"], match["code"], match["reason"]
        follows = bool(found) and not text[end : match.start()].strip()
        if follows and language == "text" and not reason and found[-1].language in ("python", "sh"):
            found[-1] = found[-1]._replace(shown=code)
        else:
            found.append(Block(page, text.count("\n", 0, match.start("language")) + 1, language, code, reason, None))
        end = match.end()
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def cases(*languages: str) -> list[Any]:
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in BLOCKS if block.language in languages]


def runnable(*languages: str) -> list[Any]:
    return [case for case in cases(*languages) if case.values[0].reason is None]


def run(command: list[str], folder: Path, shown: str | None) -> None:
    """Runs a command that must succeed, say nothing to stderr, and print what is shown, or else anything."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        "PYTHONUTF8": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    if shown is not None:
        assert trimmed(ROUNDED.sub("#", done.stdout)) == trimmed(ROUNDED.sub("#", shown))
        for got, expected in zip(ROUNDED.findall(done.stdout), ROUNDED.findall(shown), strict=True):
            assert float(got) == pytest.approx(
                float(expected), abs=0.0101 if len(expected.split(".")[1]) == 2 else 0.005
            )


# Times and probabilities: their last digits differ with a processor's kernels.
ROUNDED = re.compile(r"(?<![\d.])\d+\.\d{2,3}(?![\d.])")


def trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("block", [pytest.param(block, id=f"{block.page}:{block.line}") for block in BLOCKS])
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.language in ("python", "sh", "console") or block.reason, (
        "neither run nor marked: write <!-- not run: REASON --> above it"
    )


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_overlooked(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    fences = [line for line in text.splitlines() if line.lstrip().startswith(("```", "~~~"))]
    assert len(fences) == 2 * len(list(FENCE.finditer(text)))
    reasons = [match for match in FENCE.finditer(text) if match["reason"]]
    assert text.count("<!-- not run") == len(reasons), "a mark that belongs to no block"


@pytest.mark.parametrize("block", runnable("python"))
def test_python_runs_and_prints_what_is_shown(block: Block) -> None:
    run([sys.executable, "-c", block.code], ROOT, block.shown)


@pytest.mark.parametrize("block", cases("python"))
def test_python_that_is_not_run_could_be(block: Block) -> None:
    compile(block.code, block.page, "exec")


@pytest.mark.skipif(sys.platform == "win32", reason="these are commands for a Unix shell")
@pytest.mark.parametrize("block", runnable("sh", "console"))
def test_commands_run_and_print_what_is_shown(block: Block, tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    steps = [(block.code, block.shown)]
    if block.language == "console":
        parts = re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]
        steps = [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]
    for command, shown in steps:
        merged = f"{{ {command}\n}} 2>&1"  # as on a terminal
        run(["bash", "-euo", "pipefail", "-c", merged], tmp_path, shown)


def calls(block: Block) -> list[list[str]]:
    """The words of every call of `pycrispasr` in a block."""
    code = block.code.replace("\\\n", " ")
    if block.language == "console":
        code = "\n".join(re.findall(r"^\$ (.*)$", code, re.MULTILINE))
    found: list[list[str]] = []
    for line in code.splitlines():
        begins, inside = True, False  # a command, a call of ours
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in lexer:
            if set(word) <= set("<>"):
                begins = False
            elif set(word) <= set("();|&"):
                begins, inside = True, False
            elif begins and word == "pycrispasr":
                found.append([])
                begins, inside = False, True
            elif inside:
                found[-1].append(word)
            else:
                begins = begins and "=" in word
    return found


@pytest.mark.parametrize("block", [case for case in cases("sh", "console") if calls(case.values[0])])
def test_commands_and_options_exist(block: Block) -> None:
    for words in calls(block):
        command: Any = typer.main.get_command(app)
        while getattr(command, "commands", None):
            if not words or words[0].startswith("-"):
                break
            assert words[0] in command.commands, f"pycrispasr has no command {words[0]!r}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= {*known, "--help"}, f"pycrispasr {command.name} has no option {given - known}"


def test_the_command_line_page_shows_what_is_printed_but_for_times(tmp_path: Path) -> None:
    blocks = blocks_of("docs/command-line.md")
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    (listed,) = (block.code for block in blocks if block.code.startswith("audio,speaker\n"))
    (tmp_path / "list.csv").write_text(listed, encoding="utf-8")

    def without_times(text: str) -> str:
        return re.sub(r"in [\d.]+ s|[\d.]+ times", "", text)

    shown = [block for block in blocks if block.language == "sh" and block.shown is not None]
    assert len(shown) == 4
    for block in shown:
        done = subprocess.run(
            [sys.executable, "-m", *block.code.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        results = tmp_path / "results.csv"
        got = results.read_text("utf-8") if "--results" in block.code else done.stdout or done.stderr
        assert without_times(got) == without_times(block.shown or "")


def test_the_readme_begins_with_the_two_commands() -> None:
    first = next(block for block in blocks_of("README.md") if block.language == "sh")
    assert first.code.splitlines() == [
        "pip install . && pycrispasr transcribe -m tiny samples/*.wav",
        "pip install '.[test]' && pytest",
    ]


def test_troubleshooting_has_every_error_and_its_way_out() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    sections = re.findall(r"^### `(\w+)`\n\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    assert sorted(name for name, _ in sections) == sorted(errors.__all__)
    assert all("**Way out.**" in section for _, section in sections)


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    documented = set(re.findall(r"^::: pycrispasr\.(\w+)$", page, re.MULTILINE))
    assert "errors" in documented
    missing = set(pycrispasr.__all__) - set(errors.__all__) - documented
    assert missing == {"Event", "__version__"}  # the former is the five events together


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_the_documents_name_are_there(name: str) -> None:
    for path in re.findall(
        r"`((?:csrc|docs|src|tests|tools|cmake|licenses|training|benchmarks)/[\w./]+)`",
        (ROOT / name).read_text("utf-8"),
    ):
        assert (ROOT / path).exists() or list((ROOT / path).parent.glob(Path(path).name + ".*")), path

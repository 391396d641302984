"""`pycrispasr transcribe` stopped by Ctrl-C, on a full disk, and what it shows on a terminal and elsewhere."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from .command import begin, on_terminal, pictures, run
from .sounds import SAMPLES, Composition

TINY = ("transcribe", "-m", "tiny")
TEXTS = {path.stem: path.read_text(encoding="utf-8").strip() for path in SAMPLES.glob("*.txt")}
HELLO, DIGITS = SAMPLES / "hello.wav", SAMPLES / "digits.wav"

unix = pytest.mark.skipif(os.name == "nt", reason="signals and terminals of Unix")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour, which takes a while."""
    return Composition(3600).write(tmp_path_factory.mktemp("long") / "long.flac")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)


@unix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_done_and_writes_what_was_begun_as_partial(
    number: int, long: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = tmp_path / "results.csv"
    command = (*TINY, HELLO, long, DIGITS, "-f", "srt", "-f", "txt", "-o", out, "--results", results, "--stdout")
    with begin(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for(out / "hello.txt", process)
        assert process.stdout.readline() == b"hello\n"
        heard = process.stdout.read(100)  # of the next one's text
        process.send_signal(number)
        process.wait(60)
        rest, told = process.stdout.read(), process.stderr.read().decode()
    assert process.returncode == 128 + number
    assert sorted(path.name for path in out.iterdir()) == [
        "hello.srt", "hello.txt", "long.partial.srt", "long.partial.txt",
    ]  # fmt: skip
    partial = (out / "long.partial.txt").read_text("utf-8")
    assert partial == (heard + rest).decode()  # each on a line of its own
    assert partial.count("\n") == 1
    assert len(partial.split()) < len(Composition(3600).words)
    first = Composition(3600).words[:8]
    assert partial.split()[: len(first)] == first
    assert len(results.read_text().splitlines()) == 2  # the names, and hello
    assert "long.partial.txt: 1 h" not in told
    assert "stopped before its end" in told
    assert re.search(r"^1 of 3 recordings done; ", told, re.MULTILINE)
    assert told.splitlines()[-1].startswith(
        f"pycrispasr: stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}"
    )
    assert "Traceback" not in told

    done = run(*TINY, HELLO, DIGITS, "-f", "srt", "-f", "txt", "-o", out, "--results", results, "--resume")
    assert (done.returncode, len(results.read_text().splitlines())) == (0, 3)


@unix
def test_ctrl_c_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    with begin(*TINY, HELLO, "-", "-o", tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        wait_for(tmp_path / "hello.txt", process)
        time.sleep(0.5)  # until it reads; nothing tells when
        process.send_signal(signal.SIGINT)
        process.wait(60)
        told = process.stderr.read().decode()
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["hello.txt"]
    assert re.search(r"^1 of 2 recordings done", told, re.MULTILINE)
    assert "Fatal" not in told


HANGS = """
import pathlib, time
from pycrispasr import Model
from pycrispasr.runtimes import native
from pycrispasr.cli import main
def hang(*arguments, **options):
    pathlib.Path({mark!r}).touch()
    time.sleep(600)
{code}
main()
"""


@unix
@pytest.mark.parametrize(
    ("code", "times"),
    [
        ("native.NativeSession.run = hang", 2),
        (  # CrispASR's library cannot be stopped
            "from pycrispasr.decoding.decoder import CrispasrDecoder; CrispasrDecoder.step = hang; "
            "from pycrispasr.runtimes.crispasr import CrispasrModel; "
            "Model._decoder = lambda *_: CrispasrDecoder(CrispasrModel.__new__(CrispasrModel), 512)",
            1,
        ),
    ],
)
def test_the_first_or_second_ctrl_c_leaves_at_once(code: str, times: int, tmp_path: Path) -> None:
    mark = tmp_path / "reached"
    script = HANGS.format(mark=str(mark), code=code)
    with subprocess.Popen([sys.executable, "-c", script, *TINY, str(HELLO)], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        wait_for(mark, process)
        for _ in range(times - 1):
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
        told = process.stderr.read().decode()
    assert process.returncode == 130
    assert told == "pycrispasr: stopped by Ctrl-C\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk, where it may")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def check_full(done: subprocess.CompletedProcess[str], out: Path, reason: str) -> None:
    """The words of the long recording found no room; what came after it did."""
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("pycrispasr")]
    assert len(errors) == 1
    assert f"long.json' cannot be written ({reason}): name a writable folder with -o" in errors[0]
    assert re.search(r"^2 of 3 recordings done, 1 failed; ", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(out)) == ["digits.json", "hello.json"]


def test_a_full_disk_is_one_sentence_and_the_rest_goes_on(small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "out"
    long = Composition(100).write(tmp_path / "long.flac")
    check_full(run(*TINY, HELLO, long, DIGITS, "-f", "json", "-o", out), out, "No space left on device")


@unix
def test_a_file_that_may_not_grow_is_one_sentence_and_the_rest_goes_on(tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    out, results = tmp_path / "out", tmp_path / "results.jsonl"
    long = SAMPLES / "long.wav"
    check_full(run(*TINY, HELLO, long, DIGITS, "-f", "json", "-o", out, preexec_fn=limit), out, "File too large")

    done = run(*TINY, HELLO, long, DIGITS, "--results", results, preexec_fn=limit)
    assert done.returncode == 1
    assert [line.split('"', 5)[3] for line in results.read_text().splitlines()] == [str(HELLO), str(DIGITS)]
    assert len([line for line in done.stderr.splitlines() if "results.jsonl' cannot be written" in line]) == 1
    assert done.stdout.split("\n") == [TEXTS["hello"], TEXTS["long"], TEXTS["digits"], ""]


@unix
@pytest.mark.parametrize("columns", [80, 30, *(pytest.param(one, marks=pytest.mark.slow) for one in (50, 200))])
def test_a_terminal_shows_a_bar_with_time_speed_and_text(columns: int, tmp_path: Path) -> None:
    """Each picture of it has two lines at the most, however narrow the terminal is."""
    recordings = [Composition(60, seed=seed).write(tmp_path / f"talk {seed}.flac") for seed in range(3)]
    missing = tmp_path / "missing.wav"
    command = (*TINY, *recordings, missing, "-f", "srt", "-o", tmp_path / "out")
    status, shown = on_terminal(*command, columns=columns)
    assert status == 1
    lines = pictures(shown)
    assert max(len(line) for line in lines if "missing" not in line and "recordings" not in line) <= columns
    state = r"\d of 4, \d:\d\d of (about )?\d:\d\d, \d+(\.\d)?x, \d:\d\d left"[: 14 if columns == 30 else None]
    bars = [line for line in lines if re.search(state, line)]
    assert bars
    if columns >= 80:
        assert any("━" in line and "talk 0.flac" in line for line in bars)
    words = set(" ".join(TEXTS.values()).split())
    assert any(len(words.intersection(line.split())) >= 3 for line in lines)
    assert sum("missing.wav" in line and line.startswith("pycrispasr:") for line in lines) == 1
    assert [line for line in lines if "recordings done" in line] == [lines[-1]]
    assert lines[-1].startswith("3 of 4 recordings done, 1 failed; 3 min ")
    assert sorted(os.listdir(tmp_path / "out")) == [f"talk {seed}.srt" for seed in range(3)]


@unix
def test_text_stands_above_the_bar_and_stays(tmp_path: Path) -> None:
    recording = Composition(70).write(tmp_path / "talk.flac")
    texts = [line.split("\t")[2] for line in run(*TINY, "-f", "tsv", recording).stdout.splitlines()[1:]]
    status, shown = on_terminal(*TINY, recording, columns=400)
    assert status == 0
    lines = iter(pictures(shown))
    assert all(text in lines for text in texts)  # one below the other

    with (tmp_path / "out.txt").open("wb") as file:  # a bar, although the text goes elsewhere
        status, shown = on_terminal(*TINY, recording, stdout=file.fileno())
    assert status == 0
    assert "━" in shown
    assert (tmp_path / "out.txt").read_text() == " ".join(texts) + "\n"


@unix
def test_ctrl_c_on_a_terminal_takes_the_bar_away(long: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, shown = on_terminal(*TINY, HELLO, long, "-o", out, until=(out / "hello.txt").exists)
    assert status == 130
    lines = pictures(shown)
    assert lines[-1].startswith("pycrispasr: stopped by Ctrl-C")
    assert lines[-2].startswith("1 of 2 recordings done; ")


def test_elsewhere_only_lines_are_written_and_only_where_wanted(tmp_path: Path) -> None:
    done = run(*TINY, HELLO, DIGITS)
    assert (done.returncode, done.stderr) == (0, "")
    for options in (["-v"], ["-o", str(tmp_path)]):
        done = run(*TINY, *options, HELLO, DIGITS)
        lines = [line for line in done.stderr.splitlines() if "s of audio in" in line]
        assert [line.split(": ")[0] for line in lines[:2]] == (
            [str(HELLO), str(DIGITS)]
            if options == ["-v"]
            else [str(tmp_path / f"{n}.txt") for n in ("hello", "digits")]
        )
        assert re.fullmatch(
            r"2 recordings done; 3.9 s of audio in .* s, [\d.]+ times as fast as it was spoken", lines[2]
        )
        assert "\x1b" not in done.stderr


def test_every_half_minute_a_line_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycrispasr.cli import progress

    ticks = itertools.count(0, 10)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    with progress.Progress(3, verbose=False, files=True) as told:
        for step in range(7):
            told.update("talk.mp3", 100.0 * step, jobs=1, known=(1500.0, 2), text="never shown")
    assert capsys.readouterr().err.splitlines()[0] == "talk.mp3: 1 of 3, 3:20 of about 37:30, 5.0x, 6:50 left"


STARTS = """
import signal
take = signal.signal
def tell(*arguments):
    signal.signal = take
    print("up", take(*arguments) is not None, flush=True)
signal.signal = tell
from pycrispasr.__main__ import main
main()
"""


@unix
@pytest.mark.parametrize("wait", [0, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_while_the_command_starts_is_silent(wait: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS, "live", "-m", "tiny", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"up True\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"")

"""CrispASR's library in a process of its own: its end is an error, it is cancelled, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import multiprocessing.spawn
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

import pycrispasr
from pycrispasr import Model
from pycrispasr.runtimes import crispasr, crispasr_process

from . import whisper_file
from .sounds import make_tones

pytestmark = [
    pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45"),
    pytest.mark.skipif(os.name == "nt", reason="signals"),
]
SOUND = make_tones(2, seed=3)
HEADER = ["magic", "vocabulary", "audio context", "audio state", "audio heads", "audio layers", "text context"]
HEADER += ["text state", "text heads", "text layers", "mels", "type"]


@pytest.fixture(scope="module")
def whisper_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolated") / "whisper.bin"
    whisper_file.write_random(path)
    return path


def test_what_the_library_prints_is_logged_once(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pycrispasr")
    printed = model._crispasr._child._errors.fileno()
    for line in ("first\n", "second\n"):
        os.write(printed, line.encode())
        model.transcribe(SOUND, sample_rate=16000)
    assert [message for message in caplog.messages if message in ("first", "second", "first\\nsecond")] == [
        "first",
        "second",
    ]


@pytest.fixture
def model(whisper_path: Path) -> Iterator[Model]:
    with Model(whisper_path, threads=1, isolate=True) as opened:
        yield opened


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def child_of(model: Model) -> int:
    child = model._crispasr._child
    return child._process.pid


def text_of(model: Model) -> str:
    return model.transcribe(SOUND, sample_rate=16000).text


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def on_segment(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any, int], None]], None]:
    """Has something called with the child and the number of the segment, before the child gets that."""
    ask = crispasr_process._Child.ask
    count = iter(range(1000))

    def set_call(call: Callable[[Any, int], None]) -> None:
        def asked(self: Any, request: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
            if payload:
                call(self, next(count))
            return ask(self, request, payload)

        monkeypatch.setattr(crispasr_process._Child, "ask", asked)

    return set_call


def signalled(number: int, *segments: int) -> Callable[[Any, int], None]:
    def call(child: Any, segment: int) -> None:
        if segment in segments:
            os.kill(child._process.pid, number)
            if number != signal.SIGSTOP:
                os.waitid(os.P_PID, child._process.pid, os.WEXITED | os.WNOWAIT)

    return call


def test_the_transcript_is_the_same_as_in_this_process(whisper_path: Path, model: Model) -> None:
    with Model(whisper_path, threads=1, isolate=False) as inside:
        assert not isinstance(inside._crispasr, crispasr_process.IsolatedCrispasrModel)
        wanted = inside.transcribe(SOUND, sample_rate=16000)
    found = model.transcribe(SOUND, sample_rate=16000)
    assert dataclasses.replace(found, timings=wanted.timings) == wanted
    assert wanted.segments[0].tokens


def test_a_foreign_model_is_isolated_unless_told_otherwise(whisper_path: Path) -> None:
    with Model(whisper_path, threads=1) as opened:
        assert isinstance(opened._crispasr, crispasr_process.IsolatedCrispasrModel)
        assert child_of(opened) in children()


@pytest.mark.parametrize(
    ("field", "value"), [("audio heads", 0), ("audio heads", 7), ("type", -1), ("text layers", -1), ("text state", 0)]
)
def test_a_file_that_ends_the_library_s_process_is_an_error(
    whisper_path: Path, tmp_path: Path, field: str, value: int
) -> None:
    content = bytearray(whisper_path.read_bytes())
    struct.pack_into("<i", content, 4 * HEADER.index(field), value)
    path = tmp_path / "damaged.bin"
    path.write_bytes(content)
    before = children()
    with pytest.raises(
        pycrispasr.ModelFormatError, match=r"damaged\.bin.* ended its process \(SIG(ABRT|FPE|SEGV)"
    ) as caught:
        Model(path, threads=1)
    assert "\n" not in str(caught.value)
    assert children() == before


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (signal.SIGABRT, pycrispasr.DeviceError, r"whisper\.bin.*ended its process \(SIGABRT\).*used again"),
        (signal.SIGSEGV, pycrispasr.DeviceError, r"ended its process \(SIGSEGV\)"),
        (signal.SIGKILL, pycrispasr.OutOfMemoryError, r"the system ended the process .*\(SIGKILL\)"),
    ],
)
def test_the_model_can_be_used_again_after_its_process_has_ended(
    model: Model, on_segment: Any, number: int, error: type[Exception], message: str
) -> None:
    wanted, first = text_of(model), child_of(model)
    on_segment(signalled(number, 0))
    with pytest.raises(error, match=message):
        text_of(model)
    assert first not in children()
    assert text_of(model) == wanted
    assert child_of(model) != first


def test_an_idle_process_that_has_ended_is_an_error_once(model: Model) -> None:
    wanted = text_of(model)
    os.kill(child_of(model), signal.SIGTERM)
    with pytest.raises(pycrispasr.DeviceError, match="SIGTERM"):
        text_of(model)
    assert text_of(model) == wanted


def test_the_end_of_its_process_costs_one_segment(model: Model, on_segment: Any) -> None:
    sound = np.concatenate([SOUND, np.zeros(30 * 16000, np.float32), SOUND, np.zeros(30 * 16000, np.float32), SOUND])
    on_segment(signalled(signal.SIGSEGV, 1))
    transcript = model.transcribe(sound, sample_rate=16000, vad="off")
    statuses = [segment.status for segment in transcript.segments]
    assert statuses.count("failed") == 1
    assert statuses[0] == statuses[-1] == "ok"
    assert not transcript.complete
    assert "SIGSEGV" in next(segment.error for segment in transcript.segments if segment.error)


def test_a_transcription_is_cancelled_while_the_library_computes(model: Model, on_segment: Any) -> None:
    wanted = text_of(model)
    stopped = threading.Event()

    def stop(child: Any, segment: int) -> None:
        if segment == 0:
            os.kill(child._process.pid, signal.SIGSTOP)  # it computes for ever
            stopped.set()

    on_segment(stop)
    before = child_of(model)
    job = model.job([SOUND], sample_rate=16000)
    threading.Thread(target=lambda: (stopped.wait(60), job.cancel())).start()
    with pytest.raises(pycrispasr.CancelledError):
        next(job)
    assert not job.stuck
    assert before not in children()
    assert text_of(model) == wanted


def test_cancelling_one_job_leaves_another_s_segment_alone(model: Model, on_segment: Any) -> None:
    pid = child_of(model)
    on_segment(signalled(signal.SIGSTOP, 0))
    texts: list[str] = []
    one = threading.Thread(target=lambda: texts.append(text_of(model)))
    one.start()
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    waiting = model.job([SOUND], sample_rate=16000)
    threading.Timer(0.2, waiting.cancel).start()
    with pytest.raises(pycrispasr.CancelledError):
        next(waiting)
    os.kill(pid, signal.SIGCONT)
    one.join()
    assert all(texts)
    assert len(texts) == 1
    assert child_of(model) == pid


def test_threads_take_turns(whisper_path: Path, model: Model) -> None:
    with Model(whisper_path, threads=1, isolate=False) as inside:
        wanted = [text_of(inside) for _ in range(3)]  # which differ: Whisper draws lots
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(text_of(model))) for _ in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == sorted(wanted)


@pytest.mark.parametrize("how", ["close", "del", "job"])
def test_no_process_is_left(whisper_path: Path, how: str) -> None:
    before = children()
    opened = Model(whisper_path, threads=1, isolate=True)
    assert len(children() - before) == 1
    job = opened.job([SOUND], sample_rate=16000)
    if how == "close":
        opened.close()
        assert children() == before
        assert next(job).text  # a job that was begun goes on
        assert len(children() - before) == 1
    elif how == "job":
        next(job)
        job.close()
        opened.close()
        assert children() == before
    del job, opened
    gc.collect()
    assert children() == before


PARENT = """
import os, signal, sys, threading, time
import numpy as np
import pycrispasr
model = pycrispasr.Model(sys.argv[1], threads=1, isolate=True)
pid = model._crispasr._child._process.pid
"""


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PARENT + code, str(path)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a forked process that goes on"])
def test_the_process_ends_with_its_parent_also_while_it_computes(whisper_path: Path, forks: bool) -> None:
    code = """
noise = np.random.default_rng(0).standard_normal(16000 * 600).astype(np.float32) * 0.1
threading.Thread(target=lambda: model.transcribe(noise, sample_rate=16000), daemon=True).start()
time.sleep(0.3)
"""
    if forks:
        code += """
other = os.fork()
if other == 0:
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    time.sleep(100)
    os._exit(0)
"""
    done = run(
        code + f"print(pid, {'other' if forks else 0}, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)", whisper_path
    )
    pid, other = map(int, done.stdout.split())
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    if other:
        assert psutil.pid_exists(other)
        os.kill(other, signal.SIGKILL)


def test_a_program_ends_as_usual_with_a_model_open(whisper_path: Path) -> None:
    done = run("print(pid)", whisper_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.parametrize("isolate", [True, False])
def test_a_forked_process_says_that_it_has_no_model_and_leaves_it_alone(whisper_path: Path, isolate: bool) -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
sound = np.ones(16000, np.float32) * 0.01
wanted = model.transcribe(sound, sample_rate=16000).text
child = os.fork()
if child == 0:
    try:
        model.transcribe(sound, sample_rate=16000)
    except pycrispasr.UsageError as error:
        assert "forked" in str(error)
        model.close()
        del model
        with pycrispasr.Model(sys.argv[1], threads=1, isolate=True) as own:
            assert own.transcribe(sound, sample_rate=16000).text == wanted
        sys.exit(7)
    sys.exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(model.transcribe(sound, sample_rate=16000).text == wanted)
"""
    if not isolate:
        code = "model.close(); model = pycrispasr.Model(sys.argv[1], threads=1, isolate=False)\n" + code
    done = run(code, whisper_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\nTrue\n", "")


def test_a_child_that_answers_nonsense_is_ended(whisper_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crispasr_process, "_START", "print('{}\\n[', flush=True); input(); input()")
    before = children()
    with pytest.raises(pycrispasr.ModelFormatError, match="answered nonsense"):
        Model(whisper_path, isolate=True)
    assert children() == before


def test_where_no_process_can_be_started(whisper_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: str(tmp_path / "no-python"))
    with pytest.raises(pycrispasr.DeviceError, match=r"no process can be started .*isolate=False"):
        Model(whisper_path, threads=1)
    monkeypatch.setattr(crispasr_process, "_START", "raise SystemExit('broken')")
    monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: sys.executable)
    with pytest.raises(pycrispasr.DeviceError, match=r"no process can be started .*broken"):
        Model(whisper_path, threads=1)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(pycrispasr.UnsupportedOperationError, match=r"multiprocessing\.set_executable"):
        Model(whisper_path, threads=1, isolate=True)
    with Model(whisper_path, threads=1) as opened:
        assert isinstance(opened._crispasr, crispasr.CrispasrModel)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pycrispasr", "transcribe", "--threads", "1", *map(str, arguments)]


def test_the_command_line_says_it_in_one_line(whisper_path: Path, tmp_path: Path) -> None:
    content = bytearray(whisper_path.read_bytes())
    struct.pack_into("<i", content, 4 * HEADER.index("audio heads"), 0)
    (tmp_path / "damaged.bin").write_bytes(content)
    soundfile.write(tmp_path / "tones.wav", SOUND, 16000)
    done = subprocess.run(
        command("-m", tmp_path / "damaged.bin", tmp_path / "tones.wav"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "CrispASR's library ended its process (SIGFPE)" in done.stderr
    for option in ("--isolate", "--no-isolate"):
        done = subprocess.run(
            command("-m", whisper_path, tmp_path / "tones.wav", option), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()


def test_ctrl_c_ends_the_command_while_the_library_computes(whisper_path: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.tile(SOUND, 300), 16000)
    with subprocess.Popen(command("-m", whisper_path, tmp_path / "long.wav"), stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        until(lambda: bool(psutil.Process(process.pid).children()))
        (child,) = psutil.Process(process.pid).children()
        with contextlib.suppress(psutil.Error):
            until(lambda: child.cpu_times().user > 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not child.is_running()

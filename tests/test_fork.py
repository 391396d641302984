"""A process that is forked while other threads decode and read hangs nowhere: it uses its own, or what was there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .sounds import make_tones

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROOT = Path(__file__).parent.parent
PROGRAM = """
import contextlib, faulthandler, itertools, os, sys, threading, time, traceback, warnings

import numpy as np
import pycrispasr
from pycrispasr import audio

warnings.simplefilter("ignore")  # Python warns of forks beside threads
SOUND, TEXT = "samples/hello.wav", open("samples/hello.txt").read().strip()
FORKS, AT_ONCE, PATIENCE = int(sys.argv[1]), 3, 30

model = pycrispasr.Model("tiny", threads=2)
session = model.session()
session.feed(audio.load(SOUND)[:8000])
pushed = model.session(partial_every=None)
job = model.job([SOUND])
ended = threading.Event()


def push():
    silence = np.zeros(160, np.float32)
    while not ended.is_set():
        with contextlib.suppress(pycrispasr.UsageError):  # the audio's end may come first
            pushed.push(silence)
        pushed.poll()


def listen():
    for _ in pushed.events():
        pass


def decode():
    while not ended.is_set():
        assert model.transcribe(SOUND).text == TEXT


def stream():
    while not ended.is_set():
        with model.session() as one:
            one.push(audio.load(SOUND))
            one.end()
            for event in one.events():
                pass


def open_models():
    while not ended.is_set():
        pycrispasr.Model("tiny", threads=1).close()
        pycrispasr.devices()


def read(path):
    while not ended.is_set():
        audio.load(path)


def child(number):
    uses = (
        lambda: session.feed(DIGITS), session.finish, session.cancel, lambda: next(session.tokens()), session.reset,
        lambda: pushed.push(DIGITS, wait=True), pushed.end, pushed.cancel, lambda: list(pushed.events()),
        lambda: next(job), job.cancel,
    )
    for use in uses:
        try:
            use()
        except pycrispasr.UsageError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("a session of another process")
    pushed.poll(), pushed.text, pushed.lost, job.progress, job.partial()
    for one in (session, pushed, job):
        one.close()
        assert one.closed
    assert len(audio.load("samples/digits.wav")) == len(DIGITS)
    assert len(audio.load(MP3)) == LENGTH
    if M4A:
        assert len(audio.load(M4A)) > 16000
    if number % 2:
        assert model.transcribe(SOUND).text == TEXT  # the parent's, which never changes
    with pycrispasr.Model("tiny", threads=2) as own:
        assert own.transcribe(SOUND).text == TEXT
        with own.session() as one:
            one.push(DIGITS, wait=True)
            one.end()
            one.finish()


DIGITS = audio.load("samples/digits.wav")
MP3 = next(f"samples/{name}" for name in sorted(os.listdir("samples")) if name.endswith(".mp3"))
LENGTH = len(audio.load(MP3))
M4A = sys.argv[2] if len(sys.argv) > 2 else None  # what FFmpeg reads
threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in (
    (decode, ()), (stream, ()), (open_models, ()), (push, ()), (listen, ()),
    (read, (MP3,)), (read, (SOUND,)), *[(read, (M4A,))] * (M4A is not None),
)]
for thread in threads:
    thread.start()
time.sleep(0.5)
running, failed, forked = {}, [], 0
while forked < FORKS or running:
    while forked < FORKS and len(running) < AT_ONCE:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                faulthandler.dump_traceback_later(PATIENCE, exit=True)  # a hang: exits with 1
                child(forked)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        running[pid] = forked
        forked += 1
        time.sleep(0.001 * (forked % 7))
    time.sleep(0.002)
    for pid in list(running):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            number = running.pop(pid)
            if status:
                failed.append((number, status))
ended.set()
pushed.end()
for thread in threads:
    thread.join(PATIENCE)
session.feed(audio.load(SOUND)[8000:])
print(session.finish().text == TEXT, forked, failed)
"""


@pytest.mark.parametrize("forks", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_no_forked_process_hangs(forks: int, tmp_path: Path) -> None:
    more: list[str] = []
    if importlib.util.find_spec("av") is not None:
        from . import sound_files

        more = [str(tmp_path / "tones.m4a")]
        sound_files.ffmpeg(tmp_path / "tones.m4a", [make_tones(2)[:, None]], 16000)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, str(forks), *more],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"True {forks} []\n", "")

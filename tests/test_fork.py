"""A process that was forked while other threads decode and read hangs nowhere: it opens its own, or uses the parent's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROOT = Path(__file__).parent.parent
PROGRAM = """
import faulthandler, os, signal, sys, threading, time, traceback, warnings

import pycrispasr
from pycrispasr import audio

warnings.simplefilter("ignore")  # Python warns of forks beside threads
SOUND, TEXT = "samples/hello.wav", open("samples/hello.txt").read().strip()
FORKS, AT_ONCE, PATIENCE = int(sys.argv[1]), 3, 60

model = pycrispasr.Model("tiny", threads=2)
session = model.session()
session.feed(audio.load(SOUND)[:8000])
ended = threading.Event()


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
    for use in (lambda: session.feed(audio.load(SOUND)), session.text):
        try:
            use()
        except pycrispasr.UsageError as error:
            assert "forked" in str(error), error
    session.close()
    assert len(audio.load("samples/digits.wav")) == len(DIGITS)
    assert len(audio.load(MP3)) == LENGTH
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
threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in (
    (decode, ()), (stream, ()), (open_models, ()), (read, (MP3,)), (read, (SOUND,)),
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
for thread in threads:
    thread.join(PATIENCE)
session.feed(audio.load(SOUND)[8000:])
print(session.finish().text == TEXT, forked, failed)
"""


def run(forks: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, str(forks)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("forks", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_no_forked_process_hangs(forks: int) -> None:
    done = run(forks)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"True {forks} []\n", "")

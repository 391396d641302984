"""What happens to sessions when nobody closes them, when a process forks, and when it ends in the middle."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from pycrispasr import Model

from .sounds import make_tones

HEAD = """
import os, sys, threading, time
import numpy as np
import pycrispasr
sound = (0.3 * np.sin(np.arange(16000 * 20) ** 1.3 / 50)).astype(np.float32)
model = pycrispasr.Model(sys.argv[1], threads=2)
"""


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", HEAD + code, str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


IN_A_THREAD = """
def work():
    while True:
        with model.session(max_new_tokens=4000) as session:
            session.feed(sound)
            session.finish()
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize(
    "code",
    [
        "session = model.session(); session.feed(sound)",
        "session = model.session(); session.push(sound); events = session.events(); next(events)",
        "stream = model.stream(sound, sample_rate=16000); next(stream)",
        "many = model.transcribe_many([sound] * 3, sample_rate=16000, max_new_tokens=5); next(many)",
        IN_A_THREAD,
        IN_A_THREAD + "sys.exit(0)",
    ],
    ids=["session", "events", "stream", "many", "thread", "thread-exit"],
)
def test_a_process_may_end_in_the_middle(nano_path: Path, code: str) -> None:
    done = run(code, nano_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_feeding_thread_may_outlive_everything(nano_path: Path) -> None:
    code = """
session = model.session(max_new_tokens=5)
def push():
    while True:
        session.push(sound[:1600], wait=True)
threading.Thread(target=push, daemon=True).start()
for _, event in zip(range(3), session.events()):
    pass
"""
    done = run(code, nano_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_leaves_the_parent_s_sessions_alone_and_can_make_its_own(nano_path: Path) -> None:
    code = """
import warnings
warnings.simplefilter("ignore")  # Python warns of forks beside threads
wanted = model.transcribe(sound[:32000], sample_rate=16000, max_new_tokens=5).text
session = model.session(max_new_tokens=5)
session.feed(sound[:16000])
def work():
    while True:
        model.transcribe(sound, sample_rate=16000, max_new_tokens=100)
threading.Thread(target=work, daemon=True).start()
for turn in range(5):
    child = os.fork()
    if child == 0:
        try:
            session.feed(sound)
        except pycrispasr.UsageError as error:
            assert "forked" in str(error)
        session.close()
        del session
        with model.session(max_new_tokens=5) as own:
            own.feed(sound[:32000])
            assert own.finish().text == wanted
        model.close()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
session.feed(sound[16000:32000])
print(session.finish().text == wanted)
"""
    done = run(code, nano_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_session_that_nobody_closes_is_freed(nano: Model) -> None:
    for use in (lambda s: s.feed(make_tones(1)), lambda s: s.push(make_tones(1)), lambda s: next(s.tokens(), None)):
        session = nano.session(max_new_tokens=3)
        assert session._driver.decoder is not None
        decoder = weakref.ref(session._driver.decoder)
        with contextlib.suppress(ValueError):
            use(session)
        del session
        gc.collect()
        assert decoder() is None


def test_an_iterator_keeps_its_session_until_it_is_left(nano: Model) -> None:
    session = nano.session(max_new_tokens=3, partial_every=0.3)
    assert session._driver.decoder is not None
    decoder = weakref.ref(session._driver.decoder)
    session.push(make_tones(1))
    session.end()
    events = session.events()
    del session
    assert next(events)
    assert decoder() is not None
    events.close()
    del events
    gc.collect()
    assert decoder() is None

"""Sessions of one model on many threads, cancelled and closed at any time. For sanitizer builds: see CONTRIBUTING."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

import numpy as np
import pytest

from pycrispasr import BusyError, CancelledError, ClosedError, Model, Session, UsageError

from .sounds import make_tones

pytestmark = pytest.mark.serial

SECONDS = float(os.environ.get("PYCRISPASR_STRESS_SECONDS", "3"))
THREADS = int(os.environ.get("PYCRISPASR_STRESS_THREADS", "8"))
FORKS = os.environ.get("PYCRISPASR_STRESS_FORKS", "") == "1"  # not with a sanitizer, whose children may hang
LIMIT = 12  # tokens
SOUND = make_tones(40, seed=1)


def use(session: Session, model: Model, rng: np.random.Generator) -> bool:
    """One recording, in one of the ways in which a session is used. True when its text was compared."""
    sound = SOUND[: int(rng.integers(2000, len(SOUND)))]
    if rng.random() < 0.5:
        start = 0
        while start < len(sound):
            end = start + int(rng.integers(1, 60000))
            session.feed(sound[start:end])
            start = end
    else:
        session.push(sound)
        session.end()
        for _ in session.events():
            pass
    wanted = model.transcribe(sound, sample_rate=16000, max_new_tokens=LIMIT, vad="off")
    assert session.finish().segments == wanted.segments
    return True


def test_sessions_on_many_threads_are_cancelled_and_closed_at_any_time(nano: Model) -> None:
    sessions: list[Session] = [make(nano) for _ in range(THREADS)]
    until = time.monotonic() + SECONDS
    compared, stopped = [0] * THREADS, [0] * THREADS
    failures: list[BaseException] = []

    def work(index: int) -> None:
        rng = np.random.default_rng(index)
        try:
            while time.monotonic() < until:
                try:
                    compared[index] += use(sessions[index], nano, rng)
                except CancelledError as error:
                    stopped[index] += 1
                    if error.partial.complete:
                        failures.append(error)
                except ClosedError:
                    sessions[index] = make(nano)
                    stopped[index] += 1
                except (BusyError, UsageError):
                    stopped[index] += 1
                try:
                    sessions[index].reset()
                except (BusyError, ClosedError):
                    sessions[index].close()
                    sessions[index] = make(nano)
        except BaseException as error:  # noqa: BLE001 - it is told below
            failures.append(error)

    def disturb() -> None:
        rng = np.random.default_rng(99)
        while time.monotonic() < until:
            session = sessions[rng.integers(THREADS)]
            what = rng.random()
            try:
                if what < 0.5:
                    session.cancel()
                elif what < 0.7:
                    session.close()
                elif what < 0.8:
                    session.finish()  # a second thread in a session: it may be told so, or win
                else:
                    assert str(session.text) is not None
                    session.poll()
            except (BusyError, CancelledError, ClosedError, ValueError):
                pass
            time.sleep(float(rng.uniform(0, 0.02)))

    def fork() -> None:
        sound = SOUND[:20000]
        wanted = nano.transcribe(sound, sample_rate=16000, max_new_tokens=LIMIT).segments
        while time.monotonic() < until:
            child = os.fork()
            if child == 0:
                faulthandler.dump_traceback_later(60, exit=True)
                got = nano.transcribe(sound, sample_rate=16000, max_new_tokens=LIMIT).segments
                os._exit(0 if got == wanted else 1)
            if os.waitpid(child, 0)[1] != 0:
                failures.append(RuntimeError("a forked child failed, hung or heard something else"))
            time.sleep(0.05)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    threads.append(threading.Thread(target=disturb))
    if FORKS:
        threads.append(threading.Thread(target=fork))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 120)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
    assert sum(compared) > 0
    assert sum(stopped) > 0


def make(model: Model) -> Session:
    return model.session(max_new_tokens=LIMIT, partial_every=0.5, vad="off", buffer=60)

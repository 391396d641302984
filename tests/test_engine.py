"""The engine decides whose audio is read and whose text is decoded next; whatever happens, nobody waits for ever."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycrispasr import ClosedError, Model, OutOfMemoryError, UsageError, audio
from pycrispasr.decoding import engine as engine_module
from pycrispasr.decoding.engine import GAP, PATIENCE, Engine, Request
from pycrispasr.runtimes import native

from .sounds import make_tones

WINDOW = 128000  # samples
BLOCK, STEP = 0.4, 0.05  # seconds that they take


class FakeSession:
    """A session whose clips have as many tokens as their first sample says, and a clock that only its work moves."""

    heads = ()
    memory = 0
    window_samples = WINDOW

    def __init__(self, sequences: int = 2) -> None:
        self.sequences = sequences
        self.now = 0.0
        self.log: list[tuple[float, str, Any]] = []
        self.gate = threading.Event()
        self.clips: dict[int, dict[str, Any]] = {}
        self.fails: Callable[[str, list[int]], Exception | None] = lambda _, __: None
        self.cancelled = False

    def clock(self) -> float:
        return self.now

    def open(self) -> Any:
        assert self.gate.wait(60)
        return self

    def do(self, what: str, clips: list[int], seconds: float) -> None:
        self.log.append((self.now, what, [self.clips[clip]["name"] for clip in clips]))
        self.now += seconds
        if self.cancelled:
            raise native.Cancelled
        if error := self.fails(what, [self.clips[clip]["name"] for clip in clips]):
            raise error

    def begin(self, sequence: int, **_: object) -> None:
        self.clips[sequence] = {"samples": 0, "name": None, "read": 0, "given": 0, "taken": 0, "ended": False}

    def append(self, samples: audio.Samples, sequence: int) -> None:
        clip = self.clips[sequence]
        if clip["name"] is None:
            clip["name"] = int(samples[0])
        clip["samples"] += len(samples)

    def end(self, sequence: int, n_samples: int) -> None:
        self.clips[sequence].update(samples=n_samples, ended=True)

    def begin_hypothesis(self, sequence: int) -> None:
        self.clips[sequence].update(ended=True, before=dict(self.clips[sequence]))

    def end_hypothesis(self, sequence: int) -> list[tuple[int, float]]:
        clip = self.clips[sequence]
        tokens = [(number, 1.0) for number in range(clip["given"])]
        self.clips[sequence] = clip["before"]
        return tokens

    def advance(self, sequence: int, max_windows: int = 99) -> bool:
        clip = self.clips[sequence]
        windows = -(-clip["samples"] // WINDOW) - (not clip["ended"])
        if clip["read"] < windows:
            count = min(max_windows, windows - clip["read"])
            self.do("read", [sequence], BLOCK * count)
            clip["read"] += count
        return bool(clip["read"] < windows)

    def run(self, sequences: list[int], seconds: float) -> None:
        until = self.now + seconds
        while True:
            self.do("step", sequences, STEP)
            clips = [self.clips[sequence] for sequence in sequences]
            for clip in clips:
                clip["given"] += 1
            if self.now >= until or any(clip["given"] >= clip["name"] for clip in clips):
                return

    def take(self, sequence: int) -> tuple[list[tuple[int, float]], bool]:
        clip = self.clips[sequence]
        fresh = [(number, 1.0) for number in range(clip["taken"], clip["given"])]
        clip["taken"] = clip["given"]
        return fresh, clip["given"] >= clip["name"]

    def result(self, sequence: int) -> dict[str, Any]:
        return {"n_samples": self.clips[sequence]["samples"]}

    def wake(self) -> None:
        pass

    def cancel(self) -> None:
        self.cancelled = True

    def reset(self) -> None:
        self.cancelled = False


class Callers:
    """Requests of an engine on a fake session. Each is known by its number of tokens."""

    def __init__(self, sequences: int = 2) -> None:
        self.session = FakeSession(sequences)
        self.engine = Engine(self.session.open, self.session.clock)
        self.finished: list[int] = []
        self.requests: dict[int, Request] = {}
        threading.Thread(target=self.engine.opened, daemon=True).start()  # nothing begins before the gate is open

    def submit(self, tokens: int, *, windows: int = 1, live: bool = False, ended: bool = True) -> Request:
        done = threading.Event()
        request = Request(max_new_tokens=512, attention=False, live=live, notify=done.set)

        def notify() -> None:
            if request.done:
                self.finished.append(tokens)
            done.set()

        request.notify = notify
        self.requests[tokens] = request
        self.engine.submit(request, np.full(windows * WINDOW, tokens, np.float32), ended=ended)
        return request

    def wait(self, *requests: Request) -> None:
        self.session.gate.set()
        wait_until(lambda: all(one.done for one in requests or self.requests.values()))

    def steps(self) -> list[tuple[float, list[int]]]:
        return [(when, names) for when, what, names in self.session.log if what == "step"]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


def in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_live_requests_come_before_recordings_and_each_in_order_of_arrival() -> None:
    callers = Callers(sequences=1)
    for tokens, live in ((3, False), (4, False), (6, True), (5, True)):
        callers.submit(tokens, live=live)
    callers.wait()
    assert callers.finished == [6, 5, 3, 4]


def test_a_recording_that_has_waited_long_comes_before_live_requests_that_came_later() -> None:
    callers = Callers(sequences=1)
    long = round(PATIENCE / STEP) + 1  # tokens
    callers.submit(long)

    def others_come(what: str, _: list[int]) -> None:
        if what == "step" and 3 not in callers.requests:
            in_a_thread(lambda: (callers.submit(3), callers.submit(4, live=True)))

    callers.session.fails = others_come
    callers.wait(callers.requests[long])
    callers.wait()
    assert callers.finished == [long, 3, 4]


def test_one_step_decodes_a_token_of_every_request_and_a_free_place_is_filled_at_once() -> None:
    callers = Callers(sequences=2)
    for tokens in (2, 9, 4, 5):
        callers.submit(tokens)
    callers.wait()
    together = [set(names) for _, names in callers.steps()]
    assert {2, 9} in together
    assert {9, 4} in together
    assert {9, 5} in together
    assert len(together) < 2 + 9 + 4 + 5


def test_no_text_stops_for_longer_than_a_block_while_others_audio_is_read() -> None:
    callers = Callers(sequences=4)
    callers.submit(40)
    for tokens in (3, 4, 5, 6, 7):
        callers.submit(tokens, windows=4)
    callers.wait()
    times = [when for when, names in callers.steps() if 40 in names]
    assert max(np.diff(times)) <= BLOCK + GAP + STEP
    assert max(np.diff(times)) < 1
    reads = [names for _, what, names in callers.session.log if what == "read"]
    assert reads.count([7]) > 1  # block by block


def test_while_a_live_request_decodes_steps_take_as_long_as_blocks() -> None:
    callers = Callers(sequences=4)
    callers.submit(60, live=True)
    for tokens in (3, 4, 5):
        callers.submit(tokens, windows=4)
    callers.wait(callers.requests[60])
    end = max(when for when, names in callers.steps() if 60 in names)
    begin = min(when for when, names in callers.steps() if 60 in names)
    reading = sum(BLOCK for when, what, _ in callers.session.log if what == "read" and begin < when < end)
    assert reading
    assert reading <= (end - begin) / 2 + BLOCK


def test_alone_all_audio_is_read_at_once() -> None:
    callers = Callers()
    callers.submit(3, windows=4)
    callers.wait()
    assert [names for _, what, names in callers.session.log if what == "read"] == [[3]]


def test_a_live_request_that_pauses_gives_its_place_and_is_heard_anew_when_it_goes_on() -> None:
    callers = Callers(sequences=1)
    live = callers.submit(5, live=True, ended=False, windows=2)
    callers.session.gate.set()
    wait_until(lambda: any(what == "read" for _, what, _ in callers.session.log))
    callers.submit(3)
    callers.wait(callers.requests[3])
    assert not live.done
    callers.engine.end(live, 2 * WINDOW)
    callers.wait(live)
    assert [token for token, _ in live.tokens] == list(range(5))
    assert callers.finished == [3, 5]


def test_a_hypothesis_is_decoded_beside_others_and_can_be_ended_early() -> None:
    callers = Callers()
    callers.session.gate.set()
    live = callers.submit(6, live=True, ended=False)
    callers.engine.ask_hypothesis(live)
    wait_until(lambda: live.hypothesis is not None)
    assert live.hypothesis == [(number, 1.0) for number in range(6)]
    assert not live.tokens
    callers.engine.finish_early(live)  # none is being decoded
    callers.engine.end(live, WINDOW)
    callers.wait(live)
    assert len(live.tokens) == 6


def test_the_end_of_the_audio_ends_a_hypothesis() -> None:
    callers = Callers()
    live = callers.submit(10**6, live=True, ended=False)
    callers.engine.ask_hypothesis(live)
    callers.session.gate.set()
    wait_until(lambda: bool(callers.steps()))
    callers.engine.finish_early(live)
    wait_until(lambda: live.hypothesis is not None)
    assert live.hypothesis is not None
    assert 0 < len(live.hypothesis) < 10**6
    callers.engine.drop(live)
    callers.wait(live)


def test_what_fails_beside_others_is_tried_alone_and_only_what_fails_alone_has_failed() -> None:
    callers = Callers(sequences=3)

    def fails(what: str, names: list[int]) -> Exception | None:
        return OutOfMemoryError("no memory") if what == "step" and 4 in names else None

    callers.session.fails = fails
    for tokens in (3, 4, 5):
        callers.submit(tokens)
    callers.wait()
    assert {tokens: type(one.failure) for tokens, one in callers.requests.items()} == {
        3: type(None), 4: OutOfMemoryError, 5: type(None)
    }  # fmt: skip
    assert [len(callers.requests[tokens].tokens) for tokens in (3, 5)] == [3, 5]


def test_tokens_that_were_given_are_not_given_again_by_another_try() -> None:
    callers = Callers(sequences=2)
    failed: list[int] = []

    def fails(what: str, names: list[int]) -> Exception | None:
        if what == "step" and len(names) == 2 and callers.requests[8].tokens[4:] and not failed:
            failed.append(1)
            return OutOfMemoryError("no memory")
        return None

    callers.session.fails = fails
    for tokens in (8, 9):
        callers.submit(tokens).streams = True
    callers.wait()
    assert failed
    for tokens in (8, 9):
        assert callers.requests[tokens].tokens == [(number, 1.0) for number in range(tokens)]


def test_a_dropped_request_is_done_within_a_step_and_others_go_on() -> None:
    callers = Callers()
    gone = callers.submit(10**6)
    callers.submit(50)

    def goes(what: str, names: list[int]) -> None:
        if what == "step" and len(names) == 2:
            callers.engine.drop(gone)

    callers.session.fails = goes
    callers.wait()
    steps = [names for _, names in callers.steps()]
    assert steps[-49:] == [[50]] * 49
    assert [10**6, 50] in steps
    assert gone.result is not None
    assert gone.failure is None
    assert len(callers.requests[50].tokens) == 50


def test_when_all_are_dropped_the_call_that_runs_is_cancelled_and_a_newcomer_begins_again() -> None:
    callers = Callers()
    gone = callers.submit(10**6)

    def goes(what: str, names: list[int]) -> None:
        if what == "step" and names == [10**6] and not gone.cancelled:
            callers.engine.drop(gone)
            in_a_thread(lambda: callers.submit(3))

    callers.session.fails = goes
    callers.wait(gone)
    callers.wait()
    assert [names for _, names in callers.steps()] == [[10**6], [3], [3], [3]]
    assert len(callers.requests[3].tokens) == 3


def test_who_waits_in_the_engine_s_thread_gets_an_error(nano: Model) -> None:
    """The collector may close any generator there, whose `finally` may go on working."""

    def finish(_: Engine) -> None:
        with nano.session() as session:
            session.feed(make_tones(1))

    with pytest.raises(ClosedError, match="garbage collector"):
        nano._engine(nano._opened()).ask(finish)
    assert nano.transcribe(make_tones(1), sample_rate=16000, max_new_tokens=2).segments


def test_a_bug_in_the_engine_fails_what_there_is_and_nothing_that_comes_later() -> None:
    callers = Callers()
    errors = [TypeError("a bug")]
    take = callers.session.take
    callers.session.take = lambda sequence: take(sequence) if not errors else raising(errors.pop())  # type: ignore[method-assign]
    callers.submit(3)
    callers.wait()
    assert isinstance(callers.requests[3].failure, TypeError)
    callers.submit(4)
    callers.wait()
    assert callers.requests[4].failure is None


def raising(error: Exception) -> Any:
    raise error


def test_a_session_that_cannot_be_made_fails_whoever_asks_for_it_and_can_be_made_later() -> None:
    session = FakeSession()
    session.gate.set()
    errors = [OutOfMemoryError("no memory")]
    engine = Engine(lambda: raising(errors.pop()) if errors else session.open())
    with pytest.raises(OutOfMemoryError, match="no memory"):
        engine.opened()
    assert engine.opened() is session


def test_who_hands_in_more_than_the_queue_holds_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_QUEUE", 2)
    callers = Callers(sequences=1)
    for tokens in (2, 3):
        callers.submit(tokens)
    third = threading.Thread(target=callers.submit, args=(4,))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    callers.session.gate.set()
    third.join(60)
    callers.wait()
    assert callers.finished == [2, 3, 4]


def test_the_engine_tells_what_it_does() -> None:
    callers = Callers(sequences=1)
    callers.submit(4)
    callers.submit(5)
    callers.wait()
    stats = callers.engine.stats(weight_bytes=7)
    assert (stats.running, stats.waiting, stats.sequences, stats.tokens) == (0, 0, 1, 9)
    assert stats.audio_seconds == 16
    assert stats.tokens_per_second == 0.9
    assert stats.audio_seconds_per_second == 1.6
    assert stats.memory_bytes == 7


def test_an_engine_that_nobody_keeps_ends_its_thread() -> None:
    callers = Callers()
    callers.submit(3)
    callers.wait()
    thread = callers.engine._thread
    del callers
    gc.collect()  # its notes are a cycle
    thread.join(60)
    assert not thread.is_alive()


# With a real model.


def test_texts_do_not_depend_on_who_else_is_there(nano: Model) -> None:
    sounds = [make_tones(seconds, seed) for seed, seconds in enumerate((1, 12, 3, 35, 2, 0.4, 20, 7))]
    keywords: dict[str, Any] = {"sample_rate": 16000, "max_new_tokens": 30, "vad": "off", "word_timestamps": True}
    wanted = [nano.transcribe(sound, **keywords).segments for sound in sounds]

    def one(sound: np.ndarray) -> Any:
        return nano.transcribe(sound, **keywords).segments

    with ThreadPoolExecutor(len(sounds)) as pool:
        assert list(pool.map(one, sounds)) == wanted
    assert nano.stats().running == nano.stats().waiting == 0


def test_options_of_one_caller_are_not_those_of_another(nano: Model) -> None:
    def one(limit: int) -> int:
        found = nano.transcribe(make_tones(2), sample_rate=16000, max_new_tokens=limit, word_timestamps=limit % 2 == 0)
        assert (found.segments[0].words is not None) == (limit % 2 == 0)
        return found.timings.tokens

    limits = [3, 8, 5, 12, 1, 7]
    with ThreadPoolExecutor(len(limits)) as pool:
        assert list(pool.map(one, limits)) == limits


@pytest.mark.parametrize("sequences", [1, 3])
def test_sequences_bound_what_is_decoded_at_once(nano_path: Path, sequences: int) -> None:
    with Model(nano_path, sequences=sequences) as model:
        texts = [one.text for one in model.transcribe_many([make_tones(1, seed) for seed in range(5)],
                                                           sample_rate=16000, max_new_tokens=9, batch=5)]  # fmt: skip
        assert model.stats().sequences == sequences
    with Model(nano_path) as model:
        assert texts == [
            model.transcribe(make_tones(1, seed), sample_rate=16000, max_new_tokens=9).text for seed in range(5)
        ]


@pytest.mark.parametrize(("sequences", "says"), [(0, "at least 1"), (257, "1 to 256"), (2**31, "out of range")])
def test_impossible_numbers_of_sequences_are_refused(nano_path: Path, sequences: int, says: str) -> None:
    with pytest.raises(UsageError, match=says), Model(nano_path, sequences=sequences) as model:
        model.transcribe(make_tones(1), sample_rate=16000)


EXITS = {
    "a generator in its middle": "lines = model.segments(LONG, **CUT)\nnext(lines)",
    "a thread that transcribes": (
        "threading.Thread(target=lambda: model.transcribe(LONG, **CUT), daemon=True).start()\ntime.sleep(0.2)"
    ),
    "a session that listens": "session = model.session(partial_every=None)\nsession.feed(LONG[:200000])",
    "an exception": "lines = model.stream(LONG, **CUT)\nnext(lines)\nsys.exit(0)",
}


@pytest.mark.parametrize("case", EXITS)
def test_the_program_s_end_in_the_middle_of_the_work_is_clean(nano_path: Path, case: str) -> None:
    script = f"""
import sys, threading, time
import numpy as np
import pycrispasr
LONG = np.tile((0.3 * np.sin(np.arange(16000 * 3) ** 1.3 / 50)).astype(np.float32), 200)
CUT = {{"sample_rate": 16000, "vad": "off"}}
model = pycrispasr.Model(sys.argv[1], threads=1)
{EXITS[case]}
"""
    done = subprocess.run(
        [sys.executable, "-Xfaulthandler", "-c", script, str(nano_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

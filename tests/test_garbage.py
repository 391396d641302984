"""Iterators, sessions and coroutines that were left in the middle and are found by the garbage collector, in a cycle.

The collector finalizes what is in a cycle in any order, so a session can be finalized before the generator that will
cancel it. A mistake there ends the process: each way of leaving has one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import asyncio, gc, sys, time
import numpy as np
import pycrispasr
from pycrispasr.runtimes import native

SOUND = (0.3 * np.sin(np.arange(16000 * 3) ** 1.3 / 50)).astype(np.float32)
LONG = np.tile(SOUND, 11)
CUT = {"sample_rate": 16000, "vad": "off", "max_new_tokens": 5}
model = pycrispasr.Model(sys.argv[1], threads=1)


class Job:
    '''A cycle that an iterator hangs on.'''

    def __init__(self, make):
        self.model, self.itself = model, self
        self.lines = make(self)


def leave(make):
    '''Leaves ten iterators behind their first item.'''
    for _ in range(10):
        next(Job(make).lines)


def collect():
    '''The engine works for nobody, no other native session is left, and what is heard is sound.'''
    gc.collect()
    engine, until = model._engine(model._native), time.monotonic() + 60
    while engine._requests or engine._waiting:
        assert time.monotonic() < until
        time.sleep(0.01)
    handles = {one for one in gc.get_objects() if isinstance(one, native.NativeHandle)}
    assert handles <= {model._native._handle, engine.session and engine.session._handle}
    for _ in range(3):
        assert model.transcribe(SOUND, sample_rate=16000, max_new_tokens=5).segments
"""

CASES = {
    "segments": "leave(lambda job: model.segments(LONG, **CUT))",
    "stream": "leave(lambda job: model.stream(LONG, **CUT))",
    "many": "leave(lambda job: model.transcribe_many([LONG] * 3, **CUT))",
    "a generator around segments": """
def lines(job):
    for segment in job.model.segments(LONG, **CUT):
        yield segment, job
leave(lines)""",
    "a generator around a session": """
def lines(job):
    with job.model.session() as session:
        session.feed(SOUND)
        while True:
            yield session.text
leave(lines)""",
    "a generator around the tokens of a session": """
def lines(job):
    with job.model.session(max_new_tokens=20) as session:
        session.feed(SOUND)
        for token in session:
            yield token
leave(lines)""",
    "a generator around events": """
def lines(job):
    with job.model.session(max_new_tokens=20) as session:
        session.push(SOUND)
        for event in session.events():
            yield event
leave(lines)""",
    "a session that is never closed": """
for _ in range(10):
    session = model.session()
    session.feed(SOUND)
    session.itself = session
del session""",
    "a frame that its exception keeps": """
def work():
    lines = model.segments(LONG, **CUT)
    next(lines)
    try:
        raise ValueError
    except ValueError as caught:
        error = caught
for _ in range(10):
    work()""",
    "a coroutine whose loop is gone": """
async def talk():
    me = [asyncio.current_task()]
    me.append(me)
    async with model.session() as session:
        await session.feed(SOUND)
        await asyncio.Event().wait()
async def main():
    tasks = [asyncio.ensure_future(talk()) for _ in range(5)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task._log_destroy_pending = False
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()""",
    "a model and all that was made of it": """
def lines(job):
    job.model = pycrispasr.Model(sys.argv[1], threads=1)
    with job.model.session(max_new_tokens=20) as session:
        session.feed(SOUND)
        for token in session:
            yield token
leave(lines)""",
    "a generator that goes on with its session": """
ends = []
def lines(job):
    session = job.model.session(max_new_tokens=20)
    session.feed(SOUND)
    try:
        while True:
            yield session.text
    finally:
        try:
            ends.append(session.finish().text)
        except pycrispasr.ClosedError as error:
            ends.append(error)
leave(lines)
gc.collect()
assert len(ends) == 10
ends.clear()""",
    "segments of faster-whisper's shape": """
from pycrispasr.compat.faster_whisper import WhisperModel
whisper = WhisperModel(sys.argv[1], cpu_threads=1)
for _ in range(10):
    segments, info = whisper.transcribe(LONG, max_new_tokens=5)
    box = [next(segments)]
    box += [box, segments, info]
del segments, info, box, whisper""",
    "the language of faster-whisper's shape": """
from pycrispasr.compat.faster_whisper import WhisperModel
whisper = WhisperModel(sys.argv[1], cpu_threads=1)
for _ in range(10):
    segments, info = whisper.transcribe(LONG, max_new_tokens=5)
    box = [info.language]
    box += [box, segments, info]
del segments, info, box, whisper""",
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_collector_finds_in_a_cycle_is_freed_once_and_never_used_afterwards(
    nano_path: Path, case: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-Wignore", "-Xfaulthandler", "-c", f"{HEAD}\n{CASES[case]}\ncollect()", str(nano_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

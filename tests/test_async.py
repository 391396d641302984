"""Sessions in coroutines: the event loop is never blocked, and nothing is lost when a task is cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycrispasr import (
    AsyncSession,
    AudioError,
    CancelledError,
    ClosedError,
    Event,
    Final,
    Model,
    Overrun,
    Partial,
    Session,
    UsageError,
    audio,
)

from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"
LONG = audio.load(SAMPLES / "long.wav")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def feed(session: AsyncSession, sound: np.ndarray, size: int = 1600, pause: float = 0) -> None:
    for start in range(0, len(sound), size):
        await session.feed(sound[start : start + size])
        await asyncio.sleep(pause)
    session.end()


def test_one_task_feeds_and_one_gets_events(tiny: Model) -> None:
    async def main() -> tuple[list[Event], object]:
        async with tiny.session(vad="on") as session:
            feeder = asyncio.create_task(feed(session, LONG))
            events = [event async for event in session.events()]
            await feeder
            return events, await session.finish()

    events, transcript = run(main())
    wanted = "".join((SAMPLES / "long.txt").read_text(encoding="utf-8")).strip()
    assert transcript.text == wanted
    assert tuple(event.segment for event in events if isinstance(event, Final)) == transcript.segments


def test_one_task_can_do_everything_with_a_small_queue(tiny: Model) -> None:
    async def main() -> object:
        async with tiny.session(buffer=0.5) as session:
            await feed(session, LONG)
            assert session.text  # how much of it is committed depends on how fast the machine is
            return await session.finish()

    assert run(main()).segments == tiny.transcribe(LONG, sample_rate=16000).segments


def test_events_come_while_audio_is_fed(tiny: Model) -> None:
    async def main() -> bool:
        async with tiny.session() as session:
            feeder = asyncio.create_task(feed(session, LONG, pause=0.005))
            async for event in session.events():
                if isinstance(event, Partial):
                    return not feeder.done()
        return False

    assert run(main())


def test_the_loop_is_not_blocked(nano: Model) -> None:
    async def main() -> float:
        longest = 0.0
        async with nano.session(max_new_tokens=2000, partial_every=None) as session:
            await session.feed(make_tones(25))
            work = asyncio.create_task(session.finish())
            while not work.done():
                before = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - before)
            await work
        return longest

    begun = time.perf_counter()
    longest = run(main())
    assert longest < (time.perf_counter() - begun) / 2


def test_many_sessions_share_a_loop(nano: Model) -> None:
    sounds = [make_tones(3, seed) for seed in range(20)]

    async def one(sound: np.ndarray) -> object:
        async with nano.session(max_new_tokens=10) as session:
            feeder = asyncio.create_task(feed(session, sound, 4000))
            finals = [event.segment async for event in session.events() if isinstance(event, Final)]
            await feeder
            return tuple(finals)

    async def main() -> list[object]:
        return await asyncio.gather(*map(one, sounds))

    wanted = [nano.transcribe(sound, sample_rate=16000, max_new_tokens=10).segments for sound in sounds]
    assert run(main()) == wanted


def test_a_task_that_stops_waiting_loses_nothing(tiny: Model) -> None:
    async def main() -> tuple[list[Event], object]:
        events: list[Event] = []
        async with tiny.session(partial_every=0.2) as session:
            feeder = asyncio.create_task(feed(session, LONG, pause=0.001))
            while True:
                waiting = asyncio.create_task(collect(session, events))
                done, _ = await asyncio.wait([waiting], timeout=0.01)
                if done:
                    await waiting
                    break
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            await feeder
            return events, await session.finish()

    async def collect(session: AsyncSession, events: list[Event]) -> None:
        async for event in session.events():
            events.append(event)  # noqa: PERF401 - one by one: the task may be cancelled between two

    events, transcript = run(main())
    assert transcript.segments == tiny.transcribe(LONG, sample_rate=16000).segments
    assert [event.segment for event in events if isinstance(event, Final)] == list(transcript.segments)


def test_cancel_stops_work_and_keeps_the_text(nano: Model) -> None:
    async def main() -> CancelledError:
        async with nano.session(max_new_tokens=4000, partial_every=None, buffer=400) as session:
            await session.feed(make_tones(400))
            work = asyncio.create_task(session.finish())
            await asyncio.sleep(0.2)
            session.cancel()
            with pytest.raises(CancelledError) as caught:
                await work
            return caught.value

    assert not run(main()).partial.complete


def test_leaving_the_block_stops_the_work(nano: Model) -> None:
    async def main() -> float:
        async with nano.session(max_new_tokens=4000, buffer=400) as session:
            await session.feed(make_tones(400))
            work = asyncio.create_task(session.finish())
            await asyncio.sleep(0.1)
            begun = time.perf_counter()
        took = time.perf_counter() - begun
        with pytest.raises((CancelledError, ClosedError)):
            await work
        with pytest.raises(ClosedError):
            await session.finish()
        with pytest.raises(ClosedError):
            await session.feed(make_tones(1))
        return took

    assert run(main()) < 5


def test_errors_reach_who_made_them(nano: Model) -> None:
    async def main() -> None:
        async with nano.session() as session:
            with pytest.raises(AudioError, match="finite"):
                await session.feed(np.full(100, np.nan))
            session.end()
            with pytest.raises(UsageError, match="ended"):
                await session.feed(make_tones(1))
            with pytest.raises(AudioError, match="no audio"):
                async for _ in session.events():
                    pass

    run(main())


def test_a_callback_s_overrun_is_told(nano: Model) -> None:
    async def main() -> list[Event]:
        async with nano.session(max_new_tokens=2, buffer=0.5, partial_every=None) as session:
            assert session.push(make_tones(0.5))
            assert not session.push(make_tones(0.25))
            session.end()
            return [event async for event in session.events()]

    assert run(main())[0] == Overrun(0.5, 0.75)


def test_a_session_for_coroutines_has_all_that_a_session_has() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert names(AsyncSession) == names(Session)


def test_a_session_can_be_used_again_after_reset(tiny: Model) -> None:
    sound = audio.load(SAMPLES / "hello.wav")

    async def main() -> list[str]:
        async with tiny.session() as session:
            texts = []
            for _ in range(2):
                await session.feed(sound)
                texts.append((await session.finish()).text)
                await session.reset()
                assert session.text.committed == ""
            await session.feed(sound)
            session.cancel()
            with pytest.raises(CancelledError):
                await session.finish()
            await session.reset()
            await session.feed(sound)
            return [*texts, (await session.finish()).text]

    assert run(main()) == ["hello"] * 3


def test_reset_waits_for_the_work_that_is_going_on(nano: Model) -> None:
    async def main() -> None:
        async with nano.session(max_new_tokens=200) as session:
            await session.feed(make_tones(20, seed=1))
            finishing = asyncio.create_task(session.finish())
            await asyncio.sleep(0.01)
            await session.reset()
            assert finishing.done()
            assert (await finishing).segments
            assert session.poll() == []

    run(main())


def test_tokens_are_given_one_by_one(tiny: Model) -> None:
    sound = audio.load(SAMPLES / "digits.wav")

    async def main() -> str:
        async with tiny.session() as session:
            await session.feed(sound)
            return "".join([token.text async for token in session]).strip()

    assert run(main()) == tiny.transcribe(sound, sample_rate=16000).text


def test_lost_audio_is_counted(nano: Model) -> None:
    async def main() -> float:
        async with nano.session(buffer=0.5) as session:
            session.push(make_tones(0.4))
            assert not session.push(make_tones(0.2))
            await session.finish()
            return session.lost

    assert run(main()) == pytest.approx(0.2)

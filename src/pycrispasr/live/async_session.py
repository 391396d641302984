"""A session for coroutines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.live.driver import Driver, State
from pycrispasr.live.stabilizer import LiveText
from pycrispasr.results.events import Event
from pycrispasr.results.segment import Token
from pycrispasr.results.transcript import Transcript

_T = TypeVar("_T")


class AsyncSession:
    """A session for the coroutines of one event loop, which the work never blocks: it is done in a thread.

        async with model.session(vad="on") as session:
            feeder = asyncio.create_task(feed(session))  # await session.feed(block) ... session.end()
            async for event in session.events():
                print(event)

    Made by `async with` on what `Model.session` gives.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._work: asyncio.Task[Any] | None = None
        self._driver.listen(self._wake)

    async def feed(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> None:
        """Appends samples to the queue that `events` works on, and waits as long as there is no room for them.

        Args:
            samples: As for `Session.feed`.
            sample_rate: As for `Session.feed`.

        Raises:
            AudioError: As for `Session.feed`. None of the samples is taken.
            UsageError: As for `Session.push`.
            ClosedError: The session is closed.
            CancelledError: The session was cancelled.
        """
        while not self._driver.has_room(len(samples), sample_rate):
            await self._do(self._driver.step)  # also where nobody iterates over the events
        self._driver.push(samples, sample_rate, wait=False)

    def push(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> bool:
        """`Session.push`: never waits. May be called from any thread."""
        return self._driver.push(samples, sample_rate, wait=False)

    def end(self) -> None:
        """`Session.end`: no more samples will come. May be called from any thread."""
        self._driver.end()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until `end` was called and all is done: `Session.events`.

        Raises:
            PycrispasrError: What `Session.events` raises.
        """
        driver = self._driver
        while True:
            while (event := driver.next_event()) is not None:
                yield event
            if driver.state is State.DONE:
                return
            self._changed.clear()
            if driver.ready():
                await self._do(driver.step)
            else:
                await self._changed.wait()

    @property
    def text(self) -> LiveText:
        """`Session.text`: the text so far."""
        return self._driver.text

    @property
    def lost(self) -> float:
        """`Session.lost`: seconds of audio that were lost."""
        return self._driver.lost

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._driver.state is State.CLOSED

    def poll(self) -> list[Event]:
        """`Session.poll`: the events since the last call. May be called from any thread."""
        return list(iter(self._driver.next_event, None))

    async def finish(self) -> Transcript:
        """`Session.finish`: ends the audio, and gives the transcript of all of it."""
        self._driver.end()
        return await self._do(self._driver.finish)

    async def tokens(self) -> AsyncIterator[Token]:
        """`Session.tokens`: ends the audio, and gives its tokens one by one as they are decoded."""
        while (token := await self._do(self._driver.next_token)) is not None:
            yield token

    def __aiter__(self) -> AsyncIterator[Token]:
        return self.tokens()

    async def reset(self) -> None:
        """`Session.reset`: waits for the work that is going on, and forgets audio, text and a cancellation."""
        await self._do(self._driver.reset)

    def cancel(self) -> None:
        """`Session.cancel`: stops what is running. May be called from any thread."""
        self._driver.cancel()

    async def close(self) -> None:
        """Cancels what is running, waits for its end, and frees the session's memory. Leaving `async with` does it."""
        self._driver.close()
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)

    async def _do(self, call: Callable[[], _T]) -> _T:
        """A call in a thread, when the one before it has ended.

        A coroutine that is cancelled stops waiting, and nothing of what the thread does is lost.
        """
        while self._work is not None and not self._work.done():
            await asyncio.wait([self._work])
        work = self._work = asyncio.ensure_future(asyncio.to_thread(call))
        work.add_done_callback(self._worked)
        return await asyncio.shield(work)

    def _worked(self, work: asyncio.Task[Any]) -> None:
        self._changed.set()  # there may be events
        if not work.cancelled():
            work.exception()  # whoever waits gets it; nobody needs to

    def _wake(self) -> None:
        """From any thread: the queue has changed."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._changed.set)

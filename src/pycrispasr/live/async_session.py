"""A session for coroutines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.live.events import Event
from pycrispasr.live.stabilizer import LiveText
from pycrispasr.results.transcript import Token, Transcript

if TYPE_CHECKING:
    from pycrispasr.live.session import Session

_T = TypeVar("_T")


class AsyncSession:
    """A session for the coroutines of one event loop, which the work never blocks: it is done in a thread.

        async with model.session(vad="on") as session:
            feeder = asyncio.create_task(feed(session))  # await session.feed(block) ... session.end()
            async for event in session.events():
                print(event)

    Made by `async with` on what `Model.session` gives.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._work: asyncio.Task[Any] | None = None
        self._session._listen_to_queue(self._wake)

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
        while not self._session._has_room(len(samples), sample_rate):
            await self._do(self._session._turn)  # also where nobody iterates over the events
        self._session.push(samples, sample_rate=sample_rate)

    def push(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> bool:
        """`Session.push`: never waits. May be called from any thread."""
        return self._session.push(samples, sample_rate=sample_rate)

    def end(self) -> None:
        """`Session.end`: no more samples will come. May be called from any thread."""
        self._session.end()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until `end` was called and all is done: `Session.events`.

        Raises:
            PycrispasrError: What `Session.events` raises.
        """
        session = self._session
        while True:
            while (event := session._next_event()) is not None:
                yield event
            if session._finished:
                return
            self._changed.clear()
            if session._handover.ready():
                await self._do(session._turn)
            else:
                await self._changed.wait()

    @property
    def text(self) -> LiveText:
        """`Session.text`: the text so far."""
        return self._session.text

    @property
    def lost(self) -> float:
        """`Session.lost`: seconds of audio that were lost."""
        return self._session.lost

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._session.closed

    def poll(self) -> list[Event]:
        """`Session.poll`: the events since the last call. May be called from any thread."""
        return self._session.poll()

    async def finish(self) -> Transcript:
        """`Session.finish`: ends the audio, and gives the transcript of all of it."""
        self._session.end()
        return await self._do(self._session.finish)

    async def tokens(self) -> AsyncIterator[Token]:
        """`Session.tokens`: ends the audio, and gives its tokens one by one as they are decoded."""
        while (token := await self._do(self._session._next_token)) is not None:
            yield token

    def __aiter__(self) -> AsyncIterator[Token]:
        return self.tokens()

    async def reset(self) -> None:
        """`Session.reset`: waits for the work that is going on, and forgets audio, text and a cancellation."""
        await self._do(self._session.reset)

    def cancel(self) -> None:
        """`Session.cancel`: stops what is running. May be called from any thread."""
        self._session.cancel()

    async def close(self) -> None:
        """Cancels what is running, waits for its end, and frees the session's memory. Leaving `async with` does it."""
        self._session.close()
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

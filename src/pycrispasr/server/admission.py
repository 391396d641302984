"""Who may come in, and whose turn it is: the queue before the models."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from pycrispasr.server import errors
from pycrispasr.server.errors import ApiError
from pycrispasr.server.settings import ServerOptions

_LONGEST_WAIT = 60  # seconds that Retry-After names at the most


class Admission:
    """Counts what is inside. Belongs to one event loop.

    Attributes:
        running: Transcriptions that are being worked on.
        sessions: Realtime sessions.
        ending: Set when nothing more is let in: the server is being stopped.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.running = 0
        self.sessions = 0
        self.ending = asyncio.Event()
        self._options = options
        self._inside = 0  # transcriptions
        self._places = asyncio.Semaphore(options.parallel)
        self._mean = 1.0  # seconds that a transcription takes

    @property
    def waiting(self) -> int:
        """Transcriptions whose turn has not come, those whose upload has not ended included."""
        return self._inside - self.running

    @property
    def idle(self) -> bool:
        """True when nothing is inside."""
        return not self._inside and not self.sessions

    @contextlib.contextmanager
    def transcription(self) -> Iterator[None]:
        """Around a request, its upload included.

        Raises:
            ApiError: 429: the queue is full. 503: the server is being stopped.
        """
        self._check()
        limit = self._options.parallel + self._options.queue
        if self._inside >= limit:
            seconds = round(self._mean * self._inside / self._options.parallel)
            raise ApiError(
                429,
                f"{limit} transcriptions are under way, as many as this server takes: try again later",
                code="rate_limit_exceeded",
                retry_after=max(1, min(seconds, _LONGEST_WAIT)),
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a place to work in, inside `transcription`, and holds it.

        Raises:
            ApiError: 503: the server is being stopped, and this one had not begun.
        """
        place = asyncio.ensure_future(self._places.acquire())
        ending = asyncio.ensure_future(self.ending.wait())
        try:
            await asyncio.wait({place, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not place.done() or self.ending.is_set():
                raise errors.ending()
        except BaseException:
            if place.done():
                self._places.release()
            place.cancel()
            raise
        finally:
            ending.cancel()
        self.running += 1
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.running -= 1
            self._mean += 0.1 * (time.perf_counter() - begun - self._mean)
            self._places.release()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Around a realtime session.

        Raises:
            ApiError: 429: there are too many. 503: the server is being stopped.
        """
        self._check()
        if self.sessions >= self._options.sessions:
            raise ApiError(
                429,
                f"{self.sessions} realtime sessions are open, as many as this server takes: try again later",
                code="rate_limit_exceeded",
                retry_after=10,
            )
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    def _check(self) -> None:
        if self.ending.is_set():
            raise errors.ending()

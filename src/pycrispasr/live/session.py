"""A session for threads: audio in, tokens, live text and events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.live.async_session import AsyncSession
from pycrispasr.live.driver import Driver, State, closed
from pycrispasr.live.stabilizer import LiveText
from pycrispasr.results.events import Event
from pycrispasr.results.segment import Token
from pycrispasr.results.transcript import Transcript

if TYPE_CHECKING:
    from typing_extensions import Self


class Session:
    """One transcription at a time: samples in, then tokens, live text, events or the whole transcript out.

    Made by `Model.session`. There are three ways to use it:

    One thread feeds, and asks for the text whenever it likes:

        with model.session() as session:
            for block in blocks:
                session.feed(block, sample_rate=48000)
                print(session.text)
            transcript = session.finish()

    A callback that must never wait pushes, and another thread works:

        with model.session(vad="on") as session:
            start_recording(callback=session.push)
            for event in session.events():
                print(event)

    Coroutines: `async with model.session() as session` gives an `AsyncSession`.

    A session belongs to one thread at a time: a second thread that uses it meanwhile gets a `BusyError` and changes
    nothing. Only `push`, `end`, `cancel`, `close`, `poll` and `text` may be used from anywhere, at any time. The
    model's memory is kept as long as one of its sessions is open, even when the model itself has been closed.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._coroutines: AsyncSession | None = None

    def feed(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> None:
        """Appends samples to the audio, and does all the work that is possible with them.

        Each 8 seconds are encoded, and read by the decoder, as soon as more follows. A segment that is complete is
        decoded: 30 seconds at the latest, or speech that silence has followed, see `Model.session`. Every
        `partial_every` seconds of audio the text so far is made. So a call takes as long as the work which it brings.
        The final text does not depend on how the samples were divided among calls.

        Args:
            samples: Any number of frames, of shape `[frames]` or `[frames, channels]` with at most 64 channels; float32
                or float64 nominally in [-1, 1], or int16 or int32 over their full range. Channels are averaged.
            sample_rate: Samples per second. The rate is converted across calls as if all had come at once; it cannot
                change within one recording.

        Raises:
            AudioError: The samples' type, shape, values or rate cannot be right. None of them is taken.
            UsageError: The audio has ended; `reset` starts anew. Or samples were pushed: the two cannot be mixed.
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
            CancelledError: The session was cancelled; `reset` starts anew.
            OutOfMemoryError: An allocation failed.
        """
        self._driver.feed(samples, sample_rate)

    def push(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE, wait: bool = False) -> bool:
        """Appends samples to a queue, from which `events` takes them. Never waits for work, unless `wait` is set.

        For threads that must not be stopped, such as the callback of a sound card. The queue holds `buffer` seconds;
        what does not fit is lost, is replaced by silence, and becomes an `Overrun` event; the transcript is then not
        `complete`.

        Args:
            samples: As for `feed`. They are copied.
            sample_rate: As for `feed`.
            wait: Wait until there is room, and lose nothing.

        Returns:
            False when there was no room, or the session was cancelled or closed meanwhile.

        Raises:
            AudioError: As for `feed`.
            UsageError: The audio has ended; `reset` starts anew. Or samples were fed: the two cannot be mixed.
            ClosedError: The session is closed.
        """
        return self._driver.push(samples, sample_rate, wait=wait)

    def end(self) -> None:
        """Tells that no more samples will be pushed: `events` comes to its end. May be called from any thread.

        Aborts the running partial so that the final text comes sooner.
        """
        self._driver.end()

    def events(self) -> Iterator[Event]:
        """Does the work on what is pushed, and tells what happens, until `end` was called and all is done.

        The work is done inside this iterator, in the thread that iterates: a loop that takes its time gives later
        events and fewer `Partial` ones, and loses nothing before the queue is full. It may be left and called again.

        Returns:
            An iterator, which raises what `finish` raises.
        """
        driver = self._driver
        while True:
            while (event := driver.next_event()) is not None:
                yield event
            if driver.state is State.CLOSED:
                raise closed()
            if driver.state is State.DONE:
                return
            driver.wait()
            driver.step()

    def poll(self) -> list[Event]:
        """The events since the last call. May be called from any thread. It does no work.

        Of several `Partial` events in succession only the last is kept.
        """
        return list(iter(self._driver.next_event, None))

    @property
    def text(self) -> LiveText:
        """The text so far, of the whole session. May be read from any thread. Reading it does no work."""
        return self._driver.text

    @property
    def lost(self) -> float:
        """Seconds of audio that were lost because they were pushed faster than they could be worked on."""
        return self._driver.lost

    def tokens(self) -> Iterator[Token]:
        """Ends the audio, and gives its tokens one by one as they are decoded.

        Returns:
            An iterator over the tokens that were not given yet. It raises what `finish` raises, and may be left at any
            time: `finish` goes on where it was.
        """
        return iter(self._driver.next_token, None)

    def __iter__(self) -> Iterator[Token]:
        return self.tokens()

    def finish(self, *, progress: Callable[[float, float | None], object] | None = None) -> Transcript:
        """Ends the audio, and gives the transcript of all of it.

        Args:
            progress: Called with the seconds of audio done and their total, or None where that is not known yet: at the
                beginning, and when segments are done.

        Raises:
            AudioError: No audio was fed, or too little for this model.
            CancelledError: `cancel` was called. What was done until then is in its `partial`.
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
            OutOfMemoryError: An allocation failed.
        """
        return self._driver.finish(progress)

    def cancel(self) -> None:
        """Stops the call that is running in this session, or else the next one, with a `CancelledError`.

        May be called from any thread, at any time. The session stays cancelled until `reset`.
        """
        self._driver.cancel()

    def reset(self) -> None:
        """Forgets audio, text and a cancellation: the session is as new, and keeps its buffers.

        Raises:
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
        """
        self._driver.reset()

    def close(self) -> None:
        """Frees the session's memory. A call that runs in another thread is cancelled. Closing twice is allowed."""
        self._driver.close()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._driver.state is State.CLOSED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncSession:
        self._coroutines = AsyncSession(self._driver)
        return self._coroutines

    async def __aexit__(self, *_: object) -> None:
        if self._coroutines is not None:
            await self._coroutines.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled or copied: pass the model on, and make another session there")

    def __repr__(self) -> str:
        return f"<pycrispasr.Session{' closed' if self.closed else ''}>"

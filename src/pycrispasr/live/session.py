"""A session: audio in, tokens, live text and events out."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.decoding.scheduler import Batch, Recording, Stretch
from pycrispasr.errors import AudioError, BusyError, CancelledError, ClosedError, UsageError
from pycrispasr.live.audio_queue import Handover
from pycrispasr.live.events import Event, Final, Overrun, Partial
from pycrispasr.live.stabilizer import Caption, LiveText
from pycrispasr.results.transcript import Segment, Token, Transcript
from pycrispasr.runtimes import native
from pycrispasr.segmentation.segmenter import LONGEST, Cut, Cutter, Vad

if TYPE_CHECKING:
    from typing_extensions import Self

    from pycrispasr.live.async_session import AsyncSession

_BEHIND = 1.0  # seconds of audio that wait: no text is made then that is not final
_TURN = 0.5  # seconds of audio that are taken from the queue at once


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

    def __init__(
        self,
        batch: Batch,
        *,
        vad: Vad = "auto",
        silence: float | None = None,
        partial_every: float | None = None,
        buffer: float = 30.0,
    ) -> None:
        self._batch: Batch | None = batch
        self._vad, self._silence, self._buffer = vad, silence, buffer
        self._partial_every = partial_every
        self._process = os.getpid()
        self._coroutines: AsyncSession | None = None
        self._lock = threading.Lock()
        self._listener: Callable[[], object] | None = None
        self._clear()

    def _clear(self) -> None:
        self._cancel_asked = False
        self._resampler: audio.Resampler | None = None
        self._cutter = Cutter(vad=self._vad, silence=self._silence)
        self._handover = Handover(self._buffer, self._listener)
        self._recording = Recording()
        self._ended = False  # the audio
        self._finished = False
        self._given = 0, 0  # stretches, and tokens of the next, that `tokens` gave
        self._told = 0  # final segments that became events
        self._caption = Caption()
        self._hypothesis: Stretch | None = None  # the last one for the stretch that goes on
        self._hypothesis_end = 0  # in samples from the beginning of the audio
        self._hypothesis_time = self._hypothesis_cost = 0.0
        self._events: collections.deque[Event] = collections.deque()
        self._seconds = 0.0

    def feed(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> None:
        """Appends samples to the audio, and does all the work that is possible with them.

        Each 8 seconds are encoded, and read by the decoder, as soon as more follows. A stretch that is complete is
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
        with self._inside() as batch:
            self._check_cancelled(batch)
            if self._ended or self._handover.ended:
                raise _after_the_end()
            if self._handover.rate:
                raise UsageError("samples were pushed into this session: feed() cannot be used until reset()")
            resampler = self._resampler or audio.Resampler(sample_rate)
            _same_rate(sample_rate, resampler.sample_rate)
            mono = audio.to_mono(samples)
            self._hear(batch, mono, resampler)

    def push(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE, wait: bool = False) -> bool:
        """Appends samples to a queue, from which `events` takes them. Never waits for work, unless it is told to.

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
        if self._batch is None:
            raise _closed()
        handover = self._handover
        if handover.ended or self._ended:
            raise _after_the_end()
        if self._resampler is not None and not handover.rate:
            raise UsageError("samples were fed to this session: push() cannot be used until reset()")
        rate = audio.check_rate(sample_rate)
        if handover.rate:
            _same_rate(rate, handover.rate)
        # A copy: the caller may fill the same array again.
        return handover.push(np.array(audio.to_mono(samples)), rate, wait=wait)

    def end(self) -> None:
        """Tells that no more samples will be pushed: `events` comes to its end. May be called from any thread.

        A text that is not final is not finished any more; the final one comes the sooner.
        """
        self._handover.end()
        batch = self._batch
        if batch is not None:
            batch.native.hurry()

    def events(self) -> Iterator[Event]:
        """Does the work on what is pushed, and tells what happens, until `end` was called and all is done.

        The work is done inside this iterator, in the thread that iterates: a loop that takes its time gives later
        events and fewer `Partial` ones, and loses nothing before the queue is full. It may be left and called again.

        Returns:
            An iterator, which raises what `finish` raises.
        """
        while True:
            while (event := self._next_event()) is not None:
                yield event
            if self.closed:
                raise _closed()
            if self._finished:
                return
            self._handover.wait()
            self._turn()

    def poll(self) -> list[Event]:
        """The events since the last call. May be called from any thread. It does no work.

        Of several `Partial` events in succession only the last is kept.
        """
        return list(iter(self._next_event, None))

    def _next_event(self) -> Event | None:
        try:
            return self._events.popleft()
        except IndexError:
            return None

    @property
    def text(self) -> LiveText:
        """The text so far, of the whole session. May be read from any thread. Reading it does no work."""
        return self._caption.text

    @property
    def lost(self) -> float:
        """Seconds of audio that were lost because they were pushed faster than they could be worked on."""
        return self._recording.lost

    def tokens(self) -> Iterator[Token]:
        """Ends the audio, and gives its tokens one by one as they are decoded.

        Returns:
            An iterator over the tokens that were not given yet. It raises what `finish` raises, and may be left at any
            time: `finish` goes on where it was.
        """
        return iter(self._next_token, None)

    def __iter__(self) -> Iterator[Token]:
        return self.tokens()

    def finish(self, *, progress: Callable[[float, float | None], object] | None = None) -> Transcript:
        """Ends the audio, and gives the transcript of all of it.

        Args:
            progress: Called with the seconds of audio done and their total, or None where that is not known yet: at the
                beginning, and when stretches are done.

        Raises:
            AudioError: No audio was fed, or too little for this model.
            CancelledError: `cancel` was called. What was done until then is in its `partial`.
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
            OutOfMemoryError: An allocation failed.
        """
        with self._inside() as batch:
            self._finish(batch, progress)
            return self._transcript()

    def cancel(self) -> None:
        """Stops the call that is running in this session, or else the next one, with a `CancelledError`.

        May be called from any thread, at any time. The session stays cancelled until `reset`.
        """
        self._cancel_asked = True
        self._handover.stop()
        batch = self._batch
        if batch is not None:
            batch.native.cancel()

    def reset(self) -> None:
        """Forgets audio, text and a cancellation: the session is as new, and keeps its buffers.

        Raises:
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
        """
        with self._inside() as batch:
            self._handover.stop()
            self._clear()
            batch.reset()

    def close(self) -> None:
        """Frees the session's memory. A call that runs in another thread is cancelled. Closing twice is allowed."""
        if self._process == os.getpid():
            self.cancel()
        self._batch = None

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._batch is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncSession:
        from pycrispasr.live.async_session import AsyncSession

        self._coroutines = AsyncSession(self)
        return self._coroutines

    async def __aexit__(self, *_: object) -> None:
        if self._coroutines is not None:
            await self._coroutines.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled or copied: pass the model on, and make another session there")

    def __repr__(self) -> str:
        return f"<pycrispasr.Session{' closed' if self.closed else ''}>"

    def _listen_to_queue(self, listener: Callable[[], object]) -> None:
        """Calls it whenever the queue has changed, from the thread that did it."""
        self._listener = self._handover.listener = listener

    def _has_room(self, samples: int, sample_rate: float) -> bool:
        """True when so many samples can be pushed, or when nothing can."""
        return self.closed or self._handover.has_room(samples, audio.check_rate(sample_rate))

    @contextlib.contextmanager
    def _inside(self) -> Iterator[Batch]:
        """One call at a time: every method that reads or changes the session's state runs in here."""
        batch = self._batch
        if batch is None:
            raise _closed()
        if self._process != os.getpid():
            raise UsageError("this session belongs to the process that was forked: make another one here")
        if not self._lock.acquire(blocking=False):
            raise BusyError("another thread is using this session: give each thread a session of its own")
        self._entered = time.perf_counter()
        try:
            yield batch
        except native.Cancelled:
            raise self._cancelled(batch) from None
        finally:
            self._tell_finals()
            self._seconds += time.perf_counter() - self._entered
            self._lock.release()

    def _check_cancelled(self, batch: Batch) -> None:
        if self._cancel_asked:
            raise self._cancelled(batch)

    def _cancelled(self, batch: Batch) -> CancelledError:
        return CancelledError(
            f"the transcription was cancelled with {len(self._recording.finals)} segments done: "
            "the text until then is in .partial, and reset() makes the session usable again",
            self._transcript(batch),
        )

    def _hear(self, batch: Batch, mono: audio.Samples, resampler: audio.Resampler) -> None:
        """More of the audio, at its own rate, and all the work that it brings."""
        self._resampler = resampler
        self._cut(batch, resampler.push(mono))
        self._listen(batch)

    def _cut(self, batch: Batch, samples: audio.Samples) -> None:
        """More of the audio at 16 kHz. Stretches that become complete are decoded, as soon as no sequence is free."""
        self._recording.n_samples += len(samples)
        for mark in self._cutter.push(samples):
            if not isinstance(mark, Cut):
                self._events.append(mark)
                continue
            self._end_stretch(batch, mark)
            while batch.full or self._recording.waiting:
                batch.advance(self._recording, batch.native.sequences)
            self._tell_finals()

    def _end_stretch(self, batch: Batch, cut: Cut) -> None:
        self._recording.append(cut)
        self._hypothesis = None
        batch.stop_listening(self._recording)

    def _listen(self, batch: Batch) -> None:
        """The stretch that goes on: its new samples, and its text so far when it is time for that."""
        stretch = self._cutter.open()
        if stretch is None:
            return
        batch.listen(stretch)
        end = stretch.start + batch.heard
        fresh = end - max(self._hypothesis_end, stretch.start)
        now = time.perf_counter()
        if (
            self._partial_every is None
            or fresh < self._partial_every * audio.SAMPLE_RATE
            or now < self._hypothesis_time + self._hypothesis_cost  # at most half of the time
            or self._handover.seconds > _BEHIND
            or self._handover.ended
            or len(stretch.samples) > LONGEST
            or not self._recording.finished
        ):
            return
        self._hypothesis = batch.hypothesis(stretch.start)
        self._hypothesis_end = end
        self._hypothesis_time = time.perf_counter()
        self._hypothesis_cost = self._hypothesis_time - now
        committed, tentative = self._caption.hear(self._hypothesis.text)
        with contextlib.suppress(IndexError):  # another thread may poll
            if isinstance(self._events[-1], Partial):
                self._events.pop()
        self._events.append(Partial(stretch.start / audio.SAMPLE_RATE, end / audio.SAMPLE_RATE, committed, tentative))

    def _tell_finals(self) -> None:
        """Makes events of the segments that have become final."""
        for segment in self._recording.finals[self._told :]:
            self._caption.end(segment.text)
            self._events.append(Final(segment))
            self._told += 1

    def _turn(self) -> None:
        """Works on some of what was pushed, or ends the audio when nothing is left and `end` was called."""
        with self._inside() as batch:
            self._work(batch)

    def _work(self, batch: Batch) -> None:
        self._check_cancelled(batch)
        heard, ended = self._recording.n_samples, self._handover.ended
        while self._recording.n_samples - heard <= _TURN * audio.SAMPLE_RATE:
            if not self._hear_pushed(batch):
                if ended:
                    self._finish(batch)
                return

    def _hear_pushed(self, batch: Batch) -> bool:
        """Works on the next block of what was pushed. False when there is none."""
        block = self._handover.take()
        if block is None:
            return False
        resampler = self._resampler or audio.Resampler(self._handover.rate)
        if isinstance(block, int):
            self._lose(batch, block, resampler)
        else:
            self._hear(batch, block, resampler)
        return True

    def _lose(self, batch: Batch, count: int, resampler: audio.Resampler) -> None:
        """Hears silence for samples that were lost."""
        start = self._recording.seconds
        lost = count / resampler.sample_rate
        self._recording.lost += lost
        self._events.append(Overrun(start, start + lost))
        silence = np.zeros(resampler.sample_rate, np.float32)
        for first in range(0, count, len(silence)):
            self._hear(batch, silence[: count - first], resampler)

    def _end_audio(self, batch: Batch) -> None:
        """Plans the rest of the work, once."""
        if not self._ended:
            if self._handover.rate:
                self._handover.end()
            self._check_cancelled(batch)
            while self._hear_pushed(batch):
                self._check_cancelled(batch)
            if self._resampler is None:
                raise AudioError("no audio was fed: call feed() or push() before the end")
            self._ended = True
            self._cut(batch, self._resampler.finish())
            for cut in self._cutter.finish():
                self._end_stretch(batch, cut)
        if self._resampler is not None and not self._recording.n_samples:
            raise AudioError("the audio is empty: all that was fed are 0 samples")

    def _take(self, recording: Recording) -> None:
        """Makes a whole recording the session's audio: as if it had been fed, but no work is done yet."""
        self._recording = recording
        self._ended = True
        self._handover.end()

    def _finish(self, batch: Batch, progress: Callable[[float, float | None], object] | None = None) -> None:
        recording = self._recording
        self._end_audio(batch)
        done = -1.0
        while True:
            if progress and recording.seconds_done > done:
                done = recording.seconds_done
                progress(done, recording.seconds_expected)
            if not batch.advance(recording, batch.native.sequences):
                break
        self._all_done()

    def _all_done(self) -> None:
        """No work is left. Raises what the whole recording failed of."""
        self._finished = True
        if self._recording.failure is not None:
            raise self._recording.failure

    def _next_segment(self) -> Segment | None:
        """Ends the audio, and gives the next segment that is final; None behind the last one."""
        with self._inside() as batch:
            recording = self._recording
            self._end_audio(batch)
            self._check_cancelled(batch)
            place = self._given[0]
            while place == len(recording.finals) and batch.advance(recording, batch.native.sequences):
                pass
            if place < len(recording.finals):
                self._given = place + 1, 0
                return recording.finals[place]
            self._all_done()
            return None

    def _next_token(self) -> Token | None:
        with self._inside() as batch:
            recording = self._recording
            self._end_audio(batch)
            self._check_cancelled(batch)
            while True:
                place, given = self._given
                if place == len(recording.stretches) and not recording.ready():
                    self._all_done()
                    return None
                stretch = recording.stretches[place]
                if given < len(stretch.tokens):
                    stretch.may_split = False
                    self._given = place, given + 1
                    final = place < len(recording.finals)
                    segment = recording.finals[place] if final else stretch.segment(recording.text)
                    return segment.tokens[given]
                if stretch.status:
                    self._given = place + 1, 0
                else:
                    batch.advance(recording, 1)

    def _transcript(self, batch: Batch | None = None) -> Transcript:
        """What has been done: all of it, or, with what is still being worked on, what a cancellation left."""
        seconds = self._seconds + time.perf_counter() - self._entered
        if batch is None:
            return self._recording.transcript(seconds)
        return self._recording.transcript(seconds, batch.work_on(self._recording), self._hypothesis)


def _same_rate(rate: float, before: int) -> None:
    if rate != before:
        raise AudioError(f"sample_rate cannot change from {before} to {rate} within one recording: call reset() first")


def _closed() -> ClosedError:
    return ClosedError("this session is closed: make another one with Model.session()")


def _after_the_end() -> UsageError:
    return UsageError("no samples can be fed after the audio has ended: call reset() for another recording")

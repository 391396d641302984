"""What `Session` and `AsyncSession` stand on: audio in, events out, in steps that somebody calls."""

from __future__ import annotations

import collections
import contextlib
import enum
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.decoding.decoder import EngineDecoder
from pycrispasr.decoding.exclusive import Exclusive
from pycrispasr.decoding.recording import Recording, Task
from pycrispasr.decoding.scheduler import Scheduler
from pycrispasr.errors import AudioError, CancelledError, ClosedError, UsageError
from pycrispasr.live.audio_queue import AudioQueue
from pycrispasr.live.stabilizer import LiveText, Stabilizer
from pycrispasr.options import Vad
from pycrispasr.results.events import Event, Final, Overrun, Partial, Silence, SpeechStarted
from pycrispasr.results.segment import Token
from pycrispasr.results.transcript import Transcript
from pycrispasr.runtimes import native
from pycrispasr.segmentation.segmenter import LONGEST, AudioSegment, Mark, Segmenter, SpeechStart

_BEHIND = 1.0  # partial texts are skipped while more seconds of audio are queued
_STEP = 0.5  # seconds of audio that are taken from the queue at once


class State(enum.IntEnum):
    """How far a session is. It only goes up, until the session is reset."""

    OPEN = 0  # audio comes
    ENDED = 1  # all audio is known, and not all of its text
    CANCELLED = 2
    DONE = 3
    CLOSED = 4


class Driver:
    """A session's audio, text and events. Work is done inside `feed`, `step`, `next_token` and `finish`.

    One thread at a time is inside these. What stands before these
    may be used from any thread, at any time.

    Args:
        decoder: Decodes segments. The driver is its only user.
        vad: As for `ReadingOptions`.
        silence: As for `ReadingOptions`.
        partial_every: As for `Model.session`.
        buffer: As for `Model.session`.
    """

    def __init__(
        self,
        decoder: EngineDecoder,
        *,
        vad: Vad = "auto",
        silence: float | None = None,
        partial_every: float | None = None,
        buffer: float = 30.0,
    ) -> None:
        self.decoder: EngineDecoder | None = decoder
        self._listener: Callable[[], object] | None = None
        self._vad, self._silence, self._buffer = vad, silence, buffer
        self._partial_every = partial_every
        self._exclusive = Exclusive("session")
        self._state, self._state_lock = State.OPEN, threading.Lock()
        self._clear(decoder)

    def _clear(self, decoder: EngineDecoder) -> None:
        self._resampler: audio.Resampler | None = None
        self._segmenter = Segmenter(vad=self._vad, silence=self._silence)
        self._queue = AudioQueue(self._buffer, self._listener)
        self._recording = Recording()
        self._scheduler = Scheduler(decoder)
        self._scheduler.begun.append(self._recording)
        self._told = 0  # final segments that became events
        self._stabilizer = Stabilizer()
        self._hypothesis: Task | None = None  # the last one for the segment in progress
        self._hypothesis_end = 0  # in samples from the beginning of the audio
        self._hypothesis_time = self._hypothesis_cost = 0.0
        self._events: collections.deque[Event] = collections.deque()
        self._seconds = 0.0

    @property
    def state(self) -> State:
        """How far it is."""
        return self._state

    def _move(self, state: State) -> None:
        with self._state_lock:
            self._state = max(self._state, state)

    # From any thread.

    @property
    def text(self) -> LiveText:
        """The text so far."""
        return self._stabilizer.text

    @property
    def lost(self) -> float:
        """Seconds of audio that were lost."""
        return self._recording.lost

    def push(self, samples: npt.NDArray[Any], sample_rate: float, *, wait: bool) -> bool:
        """As `Session.push`."""
        self._exclusive.check_process()
        if self._state is State.CLOSED:
            raise closed()
        queue = self._queue
        if queue.ended or self._state in (State.ENDED, State.DONE):
            raise _after_the_end()
        if self._resampler is not None and not queue.rate:
            raise UsageError("samples were fed to this session: push() cannot be used until reset()")
        rate = audio.check_rate(sample_rate)
        if queue.rate:
            _same_rate(rate, queue.rate)
        # A copy: the caller may fill the same array again.
        return queue.push(np.array(audio.to_mono(samples)), rate, wait=wait)

    def has_room(self, samples: int, sample_rate: float) -> bool:
        """True when so many samples can be pushed, or when nothing can."""
        self._exclusive.check_process()
        return self._state is State.CLOSED or self._queue.has_room(samples, audio.check_rate(sample_rate))

    def end(self) -> None:
        """No more samples will be pushed. Aborts the running partial so that the final text comes sooner."""
        self._exclusive.check_process()
        self._queue.end()
        decoder = self.decoder
        if decoder is not None:
            decoder.finish_early()

    def cancel(self) -> None:
        """Stops the call that is inside, or else the next one."""
        self._exclusive.check_process()
        self._move(State.CANCELLED)
        self._queue.stop()
        decoder = self.decoder
        if decoder is not None:
            decoder.cancel()

    def close(self) -> None:
        """Cancels what is going on, and lets go of the session's memory."""
        if self._exclusive.is_forked:
            self._state = State.CLOSED
        else:
            self.cancel()
            self._move(State.CLOSED)
        self.decoder = None

    def next_event(self) -> Event | None:
        """The next event that has not been given, or None. It does no work."""
        try:
            return self._events.popleft()
        except IndexError:
            return None

    def ready(self) -> bool:
        """True when `step` has something to do."""
        self._exclusive.check_process()
        return self._queue.ready()

    def wait(self) -> None:
        """Returns when it is ready."""
        self._exclusive.check_process()
        self._queue.wait()

    def listen(self, listener: Callable[[], object]) -> None:
        """Calls it whenever the queue has changed, from the thread that did it."""
        self._listener = self._queue.listener = listener

    # One thread at a time.

    def feed(self, samples: npt.NDArray[Any], sample_rate: float) -> None:
        """As `Session.feed`."""
        with self._inside() as decoder:
            if self._state is State.CANCELLED:
                raise self._cancelled(decoder)
            if self._state > State.OPEN or self._queue.ended:
                raise _after_the_end()
            if self._queue.rate:
                raise UsageError("samples were pushed into this session: feed() cannot be used until reset()")
            resampler = self._resampler or audio.Resampler(sample_rate)
            _same_rate(sample_rate, resampler.sample_rate)
            mono = audio.to_mono(samples)
            self._hear(decoder, mono, resampler)

    def step(self) -> None:
        """Works on some of what was pushed, or ends the audio when nothing is left and `end` was called."""
        with self._inside() as decoder:
            if self._state is State.CANCELLED:
                raise self._cancelled(decoder)
            heard, ended = self._recording.n_samples, self._queue.ended
            while self._recording.n_samples - heard <= _STEP * audio.SAMPLE_RATE:
                if not self._hear_pushed(decoder):
                    if ended:
                        self._finish(decoder)
                    return

    def next_token(self) -> Token | None:
        """Ends the audio, and gives the next token; None behind the last one."""
        with self._inside() as decoder:
            self._end_audio(decoder)
            token = self._scheduler.next_token()
            if token is None:
                self._move(State.DONE)
            return token

    def finish(self, progress: Callable[[float, float | None], object] | None = None) -> Transcript:
        """Ends the audio, and gives the transcript of all of it."""
        with self._inside() as decoder:
            self._finish(decoder, progress)
            return self._recording.transcript(self._seconds_inside())

    def reset(self) -> None:
        """Forgets audio, text and a cancellation."""
        with self._inside() as decoder:
            self._queue.stop()
            with self._state_lock:  # first: a cancellation that comes from now on is one of the new recording
                if self._state is not State.CLOSED:
                    self._state = State.OPEN
            self._clear(decoder)
            decoder.reset()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[EngineDecoder]:
        """Around every call that reads or changes what only one thread may."""
        decoder = self.decoder
        if decoder is None:
            raise closed()
        with self._exclusive.entered():
            self._entered = time.perf_counter()
            try:
                yield decoder
            except native.Cancelled:
                raise self._cancelled(decoder) from None
            finally:
                self._tell_finals()
                self._seconds = self._seconds_inside()

    def _seconds_inside(self) -> float:
        return self._seconds + time.perf_counter() - self._entered

    def _cancelled(self, decoder: EngineDecoder) -> CancelledError:
        recording = self._recording
        partial = recording.transcript(self._seconds_inside(), decoder.running_of(recording), self._hypothesis)
        return CancelledError(
            f"the transcription was cancelled with {len(recording.finals)} segments done: the text until then is in "
            ".partial, and reset() makes the session usable again",
            partial,
        )

    def _hear(self, decoder: EngineDecoder, mono: audio.Samples, resampler: audio.Resampler) -> None:
        """More of the audio, at its own rate, and all the work that it brings."""
        self._resampler = resampler
        self._segment(decoder, resampler.push(mono))
        self._hear_segment(decoder)

    def _segment(self, decoder: EngineDecoder, samples: audio.Samples) -> None:
        """More of the audio at 16 kHz. Segments that become complete are decoded, as soon as no sequence is free."""
        self._recording.n_samples += len(samples)
        for mark in self._segmenter.push(samples):
            if not isinstance(mark, AudioSegment):
                self._events.append(_event(mark))
                continue
            self._end_segment(decoder, mark)
            while decoder.full or self._recording.waiting:
                self._scheduler.step()
            self._tell_finals()

    def _end_segment(self, decoder: EngineDecoder, segment: AudioSegment) -> None:
        self._recording.append(segment)
        self._hypothesis = None
        decoder.stop_listening(self._recording)

    def _hear_segment(self, decoder: EngineDecoder) -> None:
        """The segment in progress: its new samples, and its text so far when it is time for that."""
        segment = self._segmenter.in_progress()
        if segment is None:
            return
        decoder.listen(segment)
        end = segment.start + decoder.heard
        fresh = end - max(self._hypothesis_end, segment.start)
        now = time.perf_counter()
        if (
            self._partial_every is None
            or fresh < self._partial_every * audio.SAMPLE_RATE
            or now < self._hypothesis_time + self._hypothesis_cost  # at most half of the time
            or self._queue.seconds > _BEHIND
            or self._queue.ended
            or len(segment.samples) > LONGEST
            or not self._recording.finished
        ):
            return
        self._hypothesis = decoder.hypothesis(segment.start)
        self._hypothesis_end = end
        self._hypothesis_time = time.perf_counter()
        self._hypothesis_cost = self._hypothesis_time - now
        committed, tentative = self._stabilizer.hear(self._hypothesis.text)
        with contextlib.suppress(IndexError):  # another thread may poll
            if isinstance(self._events[-1], Partial):
                self._events.pop()
        self._events.append(Partial(segment.start / audio.SAMPLE_RATE, end / audio.SAMPLE_RATE, committed, tentative))

    def _tell_finals(self) -> None:
        """Makes events of the segments that have become final."""
        for segment in self._recording.finals[self._told :]:
            self._stabilizer.end(segment.text)
            self._events.append(Final(segment))
            self._told += 1

    def _hear_pushed(self, decoder: EngineDecoder) -> bool:
        """Works on the next block of what was pushed. False when there is none."""
        block = self._queue.take()
        if block is None:
            return False
        resampler = self._resampler or audio.Resampler(self._queue.rate)
        if isinstance(block, int):
            self._lose(decoder, block, resampler)
        else:
            self._hear(decoder, block, resampler)
        return True

    def _lose(self, decoder: EngineDecoder, count: int, resampler: audio.Resampler) -> None:
        """Hears silence for samples that were lost."""
        start = self._recording.seconds
        lost = count / resampler.sample_rate
        self._recording.lost += lost
        self._events.append(Overrun(start, start + lost))
        silence = np.zeros(resampler.sample_rate, np.float32)
        for first in range(0, count, len(silence)):
            self._hear(decoder, silence[: count - first], resampler)

    def _end_audio(self, decoder: EngineDecoder) -> None:
        """Hears what is left in the queue, and plans the rest of the work, once."""
        if self._state is State.OPEN:
            if self._queue.rate:
                self._queue.end()
            while self._state is State.OPEN and self._hear_pushed(decoder):
                pass
        if self._state is State.CANCELLED:
            raise self._cancelled(decoder)
        if self._state is State.OPEN:
            if self._resampler is None:
                raise AudioError("no audio was fed: call feed() or push() before the end")
            self._move(State.ENDED)
            self._segment(decoder, self._resampler.finish())
            for segment in self._segmenter.finish():
                self._end_segment(decoder, segment)
        if not self._recording.n_samples:
            raise AudioError("the audio is empty: all that was fed are 0 samples")

    def _finish(self, decoder: EngineDecoder, progress: Callable[[float, float | None], object] | None = None) -> None:
        recording, done = self._recording, -1.0
        self._end_audio(decoder)
        while True:
            if progress and recording.seconds_done > done:
                done = recording.seconds_done
                progress(done, recording.seconds_expected)
            if not self._scheduler.step():
                break
        self._move(State.DONE)
        if recording.failure is not None:
            raise recording.failure


def closed() -> ClosedError:
    """What a closed session raises."""
    return ClosedError("this session is closed: make another one with Model.session()")


def _event(mark: Mark) -> Event:
    """What a mark of the segmenter tells."""
    kind = SpeechStarted if isinstance(mark, SpeechStart) else Silence
    return kind(mark[0] / audio.SAMPLE_RATE)


def _same_rate(rate: float, before: int) -> None:
    if rate != before:
        raise AudioError(f"sample_rate cannot change from {before} to {rate} within one recording: call reset() first")


def _after_the_end() -> UsageError:
    return UsageError("no samples can be fed after the audio has ended: call reset() for another recording")

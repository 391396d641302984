"""The engine of a model: one thread that decodes for every caller, all their segments side by side.

Callers hand in requests, and wait. The thread works in turns. A turn is a block of audio of one request, which is
encoded and read by the decoder, or some steps, each of which gives a token to every request that is that far
(continuous batching, chunked prefill). Who comes next:

1. Sequences of the session go to live requests, and to those that have waited for `PATIENCE` seconds; then to the
   others; each in order of arrival. So nobody starves. A live request that pauses gives its sequence to one that waits,
   and is heard anew from its beginning when it goes on, with the same result.
2. Blocks come in the same order. While requests decode or live ones listen, a block is as many attention windows as
   take `BLOCK` seconds, or one. Steps follow as soon as `GAP` seconds have passed since the last one, and while a live
   request decodes they take as long as the block took.
3. A request that fails beside others is tried once more with none beside it: only then does its failure count.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import enum
import functools
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.errors import AudioError, ClosedError, OutOfMemoryError
from pycrispasr.runtimes import native

PATIENCE = 10.0  # seconds after which a recording's request comes before live ones that came later
GAP = 0.25  # seconds without a step, beyond the block that is being worked on
BLOCK = 0.4  # seconds that a block takes, where a window takes less
_ALL = 2**16  # windows
_SLICE = 0.05  # seconds of steps between looks at what has come in
_QUEUE = 256  # requests that wait for a sequence; who hands in more waits
_RATES = 10.0  # seconds over which rates are measured
_EXIT = 2.0  # seconds that the interpreter's end waits for the thread

_T = TypeVar("_T")
_Message = tuple[Callable[[Any, Any], object], Any]  # a method of the engine, and its argument
_Inbox: TypeAlias = "queue.SimpleQueue[_Message | None]"  # None ends the thread. The collector may put into it.


class _Phase(enum.Enum):
    WAITING = 1  # for a sequence
    PARKED = 2  # without a sequence, and without work
    LISTENING = 3  # more audio comes
    READING = 4  # audio is worked on, which has ended, or as if it had
    DECODING = 5


class Request:
    """A segment on its way to its text. Callers read it; only the engine's thread changes what is not an argument.

    Args:
        max_new_tokens: Where its text is cut.
        attention: Keep the attention of the session's heads.
        language: The English name of the language that is spoken, or None.
        context: What the audio may be about, or None.
        live: Somebody is speaking at this moment.
        notify: Called whenever there is news: from the engine's thread, and never for long.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int,
        attention: bool,
        live: bool,
        notify: Callable[[], object],
        language: str | None = None,
        context: str | None = None,
    ) -> None:
        self.max_new_tokens, self.wants_attention, self.live, self.notify = max_new_tokens, attention, live, notify
        self.language, self.context = language, context
        self.streams = False  # notify of every token
        self.cancelled = False
        self.tokens: list[tuple[int, float]] = []  # with their probabilities: only ever grows
        self.hypothesis: list[tuple[int, float]] | None = None  # the one that was asked for last, when it is there
        self.done = False  # set last: what follows is complete
        self.failure: BaseException | None = None
        self.result: dict[str, Any] | None = None  # of the library; None: it never had a sequence
        self.attention: npt.NDArray[np.float32] | None = None

        self._phase = _Phase.PARKED
        self._arrival = 0.0
        self._sequence = -1
        self._samples: list[audio.Samples] = []  # all of them: it may be heard anew
        self._n_samples = 0
        self._fed = 0  # blocks of them
        self._end: int | None = None  # in samples
        self._has_ended = False  # for the session
        self._wants_hypothesis = self._in_hypothesis = False
        self._read = 0  # samples that were worked on, about
        self._taken = 0  # tokens that the sequence has given
        self._alone = False


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine of a model does, for all callers together.

    Attributes:
        running: Segments that are being worked on.
        waiting: Segments that wait for their turn.
        sequences: Segments that can be worked on at once.
        tokens: Tokens decoded since the model was opened.
        audio_seconds: Seconds of audio whose text is complete, since then.
        tokens_per_second: Over the last ten seconds.
        audio_seconds_per_second: Over the last ten seconds.
        memory_bytes: The model's weights in use, and the engine's caches and buffers.
    """

    running: int = 0
    waiting: int = 0
    sequences: int = 0
    tokens: int = 0
    audio_seconds: float = 0.0
    tokens_per_second: float = 0.0
    audio_seconds_per_second: float = 0.0
    memory_bytes: int = 0


class Engine:
    """Decodes requests of any number of threads in a thread of its own, which ends with it.

    Args:
        open_session: Makes the session, in the engine's thread, when it is needed first.
        clock: Seconds.
    """

    def __init__(
        self, open_session: Callable[[], native.NativeSession], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.process = os.getpid()
        self.session: native.NativeSession | None = None
        self._open_session, self._clock = open_session, clock
        self._requests: list[Request] = []  # with a sequence, by arrival
        self._waiting: list[Request] = []
        self._owed = 0.0  # seconds of steps before the next block
        self._stepped = 0.0  # when the last steps ended
        self._cost = math.inf  # seconds that a sample takes
        self._tokens, self._audio_seconds, self._memory = 0, 0.0, 0
        self._recent: collections.deque[tuple[float, int, float]] = collections.deque()
        self._stopping = False
        self._inbox: _Inbox = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_serve, args=(weakref.ref(self), self._inbox), name="pycrispasr", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            raise OutOfMemoryError(f"no thread can be started: {error}") from error
        self._at_exit = functools.partial(_stop_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)

    def __del__(
        self, getpid: Callable[[], int] = os.getpid, unregister: Callable[..., None] = atexit.unregister
    ) -> None:
        if hasattr(self, "_at_exit") and self.process == getpid():
            unregister(self._at_exit)
            self._inbox.put(None)

    # From any thread. Nothing here takes a lock that the collector could find held.

    def opened(self) -> native.NativeSession:
        """The session, which is made if need be.

        Raises:
            PycrispasrError: What keeps it from being made.
        """
        return self.session or self.ask(Engine._opened)

    def submit(self, request: Request, samples: audio.Samples, *, ended: bool) -> None:
        """Hands a request in. It waits while too many others do.

        Args:
            request: Is new.
            samples: Of its audio so far, at 16 kHz.
            ended: That is all of it.

        Raises:
            ClosedError: The interpreter is ending.
        """
        self.check_caller()
        while len(self._waiting) + self._inbox.qsize() >= _QUEUE and not request.cancelled:
            time.sleep(0.01)
        self._tell(Engine._feed, (request, samples, len(samples) if ended else None))

    def feed(self, request: Request, samples: audio.Samples) -> None:
        """More of the audio of a request that has not ended."""
        self._tell(Engine._feed, (request, samples, None))

    def end(self, request: Request, n_samples: int) -> None:
        """The audio of a request has ended, after so many of its samples. A hypothesis ends early."""
        self._tell(Engine._feed, (request, audio.NOTHING, n_samples))

    def ask_hypothesis(self, request: Request) -> None:
        """Sets `request.hypothesis` as soon as it is there: the text of what was fed so far, as if it ended here."""
        request.hypothesis = None
        self._tell(Engine._ask_hypothesis, request)

    def finish_early(self, request: Request) -> None:
        """Has a hypothesis end now, with what is decoded of it and what was expected behind that."""
        self._tell(Engine._finish_early, request)

    def drop(self, *requests: Request) -> None:
        """Gives requests up, within a step. They are `done` then, with what there is of them."""
        for request in requests:
            request.cancelled = True
        self._tell(Engine._drop, requests)
        session, running = self.session, tuple(self._requests)
        if session is not None and running and all(one.cancelled for one in running):
            session.cancel()  # nobody else's work is lost; a newcomer's is begun again

    def align(self, samples: audio.Samples, tokens: list[int]) -> tuple[list[tuple[int, float]], dict[str, Any]]:
        """The bins of time at the places of a text, and the library's result, of a model that tells them.

        One text is worked on at a time.

        Args:
            samples: All of the audio, mono at 16 kHz, `[n]`.
            tokens: Of the text; -1 for a place.

        Raises:
            PycrispasrError: What the work fails of.
            ClosedError: The interpreter is ending.
        """
        return self.ask(functools.partial(Engine._align, samples=samples, tokens=tokens))

    def stats(self, weight_bytes: int) -> EngineStats:
        """What it does.

        Args:
            weight_bytes: Of the model.
        """
        now = self._clock()
        recent = [(tokens, seconds) for when, tokens, seconds in tuple(self._recent) if when > now - _RATES]
        return EngineStats(
            running=sum(one._phase is not _Phase.LISTENING for one in tuple(self._requests)),
            waiting=len(self._waiting),
            sequences=self.session.sequences if self.session else 0,
            tokens=self._tokens,
            audio_seconds=self._audio_seconds,
            tokens_per_second=sum(tokens for tokens, _ in recent) / _RATES,
            audio_seconds_per_second=sum(seconds for _, seconds in recent) / _RATES,
            memory_bytes=weight_bytes + self._memory,
        )

    def stop(self) -> None:
        """Ends the thread, for the end of the interpreter, which leaves threads that still wait as they are."""
        self._stopping = True
        session = self.session
        if session is not None:
            session.cancel()
        self._inbox.put(None)
        self._thread.join(_EXIT)

    def check_caller(self) -> None:
        """Before anything that waits for the engine.

        Raises:
            ClosedError: It would wait for ever.
        """
        if self._stopping and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()  # a daemon thread, which the interpreter's end leaves where it is
        if self._stopping:
            raise ClosedError("nothing can be transcribed any more: the program is ending")
        if threading.get_ident() == self._thread.ident:
            # The collector has found a generator while this thread was running, and its `finally` goes on working.
            raise ClosedError("what the garbage collector finds cannot go on with a transcription: close it in time")

    def _tell(self, what: Callable[[Any, Any], object], about: object) -> None:
        if self.process != os.getpid():
            return  # a fork has no such thread; what is dropped there is gone
        self._inbox.put((what, about))
        session = self.session
        if session is not None:
            session.wake()

    def ask(self, function: Callable[[Engine], _T]) -> _T:
        """Runs a function in the engine's thread, and gives what it gives."""
        self.check_caller()
        reply: concurrent.futures.Future[_T] = concurrent.futures.Future()
        self._tell(Engine._answer, (function, reply))
        return reply.result()

    # In the engine's thread.

    def _answer(self, call: tuple[Callable[[Engine], Any], concurrent.futures.Future[Any]]) -> None:
        function, reply = call
        try:
            reply.set_result(function(self))
        except Exception as error:  # noqa: BLE001  it is the caller's
            reply.set_exception(error)

    def _align(self, samples: audio.Samples, tokens: list[int]) -> tuple[list[tuple[int, float]], dict[str, Any]]:
        session = self._opened()
        try:
            places = session.align(samples, tokens)
        except native.Cancelled:
            raise ClosedError("nothing can be aligned any more: the program is ending") from None
        finally:
            self._memory = session.memory
        self._count(0, len(samples) / audio.SAMPLE_RATE)
        return places, session.result()

    def _opened(self) -> native.NativeSession:
        if self.session is None:
            self.session = self._open_session()
        return self.session

    def _feed(self, message: tuple[Request, audio.Samples, int | None]) -> None:
        request, samples, end = message
        if request.done:
            return
        if len(samples):
            request._samples.append(samples)
            request._n_samples += len(samples)
        request._end = end
        if end is not None:
            self._finish_early(request)
        self._revive(request)

    def _ask_hypothesis(self, request: Request) -> None:
        if request.done:
            request.hypothesis = []
            request.notify()
        else:
            request._wants_hypothesis = True
            self._revive(request)

    def _finish_early(self, request: Request) -> None:
        if request._in_hypothesis and not request.done:
            self._end_hypothesis(request)
        elif request._wants_hypothesis:
            request._wants_hypothesis = False
            request.hypothesis = []
            request.notify()

    def _drop(self, requests: tuple[Request, ...]) -> None:
        for request in requests:
            if not request.done:
                with self._failing([request]):
                    self._complete(request)

    def _revive(self, request: Request) -> None:
        """A request without a sequence waits for one, if there is work for it."""
        if request._phase is _Phase.PARKED and self._has_work(request):
            request._phase = _Phase.WAITING
            request._arrival = self._clock()
            self._waiting.append(request)

    @staticmethod
    def _has_work(request: Request) -> bool:
        return request._wants_hypothesis or request._end is not None or request._fed < len(request._samples)

    def work(self, message: _Message) -> bool:
        """Does what a message asks for, and all the work that there is. False when the thread has to end."""
        self._guarded(*message)
        while True:
            while not self._inbox.empty():
                following = self._inbox.get()
                if following is None:
                    return False
                self._guarded(*following)
            if not self._guarded(Engine._turn):
                return True

    def _guarded(self, method: Callable[..., object], *about: object) -> bool:
        """Calls a method. Whatever it raises, nobody waits for ever. False where there is nothing to do."""
        try:
            try:
                return bool(method(self, *about))
            except native.Cancelled:
                self._start_over()
        except Exception as error:  # noqa: BLE001
            self._give_up(error)
        return True

    def _turn(self) -> bool:
        if self._waiting:
            self._admit()
        for request in tuple(self._requests):
            if request._phase is _Phase.LISTENING and self._has_work(request):
                self._hear(request)
        reading = [one for one in self._requests if one._phase is _Phase.READING]
        decoding = [one for one in self._requests if one._phase is _Phase.DECODING]
        if reading and (not decoding or (self._owed <= 0 and self._clock() < self._stepped + GAP)):
            self._read(min(reading, key=self._order), decoding)
        elif decoding:
            self._step(decoding, 0.0 if reading or any(one.streams for one in decoding) else _SLICE)
        else:
            return False
        return True

    def _order(self, request: Request) -> tuple[bool, float]:
        """Who comes first: rule 1."""
        favoured = request.live or self._clock() - request._arrival >= PATIENCE
        return not favoured, request._arrival

    def _admit(self) -> None:
        """Gives sequences to requests that wait."""
        session = self._opened()
        while self._waiting and not any(one._alone for one in self._requests):
            request = min(self._waiting, key=self._order)
            if len(self._requests) >= (1 if request._alone else session.sequences):
                idle = [one for one in self._requests if one._phase is _Phase.LISTENING and not self._has_work(one)]
                if not idle:
                    return
                self._park(min(idle, key=lambda one: one._arrival))
                continue
            if request._alone:
                self.session = None  # with its memory
                session = self._opened()
            taken = {one._sequence for one in self._requests}
            self._waiting.remove(request)
            request._sequence = next(i for i in range(session.sequences) if i not in taken)
            request._fed = request._taken = request._read = 0
            request._phase = _Phase.LISTENING
            self._requests.append(request)
            with self._failing([request]):
                session.begin(
                    request._sequence,
                    max_new_tokens=request.max_new_tokens,
                    attention=request.wants_attention,
                    language=request.language,
                    context=request.context,
                )

    def _hear(self, request: Request) -> None:
        """Passes new audio on, and what is known of its end."""
        session = self._opened()
        with self._failing([request]):
            for samples in request._samples[request._fed :]:
                session.append(samples, request._sequence)
                request._fed += 1
            if request._end is not None:
                session.end(request._sequence, request._end)
                request._has_ended = True
            elif request._wants_hypothesis:
                session.begin_hypothesis(request._sequence)
                request._wants_hypothesis, request._in_hypothesis = False, True
            request._phase = _Phase.READING

    def _read(self, request: Request, decoding: list[Request]) -> None:
        """A block of audio."""
        session, start = self._opened(), self._clock()
        shared = decoding or any(one.live for one in self._requests if one is not request)
        with self._failing([request]):
            window = session.window_samples
            windows = max(1, int(BLOCK / max(self._cost * window, 1e-9))) if shared else _ALL
            more = session.advance(request._sequence, windows)
            took = self._clock() - start
            self._owed = took if any(one.live for one in decoding) else 0.0
            read = min(windows * window, request._n_samples - request._read)
            if read > 0:
                self._cost, request._read = took / read, request._read + read
            if more:
                return
            if not request._has_ended and not request._in_hypothesis:
                request._phase = _Phase.LISTENING
            else:
                request._phase = _Phase.DECODING
                self._collect(request)

    def _step(self, decoding: list[Request], seconds: float) -> None:
        """A token of each request, or more of them."""
        session, start = self._opened(), self._clock()
        with self._failing(decoding):
            session.run([one._sequence for one in decoding], max(seconds, self._owed))
            for request in decoding:
                self._collect(request)
        self._stepped = self._clock()
        self._owed -= self._stepped - start

    def _collect(self, request: Request) -> None:
        """Takes a request's new tokens, and its end."""
        found, complete = self._opened().take(request._sequence)
        if request._in_hypothesis:
            if complete:
                self._end_hypothesis(request)
            return
        before, request._taken = request._taken, request._taken + len(found)
        fresh = found[max(len(request.tokens) - before, 0) :]  # the others were given before it was begun again
        request.tokens += fresh
        self._count(len(fresh), 0.0)
        if complete:
            self._complete(request)
        elif request.streams and fresh:
            request.notify()

    def _end_hypothesis(self, request: Request) -> None:
        with self._failing([request]):
            found = self._opened().end_hypothesis(request._sequence)
            request._in_hypothesis, request._phase = False, _Phase.LISTENING
            request.hypothesis = found
            request.notify()

    def _complete(self, request: Request, failure: BaseException | None = None) -> None:
        """A request is done: its sequence is free."""
        if request in self._requests:
            if failure is None:
                self._keep_result(request)
            self._requests.remove(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        request._samples.clear()
        request.failure = failure
        if failure is None and not request.cancelled:
            self._count(0, request._n_samples / audio.SAMPLE_RATE)
        request.done = True
        request.notify()

    def _keep_result(self, request: Request) -> None:
        session = self._opened()
        request.result = session.result(request._sequence)
        if request.wants_attention:
            request.attention = session.attention(request._sequence)
        self._memory = session.memory

    @contextlib.contextmanager
    def _failing(self, requests: list[Request]) -> Iterator[None]:
        """Around work for these requests: what it fails of is theirs."""
        try:
            yield
        except Exception as error:
            if isinstance(error, native.Cancelled):
                raise
            self._fail(requests, error)

    def _fail(self, requests: list[Request], error: Exception) -> None:
        """Requests that were worked on together have failed: rule 3."""
        crowded = len(self._requests) > 1 and not isinstance(error, AudioError)
        for request in requests:
            if request.done:
                continue
            if crowded and not request._alone and not request.cancelled:
                request._alone = True
                self._begin_again(request)
            else:
                self._complete(request, error)

    def _begin_again(self, request: Request) -> None:
        """It waits for a sequence, to be heard from its beginning. Its tokens stand, and come again."""
        self._park(request)
        if request._in_hypothesis:
            request._in_hypothesis, request._wants_hypothesis = False, True
        self._revive(request)

    def _park(self, request: Request) -> None:
        self._requests.remove(request)
        request._phase, request._fed, request._has_ended = _Phase.PARKED, 0, False

    def _start_over(self) -> None:
        """The session was cancelled: for requests that were given up. Others are begun again."""
        if self._stopping:
            return
        for request in tuple(self._requests):
            if request.cancelled:
                with self._failing([request]):
                    self._complete(request)
            else:
                self._begin_again(request)
        if self.session is not None:
            self.session.reset()

    def _give_up(self, error: BaseException) -> None:
        """Every request fails of this."""
        for request in (*self._requests, *self._waiting):
            self._complete(request, error)
        self.session = None

    def _count(self, tokens: int, seconds: float) -> None:
        now = self._clock()
        self._tokens += tokens
        self._audio_seconds += seconds
        if tokens or seconds:
            self._recent.append((now, tokens, seconds))
        while self._recent and self._recent[0][0] < now - _RATES:
            self._recent.popleft()


def _serve(reference: weakref.ref[Engine], inbox: _Inbox) -> None:
    """The engine's thread. While there is nothing to do it does not keep the engine alive."""
    while (message := inbox.get()) is not None:
        engine = reference()
        if engine is None or not engine.work(message):
            return
        del engine, message


def _stop_at_exit(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None and engine.process == os.getpid():
        engine.stop()

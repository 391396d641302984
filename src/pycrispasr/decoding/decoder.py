"""What decodes a caller's segments: the model's engine, or CrispASR's library, a segment at a time."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

from pycrispasr import audio
from pycrispasr.audio import CHUNK_SECONDS
from pycrispasr.decoding.engine import Engine, Request
from pycrispasr.decoding.forced_alignment import ForcedAligner, no_times
from pycrispasr.decoding.reader import PlainReader, Reader
from pycrispasr.decoding.recording import Recording, Task
from pycrispasr.decoding.word_times import Aligner
from pycrispasr.errors import (
    AudioError,
    ClosedError,
    DeviceError,
    InternalError,
    OutOfMemoryError,
    UnsupportedOperationError,
)
from pycrispasr.results.segment import Segment, Status, Token, Word
from pycrispasr.runtimes import native
from pycrispasr.runtimes.crispasr import CrispasrModel
from pycrispasr.runtimes.crispasr_process import IsolatedCrispasrModel
from pycrispasr.segmentation.segmenter import LONGEST, AudioSegment

_PATIENCE = 0.1  # seconds without news after which a caller looks at what there is
_FAILURES = (AudioError, DeviceError, InternalError, OutOfMemoryError)  # that concern one segment


class Decoder(Protocol):
    """What a scheduler needs of a runtime."""

    interruptible: bool
    """`cancel` ends a step that is going on."""

    every_token: bool
    """A token is something new for `step`, and not only the end of a task's text."""

    @property
    def n_running(self) -> int:
        """Tasks that are being decoded."""

    @property
    def full(self) -> bool:
        """True when no other task can be started."""

    def start(self, recording: Recording) -> None:
        """Begins a recording's next task."""

    def step(self) -> bool:
        """Goes on with the tasks that are being decoded, until there is something new. False when there is none."""

    def running_of(self, recording: Recording, /) -> list[tuple[Task, dict[str, Any]]]:
        """The tasks of a recording that are being decoded, with the library's results so far."""

    def text_of(self, recording: Recording, /) -> str:
        """The text so far of one of these, or ""."""

    def cancel(self) -> None:
        """Makes the step that is going on, or else the next one, raise `native.Cancelled`. Any thread."""


class EngineDecoder:
    """Hands the segments of one caller to the engine; one of them may be listened to, whose audio has not ended.

    Args:
        engine: Of the model.
        model: The model.
        batch: How many segments it hands in at once.
        token_limit: Tokens at which the text of so many seconds is cut.
        live: For somebody who is speaking.
        retried: The statuses of tasks that are tried again in two parts.
        aligner: Gives times to words, if that is wanted: from the decoder's attention, or by a model of its own.
        language: The English name of the language that is spoken. None: the model finds out.
        context: What the audio may be about, or None.
        reader: Makes what reads a segment's text.
    """

    interruptible = True

    def __init__(
        self,
        engine: Engine,
        model: native.NativeModel,
        *,
        batch: int,
        token_limit: Callable[[float], int],
        live: bool = False,
        retried: Container[Status] = ("looped",),
        aligner: Aligner | ForcedAligner | None = None,
        language: str | None = None,
        context: str | None = None,
        reader: Callable[[], Reader] = PlainReader,
    ) -> None:
        self._engine, self._model, self._batch, self._aligner = engine, model, batch, aligner
        self._language, self._context, self._reader = language, context, reader
        self._token_limit, self._live = token_limit, live
        self._running: dict[Request, tuple[Recording, Task]] = {}
        self._retried = retried
        self._listening: Request | None = None
        self._from = 0  # where its segment begins
        self._heard = 0  # samples that it was given
        self._news = threading.Event()
        self.every_token = False
        self._cancelled = self._finalized = False

    def __del__(self) -> None:
        # In a cycle a generator may go on with it even now.
        self._finalized = True
        if hasattr(self, "_news"):
            self._drop()

    @property
    def n_running(self) -> int:
        """As for `Decoder`."""
        return len(self._running)

    @property
    def full(self) -> bool:
        """True when as many segments as it may are handed in."""
        return len(self._running) + (self._listening is not None) >= self._batch

    def reset(self) -> None:
        """Forgets everything, and a cancellation."""
        self._drop()
        self._running.clear()
        self._listening = None
        self._cancelled = False

    def cancel(self) -> None:
        """As for `Decoder`."""
        self._cancelled = True
        self._drop()
        self._news.set()

    def start(self, recording: Recording) -> None:
        """As for `Decoder`."""
        task = recording.waiting.popleft()
        task.reader = self._reader()
        request = self._request(task.seconds)
        request.streams = self.every_token or recording.conversation is not None
        self._running[request] = recording, task
        self._engine.submit(request, audio.NOTHING if task.samples is None else task.samples, ended=True)

    def listen(self, segment: AudioSegment) -> None:
        """Takes the segment in progress, from its beginning: what has not been heard yet is worked on at once."""
        if self._listening is not None and self._from != segment.start:
            self._engine.drop(self._listening)  # what was heard became no segment
            self._listening = None
        samples = segment.samples[:LONGEST]
        if self._listening is None:
            self._listening, self._from = self._request(CHUNK_SECONDS), segment.start
            self._heard = len(samples)
            self._engine.submit(self._listening, samples.copy(), ended=False)
        elif len(samples) > self._heard:
            self._engine.feed(self._listening, samples[self._heard :].copy())
            self._heard = len(samples)

    def stop_listening(self, recording: Recording) -> None:
        """The recording's last segment is complete. If it is the one that was listened to, it need not wait."""
        request, self._listening = self._listening, None
        if request is None:
            return
        if recording.tasks[-1].start != self._from:
            self._engine.drop(request)
            return
        task = recording.waiting.pop()
        task.reader = self._reader()
        samples = audio.NOTHING if task.samples is None else task.samples
        self._running[request] = recording, task
        if len(samples) > self._heard:
            self._engine.feed(request, samples[self._heard :])
        self._engine.end(request, len(samples))

    @property
    def heard(self) -> int:
        """Samples of the segment in progress that were handed in."""
        return self._heard if self._listening is not None else 0

    def hypothesis(self, start: int) -> Task:
        """The text of what was heard so far, as if the segment ended here.

        Args:
            start: Where it begins, in samples.

        Raises:
            native.Cancelled: `cancel` was called.
            PycrispasrError: The engine failed.
        """
        task = Task(start, audio.NOTHING)
        task.end = start + self._heard
        task.reader = self._reader()
        request = self._listening
        if request is None:
            return task
        self._engine.ask_hypothesis(request)
        while request.hypothesis is None and not request.done:
            self._wait()
        if request.failure is not None:
            raise request.failure
        for token, probability in request.hypothesis or ():
            task.add(token, probability, self._model.token_bytes(token))
        return task

    def finish_early(self) -> None:
        """Has a hypothesis that is being decoded end now. Any thread."""
        request = self._listening
        if request is not None:
            self._engine.finish_early(request)

    def step(self) -> bool:
        """As for `Decoder`."""
        if not self._running:
            return False
        for request, (recording, _) in self._running.items():
            request.streams = self.every_token or recording.conversation is not None
        self._wait()
        for request in list(self._running):
            recording, task = self._running[request]
            done = request.done
            self._take(request, task)
            if not done:
                if task.closes_turn():
                    self._align_words(recording, task)
                    recording.hear(task)
                continue
            del self._running[request]
            failure = request.failure
            if failure is None:
                if request.result is not None and request.result["ended"]:
                    task.end_text()
                self._align(request, recording, task)
                self._align_words(recording, task)
                recording.complete(task, request.result or {}, self._retried)
            elif isinstance(failure, _FAILURES):
                recording.fail(task, failure)
            else:
                raise failure
        return True

    def running_of(self, recording: Recording) -> list[tuple[Task, dict[str, Any]]]:
        """As for `Decoder`. Behind a cancellation it waits for what there is of them, at most a step."""
        found = []
        for request, (whose, task) in list(self._running.items()):
            if whose is recording:
                while request.cancelled and not request.done:
                    self._engine.check_caller()
                    self._news.wait(_PATIENCE)
                    self._news.clear()
                self._take(request, task)
                self._align(request, recording, task)
                found.append((task, request.result or {}))
        return found

    def text_of(self, recording: Recording) -> str:
        """As for `Decoder`."""
        return next((task.last_text for whose, task in list(self._running.values()) if whose is recording), "")

    def _check(self) -> None:
        if self._cancelled:
            raise native.Cancelled
        self._engine.check_caller()
        if self._finalized:
            raise ClosedError("this transcription has been freed by the garbage collector: begin another one")

    def _request(self, seconds: float) -> Request:
        self._check()
        return Request(
            max_new_tokens=self._token_limit(seconds),
            attention=isinstance(self._aligner, Aligner),
            language=self._language,
            context=self._context,
            live=self._live,
            notify=self._news.set,
        )

    def _drop(self) -> None:
        requests = [*self._running, *([] if self._listening is None else [self._listening])]
        if requests:
            self._engine.drop(*requests)

    def _wait(self) -> None:
        """Returns when there may be news, or after a while."""
        self._check()
        self._news.wait(_PATIENCE)
        self._news.clear()
        self._check()

    def _take(self, request: Request, task: Task) -> None:
        """Gives a task the tokens that it has not got."""
        for token, probability in request.tokens[task.n_steps :]:
            task.add(token, probability, self._model.token_bytes(token))

    def _align(self, request: Request, recording: Recording, task: Task) -> None:
        """Times for the words of a task as far as it is decoded, if they are wanted and its attention tells them."""
        if isinstance(self._aligner, Aligner) and task.samples is not None and request.attention is not None:
            recording.word_times = self._aligner.kind
            attention = request.attention[task.steps]
            tokens, task.words = self._aligner.align(task.tokens, task.text, attention, task.samples, task.start)
            task.tokens[:] = tokens

    def _align_words(self, recording: Recording, task: Task) -> None:
        """The same by a model of its own: for each turn that is complete, or for the whole of a complete text."""
        aligner, language = self._aligner, task.reader.language
        if not isinstance(aligner, ForcedAligner) or task.samples is None:
            return

        def align(
            tokens: Sequence[Token], text: str, samples: audio.Samples, first: int
        ) -> tuple[tuple[Token, ...], tuple[Word, ...] | None]:
            return _aligned(aligner, recording, tokens, text, samples, first, language)

        if task.reader.turns is not None:
            task.align_turns(align)
        else:
            task.tokens[:], task.words = align(task.tokens, task.text, task.samples, task.start)


def _aligned(
    aligner: ForcedAligner,
    recording: Recording,
    tokens: Sequence[Token],
    text: str,
    samples: audio.Samples,
    first: int,
    language: str | None,
) -> tuple[tuple[Token, ...], tuple[Word, ...] | None]:
    """As `ForcedAligner.align`; where that fails, the recording is told, and there are no times."""
    recording.word_times = "aligner"
    try:
        return aligner.align(tokens, text, samples, first, language)
    except (*_FAILURES, UnsupportedOperationError) as error:
        recording.warnings.append(no_times(first / audio.SAMPLE_RATE, error))
        return tuple(tokens), None


class CrispasrDecoder:
    """CrispASR's library, which decodes one segment at a time and is stopped only by the end of its process.

    Args:
        model: Is open.
        max_new_tokens: For models that heed it.
        aligner: Gives times to words, if that is wanted.
    """

    def __init__(
        self,
        model: CrispasrModel | IsolatedCrispasrModel,
        max_new_tokens: int,
        aligner: ForcedAligner | None = None,
    ) -> None:
        self._aligner = aligner
        self.interruptible = model.interruptible
        self._model, self._max_new_tokens = model, max_new_tokens
        self.every_token = False
        self._running: tuple[Recording, Task] | None = None
        self._cancelled = threading.Event()

    @property
    def n_running(self) -> int:
        """As for `Decoder`."""
        return 0 if self._running is None else 1

    @property
    def full(self) -> bool:
        """As for `Decoder`."""
        return self._running is not None

    def start(self, recording: Recording) -> None:
        """As for `Decoder`."""
        self._running = recording, recording.waiting.popleft()

    def step(self) -> bool:
        """The whole text of the task."""
        if self._running is None:
            return False
        if self._cancelled.is_set():
            raise native.Cancelled
        recording, task = self._running
        samples = audio.NOTHING if task.samples is None else task.samples
        try:
            parts, recording.language = self._model.decode_segment(
                samples, recording.language, self._max_new_tokens, self._cancelled
            )
        except _FAILURES as error:  # the end of the library's process
            task.may_split = False  # trying again would cost another process, and hardly help
            recording.fail(task, error)
        else:
            recording.complete_with_parts(task, [self._with_words(recording, samples, part) for part in parts])
        self._running = None
        return True

    def _with_words(self, recording: Recording, samples: audio.Samples, part: Segment) -> Segment:
        """A segment with the times of its words, if they are wanted: seconds from the beginning of these samples."""
        if self._aligner is None:
            return part
        first, end = (int(min(seconds * audio.SAMPLE_RATE, len(samples))) for seconds in (part.start, part.end))
        tokens, words = _aligned(
            self._aligner, recording, part.tokens, part.text, samples[first:end], first, recording.language
        )
        return dataclasses.replace(part, tokens=tokens, words=words)

    def running_of(self, _: Recording) -> list[tuple[Task, dict[str, Any]]]:
        """None: a task has no text before it is done."""
        return []

    def text_of(self, _: Recording) -> str:
        """As for `Decoder`."""
        return ""

    def cancel(self) -> None:
        """As for `Decoder`."""
        self._model.cancel(self._cancelled)

"""What decodes segments: the sequences of our library's session, or CrispASR's library, a segment at a time."""

from __future__ import annotations

import threading
from collections.abc import Container
from typing import Any, Protocol

from pycrispasr import audio
from pycrispasr.decoding.recording import Recording, Task
from pycrispasr.decoding.word_times import Aligner
from pycrispasr.errors import AudioError, DeviceError, InternalError, OutOfMemoryError
from pycrispasr.results.segment import Status
from pycrispasr.runtimes import native
from pycrispasr.runtimes.crispasr import CrispasrModel
from pycrispasr.runtimes.crispasr_process import IsolatedCrispasrModel
from pycrispasr.segmentation.segmenter import LONGEST, AudioSegment

_FAILURES = (AudioError, DeviceError, InternalError, OutOfMemoryError)  # that concern one segment


class Decoder(Protocol):
    """What a scheduler needs of a runtime."""

    interruptible: bool
    """`cancel` ends a step that is going on."""

    @property
    def n_running(self) -> int:
        """Tasks that are being decoded."""

    @property
    def full(self) -> bool:
        """True when no other task can be started."""

    def start(self, recording: Recording) -> bool:
        """Begins a recording's next task. False when it has to wait until it can be alone."""

    def step(self) -> bool:
        """Goes on with every task that is being decoded. False when there is none."""

    def running_of(self, recording: Recording, /) -> list[tuple[Task, dict[str, Any]]]:
        """The tasks of a recording that are being decoded, with the library's results so far."""

    def text_of(self, recording: Recording, /) -> str:
        """The text so far of one of these, or ""."""

    def cancel(self) -> None:
        """Makes the step that is going on, or else the next one, raise `native.Cancelled`. Any thread."""


class NativeDecoder:
    """The sequences of our library's session; one of them may listen to a segment whose audio has not ended.

    Args:
        session: The session.
        model: Of the session.
        retried: The statuses of tasks that are tried again in two parts.
        aligner: Gives times to words, if that is wanted; the session keeps the attention of its heads.
    """

    interruptible = True

    def __init__(
        self,
        session: native.NativeSession,
        model: native.NativeModel,
        retried: Container[Status] = ("looped",),
        aligner: Aligner | None = None,
    ) -> None:
        self.session = session
        self._model = model
        self._aligner = aligner
        self._running: dict[int, tuple[Recording, Task]] = {}  # by sequence
        self._retried = retried
        self._listening: int | None = None  # the sequence
        self._from = 0  # where its segment begins
        self._heard = 0  # samples that it was fed

    @property
    def n_running(self) -> int:
        """As for `Decoder`."""
        return len(self._running)

    @property
    def full(self) -> bool:
        """True when no sequence is free, or none may be used beside what is decoded alone."""
        taken = len(self._running) + (self._listening is not None)
        return taken == self.session.sequences or any(task.alone for _, task in self._running.values())

    def reset(self) -> None:
        """Forgets everything, and a cancellation."""
        self.session.reset()
        self._running.clear()
        self._listening = None

    def cancel(self) -> None:
        """As for `Decoder`."""
        self.session.cancel()

    def start(self, recording: Recording) -> bool:
        """As for `Decoder`."""
        task = recording.waiting[0]
        if task.alone and self._running:
            return False
        recording.waiting.popleft()
        self._begin(self._free(), recording, task, 0)
        return True

    def listen(self, segment: AudioSegment) -> None:
        """Takes the segment in progress, from its beginning: what has not been heard yet is worked on at once."""
        if self._listening is not None and self._from != segment.start:
            self._listening = None  # what was heard became no segment
        if self._listening is None:
            self._listening, self._from, self._heard = self._free(), segment.start, 0
        samples = segment.samples[:LONGEST]
        if len(samples) > self._heard:
            self.session.feed(samples[self._heard :], self._listening)
            self._heard = len(samples)

    def stop_listening(self, recording: Recording) -> None:
        """The recording's last segment is complete. If it is the one that was listened to, it need not wait."""
        sequence, self._listening = self._listening, None
        if sequence is not None and recording.tasks[-1].start == self._from:
            self._begin(sequence, recording, recording.waiting.pop(), self._heard)

    @property
    def heard(self) -> int:
        """Samples of the segment in progress, as far as they are worked on."""
        return self._heard if self._listening is not None else 0

    def hypothesis(self, start: int) -> Task:
        """The text of what was heard so far, as if the segment ended here.

        Args:
            start: Where it begins, in samples.
        """
        task = Task(start, audio.NOTHING)
        task.end = start + self._heard
        if self._listening is not None:
            for token, probability in self.session.hypothesis(self._listening):
                task.add(token, probability, self._model.token_bytes(token))
        return task

    def step(self) -> bool:
        """One more token of every task that is being decoded. False when there is none."""
        sequences = list(self._running)
        try:
            steps = self.session.next_of(sequences) if sequences else []
        except _FAILURES as error:
            for sequence in reversed(sequences):
                recording, task = self._running.pop(sequence)
                recording.fail(task, error)
            return True
        for sequence, step in zip(sequences, steps, strict=True):
            recording, task = self._running[sequence]
            if step is not None:
                task.add(*step, self._model.token_bytes(step[0]))
            else:
                self._align(sequence)
                recording.complete(task, self.session.result(sequence), self._retried)
                del self._running[sequence]
        return bool(sequences)

    def running_of(self, recording: Recording) -> list[tuple[Task, dict[str, Any]]]:
        """As for `Decoder`."""
        found = []
        for sequence, (whose, task) in self._running.items():
            if whose is recording:
                self._align(sequence)
                found.append((task, self.session.result(sequence)))
        return found

    def text_of(self, recording: Recording) -> str:
        """As for `Decoder`."""
        return next((task.text for whose, task in self._running.values() if whose is recording), "")

    def _align(self, sequence: int) -> None:
        """Times for the words of a task as far as it is decoded, if they are wanted."""
        recording, task = self._running[sequence]
        if self._aligner is not None and task.samples is not None:
            recording.word_times = self._aligner.kind
            attention = self.session.attention(sequence)
            tokens, task.words = self._aligner.align(task.tokens, task.text, attention, task.samples, task.start)
            task.tokens[:] = tokens

    def _free(self) -> int:
        """A free sequence, empty."""
        sequence = next(i for i in range(self.session.sequences) if i not in self._running and i != self._listening)
        self.session.clear(sequence)
        return sequence

    def _begin(self, sequence: int, recording: Recording, task: Task, heard: int) -> None:
        """Gives a sequence what it has not heard of a task, and takes it among those that are decoded."""
        samples = audio.NOTHING if task.samples is None else task.samples
        try:
            if len(samples) > heard:
                self.session.feed(samples[heard:], sequence)
            self.session.end(sequence, len(samples))
        except _FAILURES as error:
            recording.fail(task, error)
        else:
            self._running[sequence] = recording, task


class CrispasrDecoder:
    """CrispASR's library, which decodes one segment at a time and is stopped only by the end of its process.

    Args:
        model: Is open.
        max_new_tokens: For models that heed it.
    """

    def __init__(self, model: CrispasrModel | IsolatedCrispasrModel, max_new_tokens: int) -> None:
        self.interruptible = model.interruptible
        self._model, self._max_new_tokens = model, max_new_tokens
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

    def start(self, recording: Recording) -> bool:
        """As for `Decoder`."""
        self._running = recording, recording.waiting.popleft()
        return True

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
            recording.complete_with_parts(task, parts)
        self._running = None
        return True

    def running_of(self, _: Recording) -> list[tuple[Task, dict[str, Any]]]:
        """None: a task has no text before it is done."""
        return []

    def text_of(self, _: Recording) -> str:
        """As for `Decoder`."""
        return ""

    def cancel(self) -> None:
        """As for `Decoder`."""
        self._model.cancel(self._cancelled)

"""Which segment is decoded next: the one loop on which everything that transcribes stands."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

from pycrispasr.decoding.decoder import Decoder
from pycrispasr.decoding.recording import Recording
from pycrispasr.results.segment import Segment, Token
from pycrispasr.results.transcript import Transcript


class Scheduler:
    """Decodes the segments of recordings, several at once, and gives what is done in order.

    Free places go to the first recording that has a segment waiting. Another recording is taken when those before it
    leave room for its first segment, so that memory does not grow with their number. One thread at a time.

    Args:
        decoder: Decodes segments.
        recordings: Any number of them, taken one by one; what it raises is raised when those before it are done. None:
            those that are appended to `begun`.
    """

    def __init__(self, decoder: Decoder, recordings: Iterator[Recording] | None = None) -> None:
        self.decoder = decoder
        self.begun: collections.deque[Recording] = collections.deque()  # taken and not given back yet, in order
        self.n_done = 0  # recordings that were given back
        self.seconds_done = 0.0  # of their audio
        self.taking = False  # inside `recordings`, which may take for ever
        self._recordings = recordings
        self._failure: Exception | None = None  # what it raised
        self._task, self._token, self._segment = 0, 0, 0  # what was given of the first recording begun

    def current(self) -> Recording | None:
        """The first recording that has not been given back; None behind the last one.

        Raises:
            Exception: What the iterator of recordings raised behind the last one.
        """
        if not self.begun and not self._take() and not self.begun and self._failure is not None:
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure  # or it and this frame would hold each other
        return self.begun[0] if self.begun else None

    def step(self, width: int | None = None, *, every_token: bool = False) -> bool:
        """Goes on until there is something new, after free places have been filled.

        Args:
            width: How many segments are decoded at once. None: as many as the decoder can.
            every_token: As for `Decoder`.

        Returns:
            False when there is nothing to do for the recordings that were begun, and no other one.
        """
        self.decoder.every_token = every_token
        self._fill(width)
        return self.decoder.step() or any(recording.waiting for recording in self.begun)

    def _fill(self, width: int | None) -> None:
        """Gives free places to segments that wait."""
        while not self.decoder.full and (width is None or self.decoder.n_running < width):
            recording = next((one for one in self.begun if one.ready()), None)
            if recording is not None:
                self.decoder.start(recording)
            elif not self._take():
                return

    def _take(self) -> bool:
        """Takes another recording. False where there is none, or it cannot be read: it is given back at once then."""
        if self._recordings is None:
            return False
        self.taking = True
        try:
            recording = next(self._recordings, None)
        except Exception as error:  # noqa: BLE001  whatever the caller's iterable raises
            self._failure, recording = error, None
        finally:
            self.taking = False
        if recording is None:
            self._recordings = None
            return False
        self.begun.append(recording)
        return recording.failure is None

    def next_recording(
        self, report: Callable[[], object] = lambda: None, *, every_token: bool = False
    ) -> Recording | None:
        """Decodes until the first recording is done, and gives it back; None behind the last one.

        Args:
            report: Is called before each step, and at the end.
            every_token: As for `Decoder`.
        """
        while (recording := self.current()) is not None:
            report()
            if recording.finished:
                return self._give_back()
            self.step(every_token=every_token)
        return None

    def next_segment(self) -> Segment | None:
        """The next segment that is final, in order; None behind the last one.

        Raises:
            PycrispasrError: What a whole recording failed of.
        """
        while (recording := self.current()) is not None:
            if self._segment < len(recording.finals):
                self._segment += 1
                return recording.finals[self._segment - 1]
            if recording.finished:
                self._give_back_sound()
            else:
                self.step()
        return None

    def next_token(self) -> Token | None:
        """The next token, in order, segment by segment; None behind the last one.

        A segment whose tokens are given one by one is not tried again where its text loops or is cut off: whether it
        were must not depend on who is faster, its decoder or its reader.

        Raises:
            PycrispasrError: What a whole recording failed of.
        """
        while (recording := self.current()) is not None:
            if recording.conversation is not None:
                token = self._next_of_finals(recording)
                if token is not None:
                    return token
                self._give_back_sound()
                continue
            if self._task == len(recording.tasks) and not recording.ready():
                self._give_back_sound()
                continue
            task = recording.tasks[self._task]
            task.is_streamed = True
            if self._token < len(task.tokens):
                task.may_split = False
                self._token += 1
                return task.written(recording.text)[self._token - 1]
            if task.status:
                self._task, self._token = self._task + 1, 0
            else:
                self.step(1, every_token=True)
        return None

    def _next_of_finals(self, recording: Recording) -> Token | None:
        """The next token of a recording's final segments; None behind the last one."""
        while True:
            while self._segment < len(recording.finals):
                tokens = recording.finals[self._segment].tokens
                if self._token < len(tokens):
                    self._token += 1
                    return tokens[self._token - 1]
                self._segment, self._token = self._segment + 1, 0
            if recording.finished:
                return None
            self.step()

    def partials(self) -> list[Transcript]:
        """What there is of each recording that was begun, in order."""
        return [recording.transcript(running=self.decoder.running_of(recording)) for recording in tuple(self.begun)]

    def _give_back(self) -> Recording:
        recording = self.begun.popleft()
        self.n_done += 1
        self.seconds_done += recording.seconds
        self._task = self._token = self._segment = 0
        return recording

    def _give_back_sound(self) -> None:
        recording = self._give_back()
        if recording.failure is not None:
            raise recording.failure

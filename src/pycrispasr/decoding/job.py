"""Recordings on their way to transcripts, as a caller sees them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NoReturn

from pycrispasr.decoding.exclusive import Exclusive
from pycrispasr.decoding.recording import Recording
from pycrispasr.decoding.scheduler import Scheduler
from pycrispasr.errors import CancelledError, ClosedError
from pycrispasr.results.segment import Segment, Token
from pycrispasr.results.transcript import Transcript
from pycrispasr.runtimes import native

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        recordings: How many of them are done.
        begun: How many are being worked on.
        seconds: Seconds of audio that are done, of all recordings.
        read: Seconds of audio that have been read.
        expected: Seconds of audio of the recordings that are done or begun. None: the length of one is not known yet.
        segments: The final ones of the recording whose transcript comes next.
        text: What is being written of its next segment.
    """

    recordings: int
    begun: int
    seconds: float
    read: float
    expected: float | None
    segments: tuple[Segment, ...]
    text: str


class Job:
    """Recordings on their way to transcripts, made by `Model.job`. Work is done while it is iterated over.

        with model.job(["one.wav", "two.wav"], progress=lambda progress: print(progress.seconds)) as job:
            for transcript in job:
                print(transcript.text)

    It gives the transcripts in order, and can be left and iterated over again: it goes on where it was. `segments` and
    `tokens` give parts of the same work earlier. A job belongs to one thread at a time; only `cancel`, `close` and
    `partial` may be called from another one meanwhile.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        errors: Literal["keep", "raise"] = "keep",
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self._scheduler: Scheduler | None = scheduler
        self._decoder = scheduler.decoder
        self._errors, self._report = errors, progress
        self._exclusive = Exclusive("job")
        self._cancelled = False
        self._finals: tuple[Segment, ...] = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Transcript:
        """The next recording's transcript.

        Raises:
            StopIteration: All have been given.
            CancelledError: `cancel` was called. `partial` has what there is.
            BusyError: Another thread is iterating.
            ClosedError: The job is closed.
            Exception: What the iterable of recordings raised, or with `errors="raise"` what a recording failed of.
        """
        with self._inside() as scheduler:
            recording = scheduler.next_recording(self._tell, every_token=self._report is not None)
        if recording is None:
            raise StopIteration
        if recording.failure is not None and self._errors == "raise":
            self.close()
            raise recording.failure
        return recording.transcript()

    def segments(self) -> Iterator[Segment]:
        """The segments of all recordings one by one, as they become final. A recording that fails raises its error.

        Returns:
            An iterator over those that were not given yet, which raises what iterating over the job raises.
        """
        return iter(self._next_segment, None)

    def tokens(self) -> Iterator[Token]:
        """The tokens of all recordings one by one, as they are decoded. A recording that fails raises its error.

        Returns:
            An iterator over those that were not given yet, which raises what iterating over the job raises.
        """
        return iter(self._next_token, None)

    def _next_segment(self) -> Segment | None:
        with self._inside() as scheduler:
            return scheduler.next_segment()

    def _next_token(self) -> Token | None:
        with self._inside() as scheduler:
            return scheduler.next_token()

    @property
    def progress(self) -> Progress:
        """How far it is.

        Raises:
            ClosedError: The job is closed.
        """
        scheduler = self._opened()
        begun = tuple(scheduler.begun)
        finals = begun[0].finals if begun else []
        if len(finals) != len(self._finals) or (finals and finals[0] is not self._finals[0]):
            self._finals = tuple(finals)
        expected = [recording.seconds_expected for recording in begun]
        return Progress(
            recordings=scheduler.n_done,
            begun=len(begun),
            seconds=scheduler.seconds_done + sum(recording.seconds_done for recording in begun),
            read=scheduler.seconds_done + sum(recording.seconds for recording in begun),
            expected=None if None in expected else scheduler.seconds_done + sum(filter(None, expected)),
            segments=self._finals,
            text=scheduler.decoder.text_of(begun[0]) if begun else "",
        )

    @property
    def stuck(self) -> bool:
        """True while it is in what `cancel` cannot end: CrispASR's library, or a source that may never answer."""
        scheduler = self._scheduler
        return scheduler is not None and (scheduler.taking or not scheduler.decoder.interruptible)

    def partial(self) -> list[Transcript]:
        """What there is of the recordings that were begun and are not done, in order: after `cancel`, or meanwhile.

        Raises:
            ClosedError: The job is closed.
        """
        return self._opened().partials()

    def cancel(self) -> None:
        """Ends the work soon: what iterates gets a `CancelledError`. Any thread, at any time.

        Raises:
            UsageError: This process was forked from the one that made the job.
        """
        self._exclusive.check_process()
        self._cancelled = True
        self._decoder.cancel()

    def close(self) -> None:
        """Cancels the work, and frees its memory. Closing twice is allowed."""
        if not self._exclusive.is_forked:
            self.cancel()
        self._scheduler = None

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._scheduler is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a job cannot be pickled or copied: pass the model on, and make another job there")

    def __repr__(self) -> str:
        return f"<pycrispasr.Job{' closed' if self.closed else ''}>"

    def _tell(self) -> None:
        if self._cancelled:
            raise native.Cancelled
        if self._report is not None:
            self._report(self.progress)

    def _opened(self) -> Scheduler:
        if self._scheduler is None:
            raise ClosedError("this job is closed: make another one with Model.job()")
        return self._scheduler

    @contextlib.contextmanager
    def _inside(self) -> Iterator[Scheduler]:
        scheduler = self._opened()
        with self._exclusive.entered():
            try:
                yield scheduler
            except native.Cancelled:
                begun = scheduler.partials()
                raise CancelledError(
                    f"the transcription was cancelled with {scheduler.n_done} recordings done: what there is of the "
                    "one that comes next is in .partial",
                    begun[0] if begun else Recording().transcript(0.0, running=()),
                ) from None

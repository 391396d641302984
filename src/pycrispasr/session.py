"""A session: audio in, tokens out."""

from __future__ import annotations

import codecs
import contextlib
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pycrispasr import _native, audio
from pycrispasr.errors import AudioError, BusyError, CancelledError, ClosedError, UsageError
from pycrispasr.result import Segment, Status, Timings, Token, Transcript

if TYPE_CHECKING:
    from typing_extensions import Self

_WORK = ("log_mel", "encoder", "adapter", "prefill", "decode", "n_prompt_tokens", "n_tokens")
"""What a recording's timings add up, by its name in the library's result."""


class Session:
    """One transcription at a time: feed samples, then take tokens or the whole transcript.

    Made by `Model.session`. A session belongs to one thread at a time: a second thread that uses it meanwhile gets a
    `BusyError` and changes nothing. Only `cancel` and `close` may be called from anywhere. The model's memory is kept
    as long as one of its sessions is open, even when the model itself has been closed.

        with model.session() as session:
            session.feed(samples, sample_rate=48000)
            result = session.finish()
    """

    def __init__(self, native: _native.NativeSession, decode: Callable[[int], bytes]) -> None:
        self._native: _native.NativeSession | None = native
        self._token_bytes = decode
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._cancel_asked = False
        self._resampler: audio.Resampler | None = None
        self._fed: list[audio.Samples] = []
        self._samples: audio.Samples | None = None  # all of the audio, once it has ended
        self._plan: list[tuple[int, int]] = []
        self._segments: list[Segment] = []
        self._chunk: _Chunk | None = None
        self._work: dict[str, float] = dict.fromkeys(_WORK, 0)
        self._seconds = 0.0

    def feed(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> None:
        """Appends samples to the audio.

        Args:
            samples: Any number of them, of shape `[frames]` or `[frames, channels]`; float32 or float64 nominally in
                [-1, 1], or int16 or int32 over their full range. Channels are averaged.
            sample_rate: Samples per second. The rate is converted across calls as if all had come at once; it cannot
                change within one recording.

        Raises:
            AudioError: The samples' type, shape, values or rate cannot be right. None of them is taken.
            UsageError: The audio has ended; `reset` starts anew.
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
            CancelledError: The session was cancelled; `reset` starts anew.
        """
        with self._inside():
            self._check_cancelled()
            if self._samples is not None:
                raise UsageError("no samples can be fed after the audio has ended: call reset() for another recording")
            resampler = self._resampler or audio.Resampler(sample_rate)
            if sample_rate != resampler.sample_rate:
                raise AudioError(
                    f"sample_rate cannot change from {resampler.sample_rate} to {sample_rate} within one recording: "
                    "call reset() first"
                )
            mono = audio.to_mono(samples)
            self._resampler = resampler
            # A copy: the caller may fill the same array again.
            self._fed.append(np.array(resampler.push(mono), dtype=np.float32))

    def tokens(self) -> Iterator[Token]:
        """Ends the audio, and gives its tokens one by one as they are decoded.

        Returns:
            An iterator, which raises what `finish` raises. It may be left at any time: `finish` goes on where it was.
        """
        return iter(self._next_token, None)

    def __iter__(self) -> Iterator[Token]:
        return self.tokens()

    def finish(self, *, progress: Callable[[float, float], object] | None = None) -> Transcript:
        """Ends the audio, and gives the transcript of all of it.

        Args:
            progress: Called with the seconds of audio done and their total: at the beginning, and after each stretch of
                at most 30 seconds.

        Raises:
            AudioError: No audio was fed, or too little for this model.
            CancelledError: `cancel` was called. What was done until then is in its `partial`.
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
            OutOfMemoryError: An allocation failed.
        """
        with self._inside() as native:
            total = len(self._end_audio()) / audio.SAMPLE_RATE
            if progress:
                progress(self._segments[-1].end if self._segments else 0.0, total)
            while (step := self._step(native)) is not None:
                if progress and isinstance(step, Segment):
                    progress(step.end, total)
            return self._transcript()

    def cancel(self) -> None:
        """Stops the call that is running in this session, or else the next one, with a `CancelledError`.

        May be called from any thread, at any time. The session stays cancelled until `reset`.
        """
        self._cancel_asked = True
        native = self._native
        if native is not None:
            native.cancel()

    def reset(self) -> None:
        """Forgets audio, text and a cancellation: the session is as new, and keeps its buffers.

        Raises:
            BusyError: Another thread is inside this session.
            ClosedError: The session is closed.
        """
        with self._inside() as native:
            self._clear()
            native.reset()

    def close(self) -> None:
        """Frees the session's memory. A call that runs in another thread is cancelled. Closing twice is allowed."""
        self.cancel()
        self._native = None

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._native is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pycrispasr.Session{' closed' if self.closed else ''}>"

    @contextlib.contextmanager
    def _inside(self) -> Iterator[_native.NativeSession]:
        """One call at a time: every method that reads or changes the session's state runs in here."""
        native = self._native
        if native is None:
            raise ClosedError("this session is closed: make another one with Model.session()")
        if not self._lock.acquire(blocking=False):
            raise BusyError("another thread is using this session: give each thread a session of its own")
        self._entered = time.perf_counter()
        try:
            yield native
        except _native.Cancelled:
            if self._chunk:
                self._count(native)
            raise self._cancelled() from None
        finally:
            self._seconds += time.perf_counter() - self._entered
            self._lock.release()

    def _check_cancelled(self) -> None:
        if self._cancel_asked:
            raise self._cancelled()

    def _cancelled(self) -> CancelledError:
        return CancelledError(
            f"the transcription was cancelled with {len(self._segments)} of {len(self._plan)} segments done: "
            "the text until then is in .partial, and reset() makes the session usable again",
            self._transcript(),
        )

    def _end_audio(self) -> audio.Samples:
        """All of the audio. The first call plans the work."""
        if self._samples is None:
            self._check_cancelled()
            if self._resampler is None:
                raise AudioError("no audio was fed: call feed() before tokens() or finish()")
            self._fed.append(self._resampler.finish())
            self._samples = np.concatenate(self._fed)
            self._fed = []
            self._plan = audio.plan_chunks(self._samples)
        if not self._plan:
            raise AudioError("the audio is empty: all that was fed are 0 samples")
        return self._samples

    def _step(self, native: _native.NativeSession) -> Token | Segment | None:
        """The next thing that came about: a token, or the segment that it ended, or None when all is done."""
        samples = self._end_audio()
        if self._chunk is None:
            if len(self._segments) == len(self._plan):
                return None
            start, end = self._plan[len(self._segments)]
            native.reset()
            self._check_cancelled()  # the reset forgot a cancellation that came just before it
            native.feed(samples[start:end])
            native.end()
            self._chunk = _Chunk(start / audio.SAMPLE_RATE, end / audio.SAMPLE_RATE, _join(self._segments))
        step = native.next()
        if step is not None:
            return self._chunk.add(*step, self._token_bytes(step[0]))
        segment = self._chunk.segment("truncated" if self._count(native) else "ok")
        self._segments.append(segment)
        self._chunk = None
        return segment

    def _next_token(self) -> Token | None:
        with self._inside() as native:
            while isinstance(step := self._step(native), Segment):
                pass
            return step

    def _count(self, native: _native.NativeSession) -> bool:
        """Adds the present stretch's work to the timings. True when its text was cut."""
        result = native.result()
        for name in self._work:
            self._work[name] += result[name]
        return bool(result["truncated"])

    def _transcript(self) -> Transcript:
        """What has been done: all of it, or what a cancellation left."""
        segments = [*self._segments, *([self._chunk.segment("cancelled")] if self._chunk else [])]
        n_samples = sum(map(len, self._fed)) if self._samples is None else len(self._samples)
        work = dict(self._work)
        return Transcript(
            text=_join(segments),
            segments=tuple(segments),
            duration=n_samples / audio.SAMPLE_RATE,
            language=None,
            complete=len(self._segments) == len(self._plan) and all(part.status == "ok" for part in segments),
            timings=Timings(
                prompt_tokens=int(work.pop("n_prompt_tokens")),
                tokens=int(work.pop("n_tokens")),
                total=self._seconds + time.perf_counter() - self._entered,
                **work,
            ),
        )


class _Chunk:
    """The stretch of audio that is being decoded.

    Args:
        start: Seconds.
        end: Seconds.
        before: The text of the recording up to here.
    """

    def __init__(self, start: float, end: float, before: str) -> None:
        self._start, self._end, self._before = start, end, before
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._content = bytearray()
        self._tokens: list[Token] = []

    def add(self, token: int, probability: float, content: bytes) -> Token:
        """The token with its text; the first text of a stretch begins with what separates it from the one before."""
        text = self._decoder.decode(content)
        if text:
            text = _separator(self._before, text) + text
            self._before = ""
        self._content += content
        self._tokens.append(Token(token, text, probability))
        return self._tokens[-1]

    def segment(self, status: Status) -> Segment:
        """All tokens so far as one segment."""
        text = self._content.decode("utf-8", "replace").strip()
        return Segment(self._start, self._end, text, tuple(self._tokens), status)


def _join(segments: list[Segment]) -> str:
    text = ""
    for segment in segments:
        text += _separator(text, segment.text) + segment.text
    return text


def _separator(before: str, after: str) -> str:
    """A space where two texts that were cut apart need one: not beside Chinese, whose writing has none."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if any(unicodedata.east_asian_width(side) in "WF" for side in (before[-1], after[0])) else " "

"""A session: audio in, tokens out."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pycrispasr import _native, audio
from pycrispasr.errors import AudioError, BusyError, CancelledError, ClosedError, UsageError
from pycrispasr.result import Segment, Status, Timings, Token, Transcript

if TYPE_CHECKING:
    from typing_extensions import Self

LONGEST = round(audio.CHUNK_SECONDS * audio.SAMPLE_RATE)
"""Samples of the longest recording that is one stretch."""

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
        self._heard = 0  # samples in there
        self._ended = False
        self._work: tuple[Recording, Batch] | None = None  # once the audio has ended
        self._seconds = 0.0

    def feed(self, samples: npt.NDArray[Any], *, sample_rate: float = audio.SAMPLE_RATE) -> None:
        """Appends samples to the audio.

        Each 8 seconds are encoded, and read by the decoder, as soon as more follows: the call which brings it takes
        that long, and `finish` is done earlier. The text does not depend on how the samples were divided among calls.
        Audio beyond 30 seconds waits for `tokens` or `finish`, which cut it.

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
        with self._inside() as native:
            self._check_cancelled()
            if self._ended:
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
            self._keep(native, np.array(resampler.push(mono), dtype=np.float32))

    def _keep(self, native: _native.NativeSession, samples: audio.Samples) -> None:
        """Takes samples at 16 kHz. The library works on them at once as long as they may be one stretch."""
        self._fed.append(samples)
        self._heard += len(samples)
        if self._heard <= LONGEST:
            native.feed(samples)

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
            recording, batch = self._end_audio(native)
            total = recording.seconds
            if progress:
                progress(recording.seconds_done, total)
            done = recording.seconds_done
            while steps := batch.advance(recording, native.sequences):
                for segment in (step for step in steps if isinstance(step, Segment)):
                    done += segment.end - segment.start
                    if progress:
                        progress(done, total)
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
            raise self._cancelled() from None
        finally:
            self._seconds += time.perf_counter() - self._entered
            self._lock.release()

    def _check_cancelled(self) -> None:
        if self._cancel_asked:
            raise self._cancelled()

    def _cancelled(self) -> CancelledError:
        done, planned = (len(self._work[0].segments), len(self._work[0].plan)) if self._work else (0, 0)
        return CancelledError(
            f"the transcription was cancelled with {done} of {planned} segments done: "
            "the text until then is in .partial, and reset() makes the session usable again",
            self._transcript(),
        )

    def _end_audio(self, native: _native.NativeSession) -> tuple[Recording, Batch]:
        """All of the audio, and what works on it. The first call plans the work."""
        if self._work is None:
            self._check_cancelled()
            if self._resampler is None:
                raise AudioError("no audio was fed: call feed() before tokens() or finish()")
            if not self._ended:
                self._keep(native, self._resampler.finish())
                self._ended = True
            recording = Recording(np.concatenate(self._fed))
            if 0 < self._heard <= LONGEST:
                batch = Batch(native, self._token_bytes)
                batch.go_on(recording)
                self._work = recording, batch
            else:
                self._take(recording, native)
            self._fed = []
        work = self._work
        if work is None or not work[0].plan:
            raise AudioError("the audio is empty: all that was fed are 0 samples")
        return work

    def _take(self, recording: Recording, native: _native.NativeSession) -> None:
        """Makes a whole recording the session's audio, which has ended."""
        self._ended = True
        self._work = recording, Batch(native, self._token_bytes)

    def _next_token(self) -> Token | None:
        with self._inside() as native:
            recording, batch = self._end_audio(native)
            while steps := batch.advance(recording, 1):
                for step in steps:
                    if isinstance(step, Token):
                        return step
            return None

    def _transcript(self) -> Transcript:
        """What has been done: all of it, or what a cancellation left."""
        seconds = self._seconds + time.perf_counter() - self._entered
        if self._work:
            return self._work[0].transcript(seconds, self._work[1])
        fed = np.concatenate([*self._fed, np.empty(0, np.float32)])
        return dataclasses.replace(Recording(fed).transcript(seconds), complete=False)


class Recording:
    """A recording on its way to a transcript: its plan, and what is done of it.

    Args:
        samples: All of it, mono at 16 kHz.
    """

    def __init__(self, samples: audio.Samples) -> None:
        self.samples = samples
        self.plan = audio.plan_chunks(samples)
        self.seconds = len(samples) / audio.SAMPLE_RATE
        self.segments: dict[int, Segment] = {}  # by their place in the plan, in any order
        self.started = 0  # stretches
        self._work: dict[str, float] = dict.fromkeys(_WORK, 0)

    @property
    def more(self) -> bool:
        """True while a stretch has not been started."""
        return self.started < len(self.plan)

    @property
    def finished(self) -> bool:
        """True when every stretch is done."""
        return len(self.segments) == len(self.plan)

    @property
    def seconds_done(self) -> float:
        """Seconds of audio in stretches that are done."""
        return sum(segment.end - segment.start for segment in self.segments.values())

    def next_stretch(self) -> tuple[_Chunk, audio.Samples]:
        """What comes next, and its samples. Its text is told apart from the one before where that is known already."""
        start, end = self.plan[self.started]
        before = ""
        if len(self.segments) == self.started:
            before = _join([self.segments[i] for i in range(self.started)])
        return _Chunk(start / audio.SAMPLE_RATE, end / audio.SAMPLE_RATE, before), self.samples[start:end]

    def keep(self, place: int, segment: Segment, result: dict[str, Any]) -> None:
        """Takes a stretch that has ended, and the library's result for it."""
        self.segments[place] = segment
        for name in self._work:
            self._work[name] += result[name]

    def transcript(self, seconds: float, batch: Batch | None = None) -> Transcript:
        """What has been done: all of it, or, with what a batch still works on, what a cancellation left."""
        parts, work = dict(self.segments), dict(self._work)
        for sequence, running in batch.running.items() if batch else ():
            if batch and running.recording is self:
                parts[running.place] = running.chunk.segment("cancelled")
                result = batch.native.result(sequence)
                for name in work:
                    work[name] += result[name]
        segments, text = [], ""
        for place in sorted(parts):
            segments.append(_separated(parts[place], text))
            text += _separator(text, parts[place].text) + parts[place].text
        return Transcript(
            text=text,
            segments=tuple(segments),
            duration=self.seconds,
            language=None,
            complete=self.finished and all(part.status == "ok" for part in segments),
            timings=Timings(
                prompt_tokens=int(work.pop("n_prompt_tokens")),
                tokens=int(work.pop("n_tokens")),
                total=seconds,
                **work,
            ),
        )


class _Running(NamedTuple):
    recording: Recording
    place: int  # in its plan
    chunk: _Chunk


class Batch:
    """Stretches that are decoded side by side, one in each of a session's sequences.

    Args:
        native: The session.
        decode: A token's bytes.
    """

    def __init__(self, native: _native.NativeSession, decode: Callable[[int], bytes]) -> None:
        self.native = native
        self.running: dict[int, _Running] = {}  # by sequence
        self._token_bytes = decode

    @property
    def full(self) -> bool:
        """True when no sequence is free."""
        return len(self.running) == self.native.sequences

    def start(self, recording: Recording) -> None:
        """Puts a recording's next stretch into a free sequence."""
        sequence = next(i for i in range(self.native.sequences) if i not in self.running)
        chunk, samples = recording.next_stretch()
        self.native.clear(sequence)
        self.native.feed(samples, sequence)
        self.native.end(sequence)
        self.running[sequence] = _Running(recording, recording.started, chunk)
        recording.started += 1

    def go_on(self, recording: Recording) -> None:
        """Takes a recording of one stretch, which the first sequence has heard already."""
        chunk, _ = recording.next_stretch()
        self.native.end()
        self.running[0] = _Running(recording, recording.started, chunk)
        recording.started += 1

    def advance(self, recording: Recording, width: int) -> list[Token | Segment]:
        """A step with up to so many of a recording's stretches."""
        while len(self.running) < width and recording.more:
            self.start(recording)
        return self.step()

    def step(self) -> list[Token | Segment]:
        """The next token of every stretch, or the segment that has ended. None when nothing runs."""
        sequences = list(self.running)
        steps: list[Token | Segment] = []
        for sequence, step in zip(sequences, self.native.next_of(sequences) if sequences else (), strict=True):
            recording, place, chunk = self.running[sequence]
            if step is not None:
                steps.append(chunk.add(*step, self._token_bytes(step[0])))
                continue
            result = self.native.result(sequence)
            segment = chunk.segment("looped" if result["looped"] else "truncated" if result["truncated"] else "ok")
            recording.keep(place, segment, result)
            del self.running[sequence]
            steps.append(segment)
        return steps


class _Chunk:
    """A stretch of audio that is being decoded.

    Args:
        start: Seconds.
        end: Seconds.
        before: The text of the recording up to here, as far as it is known.
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


def _separated(segment: Segment, before: str) -> Segment:
    """The segment whose first text begins with what separates it from the text before it."""
    for i, token in enumerate(segment.tokens):
        if token.text:
            between = _separator(before, token.text)
            if not between:
                return segment
            first = dataclasses.replace(token, text=between + token.text)
            return dataclasses.replace(segment, tokens=(*segment.tokens[:i], first, *segment.tokens[i + 1 :]))
    return segment


def _separator(before: str, after: str) -> str:
    """A space where two texts that were cut apart need one: not beside Chinese, whose writing has none."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if any(unicodedata.east_asian_width(side) in "WF" for side in (before[-1], after[0])) else " "

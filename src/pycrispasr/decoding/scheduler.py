"""Recordings on their way to transcripts, and the stretches of them that are decoded side by side."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import time
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from pycrispasr import audio
from pycrispasr.decoding.word_times import Aligner, Kind
from pycrispasr.errors import AudioError, DeviceError, InternalError, OutOfMemoryError, PycrispasrError
from pycrispasr.live.stabilizer import separator
from pycrispasr.results.transcript import Segment, Status, Timings, Token, Transcript, Word
from pycrispasr.runtimes import native
from pycrispasr.segmentation.segmenter import LONGEST, Cut, Cutter, Vad, quietest

_WORK = ("log_mel", "encoder", "adapter", "prefill", "decode", "hypotheses", "n_prompt_tokens", "n_tokens")
"""What a recording's timings add up, by its name in the library's result."""

_SHORTEST_HALF = 1 * audio.SAMPLE_RATE  # what a stretch may be split into
_FAILURES = (AudioError, DeviceError, InternalError, OutOfMemoryError)  # that concern one stretch


class Stretch:
    """A stretch of audio, and its text as far as it is decoded.

    Args:
        start: Where it begins, in samples from the beginning of the audio.
        samples: Its samples.
        whole: It is no part of a stretch that was split.
    """

    def __init__(self, start: int, samples: audio.Samples, *, whole: bool = True) -> None:
        self.start, self.end = start, start + len(samples)
        self.samples: audio.Samples | None = samples  # as long as they are needed
        self.words: tuple[Word, ...] | None = None
        self.status: Status | None = None  # as long as it is not done
        self.may_split = whole  # if it does not end well: not when somebody has got tokens of it
        self.alone = not whole  # it is decoded by itself
        self.failure: PycrispasrError | None = None
        self._forget()

    def _forget(self) -> None:
        """No token has been decoded."""
        self.tokens: list[Token] = []
        self.words = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._content = bytearray()

    def add(self, token: int, probability: float, content: bytes) -> None:
        """Takes the next token."""
        self._content += content
        self.tokens.append(Token(token, self._decoder.decode(content), probability))

    def end_with(self, status: Status, failure: PycrispasrError | None = None) -> None:
        """No more tokens come."""
        self.status, self.failure = status, failure
        self.samples = None

    def again_alone(self) -> bool:
        """Prepares another try without neighbours; False where that would be nothing new."""
        if self.alone or not self.may_split:
            return False
        self.alone = True
        self._forget()
        return True

    @property
    def text(self) -> str:
        """The text so far, without surrounding whitespace."""
        return self._content.decode("utf-8", "replace").strip()

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start) / audio.SAMPLE_RATE

    def segment(self, before: str) -> Segment:
        """All of it so far. Its first text begins with what separates it from the text before it."""
        tokens = tuple(self.tokens)
        for i, token in enumerate(tokens):
            if token.text:
                first = dataclasses.replace(token, text=separator(before, token.text) + token.text)
                tokens = (*tokens[:i], first, *tokens[i + 1 :])
                break
        return Segment(
            self.start / audio.SAMPLE_RATE,
            self.end / audio.SAMPLE_RATE,
            self.text,
            tokens,
            self.status or "cancelled",
            self.words,
            error=str(self.failure) if self.failure else None,
        )

    def halves(self) -> list[Stretch]:
        """The same audio cut at the quietest place of its middle half; nothing where that is too short."""
        samples = self.samples
        if samples is None or len(samples) < 4 * _SHORTEST_HALF or not self.may_split:
            return []
        cut = quietest(samples, len(samples) // 4, len(samples) - len(samples) // 4)
        return [
            Stretch(self.start, samples[:cut], whole=False),
            Stretch(self.start + cut, samples[cut:], whole=False),
        ]


class Recording:
    """A recording on its way to a transcript: its stretches, and what is done of them.

    Args:
        reader: Where its audio comes from, as far as it is needed; None where stretches are appended from outside.
        cutter: Makes stretches of it.
    """

    def __init__(self, reader: audio.AudioReader | None = None, cutter: Cutter | None = None) -> None:
        self.begun = time.perf_counter()
        self.n_samples = 0  # of all its audio so far
        self.stretches: list[Stretch] = []  # in order
        self.finals: list[Segment] = []  # of the first of them, which are done
        self.text = ""  # of these
        self.lost = 0.0  # seconds that were lost on the way here
        self.word_times: Kind | None = None
        self.waiting: collections.deque[Stretch] = collections.deque()  # that have not been started
        self.failure: PycrispasrError | None = None  # of all of it
        self._reader = reader
        self._source = None if reader is None or cutter is None else self._read(reader, cutter)
        self._work: dict[str, float] = dict.fromkeys(_WORK, 0)

    @classmethod
    def open(
        cls,
        recording: audio.Audio,
        *,
        sample_rate: float | None,
        channel: int | None,
        track: int | None,
        vad: Vad,
        silence: float | None,
    ) -> Recording:
        """One that is read as it is needed; where it cannot even be opened, its `failure` is set.

        Raises:
            UsageError: An option cannot be.
        """
        cutter = Cutter(vad=vad, silence=silence)
        try:
            return cls(audio.open(recording, sample_rate=sample_rate, channel=channel, track=track), cutter)
        except AudioError as error:
            return cls.broken(error)

    @classmethod
    def broken(cls, failure: PycrispasrError) -> Recording:
        """One that cannot be read."""
        recording = cls()
        recording._break_off(failure)
        return recording

    def _read(self, reader: audio.AudioReader, cutter: Cutter) -> Iterator[Cut]:
        failure: AudioError | None = None
        with reader:
            try:
                for block in reader.blocks():
                    self.n_samples += len(block)
                    yield from (mark for mark in cutter.push(block) if isinstance(mark, Cut))
            except AudioError as error:  # the file is broken, perhaps behind an hour of sound audio
                failure = error
        yield from cutter.finish()
        if failure is not None:
            raise failure
        if not self.n_samples:
            raise AudioError("the audio is empty: it has 0 samples")

    def ready(self) -> bool:
        """True when a stretch waits. Audio is read for it, if need be."""
        while not self.waiting and self._source is not None:
            try:
                self.append(next(self._source))
            except StopIteration:
                self._source = None
                self._settle()
            except AudioError as error:
                self._source = None
                self._break_off(error)
        return bool(self.waiting)

    def _break_off(self, failure: PycrispasrError) -> None:
        """No more of it can be read."""
        rest = Stretch(self.n_samples, audio.NOTHING)
        rest.end_with("failed", failure)
        self.stretches.append(rest)
        self._settle()

    def append(self, cut: Cut) -> None:
        """Another stretch is complete."""
        self.stretches.append(Stretch(cut.start, cut.samples))
        self.waiting.append(self.stretches[-1])

    @property
    def finished(self) -> bool:
        """True when every stretch is done."""
        return self._source is None and len(self.finals) == len(self.stretches)

    @property
    def seconds(self) -> float:
        """Its length so far."""
        return self.n_samples / audio.SAMPLE_RATE

    @property
    def seconds_done(self) -> float:
        """How much of it is done, or needs nothing to be done."""
        undone = self.stretches[len(self.finals) :]
        known = self.n_samples if self._source is None else self.stretches[-1].end if self.stretches else 0
        return known / audio.SAMPLE_RATE - sum(stretch.seconds for stretch in undone if stretch.status is None)

    @property
    def seconds_expected(self) -> float | None:
        """Its whole length, as far as that is known."""
        return self.seconds if self._source is None or self._reader is None else self._reader.duration

    def keep(self, stretch: Stretch, result: dict[str, Any], retried: Container[Status]) -> None:
        """Takes the library's result for a stretch whose last token has been added.

        One that did not end well is put back in two parts, where that may help.

        Args:
            stretch: Is done.
            result: Of the library.
            retried: The statuses that are tried again.
        """
        self._add(self._work, result)
        status: Status = "looped" if result["looped"] else "truncated" if result["truncated"] else "ok"
        if status not in retried or not self._split(stretch):
            stretch.end_with(status)
        self._settle()

    def fail(self, stretch: Stretch, failure: PycrispasrError) -> None:
        """A stretch could not be worked on: it is tried alone, then in two parts."""
        if stretch.again_alone():
            self.waiting.appendleft(stretch)
        elif not self._split(stretch):
            stretch.end_with("failed", failure)
        self._settle()

    def _split(self, stretch: Stretch) -> bool:
        """Puts its two parts in the place of a stretch; False where it is too short."""
        halves = stretch.halves()
        if halves:
            place = self.stretches.index(stretch, len(self.finals))
            self.stretches[place : place + 1] = halves
            self.waiting.extendleft(reversed(halves))
        return bool(halves)

    def _settle(self) -> None:
        """What is done becomes final, in order."""
        while len(self.finals) < len(self.stretches) and (first := self.stretches[len(self.finals)]).status:
            self.finals.append(first.segment(self.text))
            self.text += separator(self.text, first.text) + first.text
        if self.finished and self.stretches and all(stretch.failure for stretch in self.stretches):
            self.failure = self.stretches[0].failure

    def transcript(
        self,
        seconds: float,
        running: Iterable[tuple[Stretch, dict[str, Any]]] | None = None,
        heard: Stretch | None = None,
    ) -> Transcript:
        """What has been done: all of it, or what a cancellation left.

        Args:
            seconds: How long it took.
            running: After a cancellation: stretches which are not done, with the library's results for them.
            heard: After a cancellation: what was heard of a stretch whose audio has not ended.
        """
        work = dict(self._work)
        for _, result in running or ():
            self._add(work, result)
        begun = [stretch for stretch, _ in running or ()]
        segments, text = list(self.finals), self.text
        for stretch in [*self.stretches[len(self.finals) :], heard]:
            if stretch and (stretch.status or stretch is heard or stretch in begun):
                segments.append(stretch.segment(text))
                text += separator(text, stretch.text) + stretch.text
        return Transcript(
            text=text,
            segments=tuple(segments),
            duration=self.seconds,
            language=None,
            complete=running is None and not self.lost and all(segment.status == "ok" for segment in segments),
            warnings=tuple(self._reader.warnings) if self._reader else (),
            timings=Timings(
                prompt_tokens=int(work.pop("n_prompt_tokens")),
                tokens=int(work.pop("n_tokens")),
                total=seconds,
                **work,
            ),
            word_times=self.word_times,
        )

    @staticmethod
    def _add(work: dict[str, float], result: dict[str, Any]) -> None:
        for name in work:
            work[name] += result[name]


class Batch:
    """A library's session, whose sequences decode stretches side by side; one of them may listen to a stretch to come.

    Args:
        session: The session.
        token_bytes: Gives a token's bytes.
        retried: The statuses of stretches that are tried again in two parts.
        aligner: Gives times to words, if that is wanted; the session keeps the attention of its heads.
    """

    def __init__(
        self,
        session: native.NativeSession,
        token_bytes: Callable[[int], bytes],
        retried: Container[Status] = ("looped",),
        aligner: Aligner | None = None,
    ) -> None:
        self.native = session
        self._aligner = aligner
        self.running: dict[int, tuple[Recording, Stretch]] = {}  # by sequence
        self._token_bytes = token_bytes
        self._retried = retried
        self._listening: int | None = None  # the sequence
        self._from = 0  # where its stretch begins
        self._heard = 0  # samples that it was fed

    @property
    def full(self) -> bool:
        """True when no sequence is free, or none may be used beside what is decoded alone."""
        taken = len(self.running) + (self._listening is not None)
        return taken == self.native.sequences or any(stretch.alone for _, stretch in self.running.values())

    def reset(self) -> None:
        """Forgets everything, and a cancellation."""
        self.native.reset()
        self.running.clear()
        self._listening = None

    def start(self, recording: Recording) -> bool:
        """Puts a recording's next stretch into a free sequence. False when it has to wait until it can be alone."""
        stretch = recording.waiting[0]
        if stretch.alone and self.running:
            return False
        recording.waiting.popleft()
        self._begin(self._free(), recording, stretch, 0)
        return True

    def listen(self, cut: Cut) -> None:
        """Takes the stretch that goes on, from its beginning: what has not been heard yet is worked on at once."""
        if self._listening is not None and self._from != cut.start:
            self._listening = None  # what was heard became no stretch
        if self._listening is None:
            self._listening, self._from, self._heard = self._free(), cut.start, 0
        samples = cut.samples[:LONGEST]
        if len(samples) > self._heard:
            self.native.feed(samples[self._heard :], self._listening)
            self._heard = len(samples)

    def stop_listening(self, recording: Recording) -> None:
        """The recording's last stretch is complete. If it is the one that was listened to, it need not wait."""
        sequence, self._listening = self._listening, None
        if sequence is not None and recording.stretches[-1].start == self._from:
            self._begin(sequence, recording, recording.waiting.pop(), self._heard)

    @property
    def heard(self) -> int:
        """Samples of the stretch that goes on, as far as they are worked on."""
        return self._heard if self._listening is not None else 0

    def hypothesis(self, start: int) -> Stretch:
        """The text of what was heard so far, as if the stretch ended here.

        Args:
            start: Where it begins, in samples.
        """
        stretch = Stretch(start, audio.NOTHING)
        stretch.end = start + self._heard
        if self._listening is not None:
            for token, probability in self.native.hypothesis(self._listening):
                stretch.add(token, probability, self._token_bytes(token))
        return stretch

    def advance(self, recording: Recording, width: int) -> bool:
        """A step with up to so many of a recording's stretches. False when there is none."""
        while len(self.running) < width and not self.full and recording.ready():
            if not self.start(recording):
                break
        return self.step() or bool(recording.waiting)

    def step(self) -> bool:
        """One more token of every stretch that is being decoded. False when there is none."""
        sequences = list(self.running)
        try:
            steps = self.native.next_of(sequences) if sequences else []
        except _FAILURES as error:
            for sequence in reversed(sequences):
                recording, stretch = self.running.pop(sequence)
                recording.fail(stretch, error)
            return True
        for sequence, step in zip(sequences, steps, strict=True):
            recording, stretch = self.running[sequence]
            if step is not None:
                stretch.add(*step, self._token_bytes(step[0]))
            else:
                self._align(sequence)
                recording.keep(stretch, self.native.result(sequence), self._retried)
                del self.running[sequence]
        return bool(sequences)

    def work_on(self, recording: Recording) -> list[tuple[Stretch, dict[str, Any]]]:
        """The stretches of a recording that are being decoded, with the library's results so far."""
        for sequence in self.running:
            self._align(sequence)
        return [
            (stretch, self.native.result(sequence))
            for sequence, (whose, stretch) in self.running.items()
            if whose is recording
        ]

    def _align(self, sequence: int) -> None:
        """Times for the words of a stretch as far as it is decoded, if they are wanted."""
        recording, stretch = self.running[sequence]
        if self._aligner is not None and stretch.samples is not None:
            recording.word_times = self._aligner.kind
            attention = self.native.attention(sequence)
            tokens, stretch.words = self._aligner.align(
                stretch.tokens, stretch.text, attention, stretch.samples, stretch.start
            )
            stretch.tokens[:] = tokens

    def _free(self) -> int:
        """A free sequence, empty."""
        sequence = next(i for i in range(self.native.sequences) if i not in self.running and i != self._listening)
        self.native.clear(sequence)
        return sequence

    def _begin(self, sequence: int, recording: Recording, stretch: Stretch, heard: int) -> None:
        """Gives a sequence what it has not heard of a stretch, and takes it among those that are decoded."""
        samples = audio.NOTHING if stretch.samples is None else stretch.samples
        try:
            if len(samples) > heard:
                self.native.feed(samples[heard:], sequence)
            self.native.end(sequence, len(samples))
        except _FAILURES as error:
            recording.fail(stretch, error)
        else:
            self.running[sequence] = recording, stretch


def side_by_side(
    batch: Batch, recordings: Iterator[Recording], begun: collections.deque[Recording]
) -> Iterator[Recording | None]:
    """Works on recordings as they come, and gives each of them when it is done, in order; None after other steps.

    A recording is taken when there is room for its first stretch. What `recordings` raises is raised when those before
    it are done.

    Args:
        batch: Where they are decoded.
        recordings: Any number of them.
        begun: Holds those that were taken and are not done yet, for who wants to look at them meanwhile.
    """
    more = True
    failure: Exception | None = None
    while more or begun:
        while not batch.full:
            recording = next((one for one in begun if one.ready()), None)
            if recording is not None:
                if not batch.start(recording):
                    break
                continue
            if not more:
                break
            try:
                recording = next(recordings, None)
            except Exception as error:  # noqa: BLE001  whatever the caller's iterable raises
                failure = error
            if recording is None:
                more = False
            else:
                begun.append(recording)
                if recording.failure is not None:
                    break  # it is given before the next one is taken
        batch.step()
        while begun and begun[0].finished:
            yield begun.popleft()
        yield None
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # or it and this frame would hold each other

"""A recording on its way to a transcript: its segments, which of them wait, and what is done of them."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from pycrispasr import audio
from pycrispasr.decoding.reader import Piece, PlainReader, Reader
from pycrispasr.errors import AudioError, PycrispasrError
from pycrispasr.options import ReadingOptions
from pycrispasr.results.segment import Segment, Status, Token, Word
from pycrispasr.results.transcript import Timings, Transcript, WordTimes
from pycrispasr.segmentation.segmenter import AudioSegment, Segmenter, quietest
from pycrispasr.text import join, separator

_WORK = ("log_mel", "encoder", "adapter", "prefill", "decode", "hypotheses", "n_prompt_tokens", "n_tokens")
"""What a recording's timings add up, by its name in the library's result."""

_SHORTEST_HALF = 1 * audio.SAMPLE_RATE  # what a segment may be split into


class Task:
    """A segment to decode, and its text so far.

    Args:
        start: Where it begins, in samples from the beginning of the audio.
        samples: Its samples.
        whole: It is no part of a segment that was split.
    """

    def __init__(self, start: int, samples: audio.Samples, *, whole: bool = True) -> None:
        self.start, self.end = start, start + len(samples)
        self.samples: audio.Samples | None = samples  # as long as they are needed
        self.words: tuple[Word, ...] | None = None
        self.status: Status | None = None  # as long as it is not done
        self.may_split = whole  # if it does not end well: not when somebody has got tokens of it
        self.failure: PycrispasrError | None = None
        self._parts: Sequence[Segment] | None = None
        self.reader: Reader = PlainReader()  # before the first token another one may be set
        self.tokens: list[Token] = []  # of the text
        self.steps: list[int] = []  # which of all that the model wrote each of these is
        self._written: list[tuple[int, float]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._content = bytearray()

    def add(self, token: int, probability: float, content: bytes) -> None:
        """Takes the next token that the model wrote."""
        self._written.append((token, probability))
        self._take(self.reader.read(content))

    def end_text(self) -> None:
        """The model has ended the text by itself."""
        self._take(self.reader.end())

    def _take(self, pieces: Iterable[Piece]) -> None:
        for step, content in pieces:
            token, probability = self._written[step]
            self._content += content
            self.tokens.append(Token(token, self._decoder.decode(content), probability))
            self.steps.append(step)

    @property
    def n_steps(self) -> int:
        """Tokens that the model wrote: those of the text, and those that the reader took for something else."""
        return len(self._written)

    def end_with(self, status: Status, failure: PycrispasrError | None = None) -> None:
        """No more tokens come."""
        self.status, self.failure = status, failure
        self.samples = None

    def end_with_parts(self, parts: Sequence[Segment]) -> None:
        """It is done, and the runtime has divided it further: into segments with times from its beginning."""
        self._parts = parts
        self.end_with("ok")

    @property
    def text(self) -> str:
        """The text so far, without surrounding whitespace."""
        return self._content.decode("utf-8", "replace").strip()

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start) / audio.SAMPLE_RATE

    def segments(self, before: str) -> Iterator[Segment]:
        """All of it so far: one segment, or those that the runtime made. `before` is the text before it."""
        if self._parts is None:
            yield self.segment(before)
            return
        for part in self._parts:
            yield _moved(part, self.start / audio.SAMPLE_RATE, self.end / audio.SAMPLE_RATE, before)
            before = join(before, part.text)

    def segment(self, before: str) -> Segment:
        """All of it so far. Its first text begins with what separates it from the text before it."""
        return Segment(
            self.start / audio.SAMPLE_RATE,
            self.end / audio.SAMPLE_RATE,
            self.text,
            _separated(self.tokens, before),
            self.status or "cancelled",
            self.words,
            error=str(self.failure) if self.failure else None,
            language=self.reader.language,
        )

    def halves(self) -> list[Task]:
        """The same audio cut at the quietest place of its middle half; nothing where that is too short."""
        samples = self.samples
        if samples is None or len(samples) < 4 * _SHORTEST_HALF or not self.may_split:
            return []
        cut = quietest(samples, len(samples) // 4, len(samples) - len(samples) // 4)
        return [
            Task(self.start, samples[:cut], whole=False),
            Task(self.start + cut, samples[cut:], whole=False),
        ]


class Recording:
    """A recording on its way to a transcript: its tasks, and what is done of them.

    Args:
        reader: Where its audio comes from, as far as it is needed; None where segments are appended from outside.
        segmenter: Divides it.
    """

    def __init__(self, reader: audio.AudioReader | None = None, segmenter: Segmenter | None = None) -> None:
        self.begun = time.perf_counter()
        self.n_samples = 0  # of all its audio so far
        self.tasks: list[Task] = []  # in order
        self.waiting: collections.deque[Task] = collections.deque()  # that have not been started
        self.finals: list[Segment] = []  # of the first tasks, which are done
        self.n_final = 0  # of the tasks
        self.text = ""  # of the finals
        self.lost = 0.0  # seconds that were lost on the way here
        self.language: str | None = None
        self.word_times: WordTimes | None = None
        self.warnings: list[str] = []  # beside those of its reader
        self.failure: PycrispasrError | None = None  # of all of it
        self._reader = reader
        self._source = None if reader is None or segmenter is None else self._read(reader, segmenter)
        self._work: dict[str, float] = dict.fromkeys(_WORK, 0)

    @classmethod
    def open(cls, recording: audio.Audio, options: ReadingOptions) -> Recording:
        """One that is read as it is needed; where it cannot even be opened, its `failure` is set."""
        segmenter = Segmenter(vad=options.vad, silence=options.silence)
        try:
            reader = audio.open(
                recording,
                sample_rate=options.sample_rate,
                channel=options.channel,
                track=options.track,
                allow=options.allow,
                limits=options.limits,
            )
        except PycrispasrError as error:
            opened = cls()
            opened._break_off(error)
            return opened
        return cls(reader, segmenter)

    def _read(self, reader: audio.AudioReader, segmenter: Segmenter) -> Iterator[AudioSegment]:
        failure: PycrispasrError | None = None
        with reader:
            try:
                for block in reader.blocks():
                    self.n_samples += len(block)
                    yield from (mark for mark in segmenter.push(block) if isinstance(mark, AudioSegment))
            except PycrispasrError as error:  # the file is broken, perhaps behind an hour of sound audio
                failure = error
        yield from segmenter.finish()
        if failure is not None:
            raise failure
        if not self.n_samples:
            raise AudioError("the audio is empty: it has 0 samples")

    def ready(self) -> bool:
        """True when a task waits. Audio is read for it, if need be."""
        while not self.waiting and self._source is not None:
            try:
                self.append(next(self._source))
            except StopIteration:
                self._source = None
                self._settle()
            except PycrispasrError as error:
                self._source = None
                self._break_off(error)
        return bool(self.waiting)

    def _break_off(self, failure: PycrispasrError) -> None:
        """No more of it can be read."""
        rest = Task(self.n_samples, audio.NOTHING)
        rest.end_with("failed", failure)
        self.tasks.append(rest)
        self._settle()

    def append(self, segment: AudioSegment) -> None:
        """Another segment's audio is complete."""
        self.tasks.append(Task(segment.start, segment.samples))
        self.waiting.append(self.tasks[-1])

    @property
    def finished(self) -> bool:
        """True when every task is done."""
        return self._source is None and self.n_final == len(self.tasks)

    @property
    def seconds(self) -> float:
        """Its length so far."""
        return self.n_samples / audio.SAMPLE_RATE

    @property
    def seconds_done(self) -> float:
        """How much of it is done, or needs nothing to be done."""
        known = self.n_samples if self._source is None else self.tasks[-1].end if self.tasks else 0
        undone = sum(task.seconds for task in self.tasks[self.n_final :] if task.status is None)
        return known / audio.SAMPLE_RATE - undone

    @property
    def seconds_expected(self) -> float | None:
        """Its whole length, as far as that is known."""
        return self.seconds if self._source is None or self._reader is None else self._reader.duration

    def complete(self, task: Task, result: dict[str, Any], retried: Container[Status]) -> None:
        """Takes the library's result for a task whose last token has been added.

        One that did not end well is put back in two parts, where that may help.

        Args:
            task: Is done.
            result: Of the library.
            retried: The statuses that are tried again.
        """
        self._add(self._work, result)
        status: Status = "looped" if result["looped"] else "truncated" if result["truncated"] else "ok"
        if status not in retried or not self._split(task):
            task.end_with(status)
        self._settle()

    def complete_with_parts(self, task: Task, parts: Sequence[Segment]) -> None:
        """Takes the segments that a runtime makes of a task at once."""
        self._work["n_tokens"] += sum(len(part.tokens) for part in parts)
        task.end_with_parts(parts)
        self._settle()

    def fail(self, task: Task, failure: PycrispasrError) -> None:
        """A task could not be worked on: it is tried in two parts."""
        if not self._split(task):
            task.end_with("failed", failure)
        self._settle()

    def _split(self, task: Task) -> bool:
        """Puts its two parts in the place of a task; False where it is too short."""
        halves = task.halves()
        if halves:
            place = self.tasks.index(task, self.n_final)
            self.tasks[place : place + 1] = halves
            self.waiting.extendleft(reversed(halves))
        return bool(halves)

    def _settle(self) -> None:
        """What is done becomes final, in order."""
        while self.n_final < len(self.tasks) and (task := self.tasks[self.n_final]).status:
            for segment in task.segments(self.text):
                self.finals.append(segment)
                self.text = join(self.text, segment.text)
            self.n_final += 1
        if self.finished and self.tasks and all(task.failure for task in self.tasks):
            self.failure = self.tasks[0].failure

    def transcript(
        self,
        seconds: float | None = None,
        running: Iterable[tuple[Task, dict[str, Any]]] | None = None,
        heard: Task | None = None,
    ) -> Transcript:
        """What has been done: all of it, or what a cancellation left.

        Args:
            seconds: How long it took. None: from its opening until now.
            running: After a cancellation: tasks which are not done, with the library's results for them.
            heard: After a cancellation: what was heard of a segment whose audio has not ended.
        """
        work = dict(self._work)
        for _, result in running or ():
            self._add(work, result)
        begun = [task for task, _ in running or ()]
        segments, text = list(self.finals), self.text
        for task in [*self.tasks[self.n_final :], heard]:
            if task and (task.status or task is heard or task in begun):
                for segment in task.segments(text):
                    segments.append(segment)
                    text = join(text, segment.text)
        return Transcript(
            text=text,
            segments=tuple(segments),
            duration=self.seconds,
            language=self.language or _main_language(segments),
            complete=running is None and not self.lost and all(segment.status == "ok" for segment in segments),
            warnings=(*(self._reader.warnings if self._reader else ()), *self.warnings),
            timings=Timings(
                prompt_tokens=int(work.pop("n_prompt_tokens")),
                tokens=int(work.pop("n_tokens")),
                total=time.perf_counter() - self.begun if seconds is None else seconds,
                **work,
            ),
            word_times=self.word_times,
        )

    @staticmethod
    def _add(work: dict[str, float], result: dict[str, Any]) -> None:
        for name in work:
            work[name] += result.get(name, 0)


def _main_language(segments: Iterable[Segment]) -> str | None:
    """The language in which most of the audio is, as far as segments tell theirs."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language is not None:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end - segment.start
    return max(seconds, key=seconds.__getitem__) if seconds else None


def _separated(tokens: Iterable[Token], before: str) -> tuple[Token, ...]:
    """Tokens whose first text begins with what separates it from the text before."""
    found = list(tokens)
    for place, token in enumerate(found):
        if token.text:
            found[place] = dataclasses.replace(token, text=separator(before, token.text) + token.text)
            break
    return tuple(found)


def _moved(segment: Segment, start: float, end: float, before: str) -> Segment:
    """A segment with times from the recording's beginning, inside its task.

    Args:
        segment: With times from the task's beginning.
        start: Seconds where the task begins.
        end: Seconds where it ends.
        before: The recording's text up to here.
    """

    def moved(seconds: float | None) -> float | None:
        return None if seconds is None else min(start + seconds, end)

    tokens = [dataclasses.replace(t, start=moved(t.start), end=moved(t.end)) for t in segment.tokens]
    for place, token in enumerate(tokens):
        if text := token.text.lstrip():
            tokens[place] = dataclasses.replace(token, text=separator(before, text) + text)
            break
    words = segment.words and tuple(
        dataclasses.replace(word, start=min(start + word.start, end), end=min(start + word.end, end))
        for word in segment.words
    )
    return dataclasses.replace(
        segment,
        start=min(start + segment.start, end),
        end=min(start + segment.end, end),
        tokens=tuple(tokens),
        words=words,
    )

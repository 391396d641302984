"""A recording on its way to a transcript: its segments, which of them wait, and what is done of them."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import functools
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pycrispasr import audio
from pycrispasr.decoding.conversation import Conversation, Utterance
from pycrispasr.decoding.reader import Piece, PlainReader, Reader
from pycrispasr.errors import AudioError, PycrispasrError
from pycrispasr.options import ReadingOptions
from pycrispasr.results.segment import Segment, Status, Token, Word
from pycrispasr.results.transcript import Timings, Transcript, WordTimes
from pycrispasr.segmentation.parts import PartsSegmenter
from pycrispasr.segmentation.segmenter import AudioSegment, Segmenter, quietest
from pycrispasr.text import join, separator

_WORK = ("log_mel", "encoder", "adapter", "prefill", "decode", "hypotheses", "n_prompt_tokens", "n_tokens")
"""What a recording's timings add up, by its name in the library's result."""

_SHORTEST_HALF = 1 * audio.SAMPLE_RATE  # what a segment may be split into


_MARGIN = 0.3  # seconds at both ends of a turn in which its words may be

Align = Callable[[Sequence[Token], str, audio.Samples, int], "tuple[tuple[Token, ...], tuple[Word, ...] | None]"]
"""Gives tokens of a text with their times, and its words, of samples that begin so many samples into the audio."""


class _Spoken(NamedTuple):
    place: int  # of the turn
    speaker: int | None
    begin: float  # in seconds from the task's beginning
    end: float
    text: str
    tokens: tuple[Token, ...]


class Task:
    """A segment to decode, and its text so far.

    Args:
        start: Where it begins, in samples from the beginning of the audio.
        samples: Its samples.
        whole: It may be split if it does not end well: it is no part of one that was.
        overlapped: The next one begins before its end.
    """

    def __init__(self, start: int, samples: audio.Samples, *, whole: bool = True, overlapped: bool = False) -> None:
        self.start, self.end = start, start + len(samples)
        self.overlapped = overlapped
        self.samples: audio.Samples | None = samples  # as long as they are needed
        self.words: tuple[Word, ...] | None = None
        self.status: Status | None = None  # as long as it is not done
        self.may_split = whole  # if it does not end well: not when somebody has got tokens of it
        self.is_streamed = False  # its tokens are given before it is done
        self.failure: PycrispasrError | None = None
        self._parts: Sequence[Segment] | None = None
        self.reader: Reader = PlainReader()  # before the first token another one may be set
        self.tokens: list[Token] = []  # of the text
        self.steps: list[int] = []  # which of all that the model wrote each of these is
        self.before: str | None = None  # the recording's text before it, once that is final
        self._aligned: dict[int, tuple[tuple[Token, ...], tuple[Word, ...] | None]] = {}  # by the reader's turns
        self._turns: list[int] = []  # to which of the reader's turns each token belongs, in order
        self._n_closed = 0  # turns, when `closes_turn` was asked
        self._written: list[tuple[int, float]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._contents = [bytearray()]  # of the reader's turns

    def add(self, token: int, probability: float, content: bytes) -> None:
        """Takes the next token that the model wrote."""
        self._written.append((token, probability))
        self._take(self.reader.read(content))

    def end_text(self) -> None:
        """The model has ended the text by itself."""
        self._take(self.reader.end())

    def _take(self, pieces: Iterable[Piece]) -> None:
        for step, content, turn in pieces:
            token, probability = self._written[step]
            while turn >= len(self._contents):
                self._contents.append(bytearray())
                self._decoder.reset()
            self._contents[turn] += content
            self.tokens.append(Token(token, self._decoder.decode(content), probability))
            self.steps.append(step)
            self._turns.append(turn)

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
        return functools.reduce(join, (self._turn_text(turn) for turn in range(len(self._contents))))

    def _turn_text(self, turn: int) -> str:
        return self._contents[turn].decode("utf-8", "replace").strip()

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start) / audio.SAMPLE_RATE

    @property
    def seconds_left(self) -> float:
        """Of its length, what no text has been written for, as far as the model tells."""
        ends = [turn.end for turn in self.reader.turns or () if turn.end is not None]
        return max(0.0, self.seconds - max(ends, default=0.0))

    @property
    def last_text(self) -> str:
        """What is being written: its text, or that of the last turn."""
        return self.text if self.reader.turns is None else self._turn_text(len(self._contents) - 1)

    def segments(self, before: str) -> Iterator[Segment]:
        """All of it so far: one segment, or those that the runtime or the reader made.

        Args:
            before: The text before it.
        """
        if self.reader.turns is not None and self.status is not None:
            for _, segment in self.utterances():
                yield dataclasses.replace(segment, tokens=_separated(segment.tokens, before))
                before = join(before, segment.text)
            return
        if self._parts is None:
            yield self.segment(before)
            return
        for part in self._parts:
            yield _moved(part, self.start / audio.SAMPLE_RATE, self.end / audio.SAMPLE_RATE, before)
            before = join(before, part.text)

    def _spoken(self) -> Iterator[_Spoken]:
        """What its reader's turns say, as far as they are complete.

        They begin one after the other, and lie inside it.
        """
        turns, begin = self.reader.turns or (), 0.0
        for place, turn in enumerate(turns):
            if not turn.closed and self.status is None:
                return
            begin = min(max(begin, turn.start or 0.0), self.seconds)
            end = turn.end
            if end is None:
                end = next((one.start for one in turns[place + 1 :] if one.start is not None), self.seconds)
            if text := self._turn_text(place) if place < len(self._contents) else "":
                tokens = tuple(self.tokens[bisect_left(self._turns, place) : bisect_right(self._turns, place)])
                yield _Spoken(place, turn.speaker, begin, min(max(begin, end), self.seconds), text, tokens)

    def closes_turn(self) -> bool:
        """True where more of its reader's turns are complete than when this was asked last."""
        turns, before = self.reader.turns or (), self._n_closed
        self._n_closed = len(turns) - (1 if turns and not turns[-1].closed else 0)
        return self._n_closed > before

    def align_turns(self, align: Align) -> None:
        """Has the words of each turn that is complete aligned, once.

        Args:
            align: Gives the tokens of a text with their times, and its words.
        """
        samples = self.samples
        if samples is None:
            return
        for spoken in self._spoken():
            if spoken.place not in self._aligned:
                # Times of the model may be a little late, or early.
                begin = max(0, round((spoken.begin - _MARGIN) * audio.SAMPLE_RATE))
                heard = samples[begin : round((spoken.end + _MARGIN) * audio.SAMPLE_RATE)]
                self._aligned[spoken.place] = align(spoken.tokens, spoken.text, heard, self.start + begin)

    def utterances(self) -> list[Utterance]:
        """What its reader's turns say, as far as they are complete; those without text are left out.

        They begin one after the other, and lie inside it. Where it did not end well, the last one has its status.
        """
        first, found = self.start / audio.SAMPLE_RATE, []
        for spoken in self._spoken():
            tokens, words = self._aligned.get(spoken.place, (spoken.tokens, None))
            segment = Segment(first + spoken.begin, first + spoken.end, spoken.text, tokens, "ok", words)
            found.append(Utterance(spoken.speaker, segment))
        if self.status is not None and self.status != "ok":
            turns = self.reader.turns or ()
            if not found or turns[-1].closed:
                begin = found[-1].segment.end if found else first
                found.append(Utterance(None, Segment(begin, self.end / audio.SAMPLE_RATE, "", (), "ok")))
            number, last = found.pop()
            error = str(self.failure) if self.failure else None
            found.append(Utterance(number, dataclasses.replace(last, status=self.status, error=error)))
        return found

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

    def written(self, before: str) -> tuple[Token, ...]:
        """Its tokens. `before` is the recording's text before it, unless it is final."""
        return _separated(self.tokens, before if self.before is None else self.before)

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
        conversation: Puts together what is told of its speakers. None: nothing is.
    """

    def __init__(
        self,
        reader: audio.AudioReader | None = None,
        segmenter: Segmenter | PartsSegmenter | None = None,
        conversation: Conversation | None = None,
    ) -> None:
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
        self.conversation = conversation
        self._reader = reader
        self._source = None if reader is None or segmenter is None else self._read(reader, segmenter)
        self._work: dict[str, float] = dict.fromkeys(_WORK, 0)

    @classmethod
    def open(
        cls,
        recording: audio.Audio,
        options: ReadingOptions,
        segmenter: Segmenter | PartsSegmenter,
        conversation: Conversation | None = None,
    ) -> Recording:
        """One that is read as it is needed; where it cannot even be opened, its `failure` is set."""
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
        return cls(reader, segmenter, conversation)

    def _read(self, reader: audio.AudioReader, segmenter: Segmenter | PartsSegmenter) -> Iterator[AudioSegment]:
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
        whole = self.conversation is None  # parts of a part would number its speakers anew
        self.tasks.append(Task(segment.start, segment.samples, whole=whole, overlapped=segment.overlapped))
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
        undone = sum(task.seconds_left for task in self.tasks[self.n_final :] if task.status is None)
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
        if status not in retried or task.is_streamed or not self._split(task):
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
            task.before = self.text
            if self.conversation is None:
                for segment in task.segments(self.text):
                    self._finish(segment)
            else:
                self.hear(task)
            self.n_final += 1
        if self.finished and self.tasks and all(task.failure for task in self.tasks):
            self.failure = self.tasks[0].failure

    def hear(self, task: Task) -> None:
        """Takes what a task tells of its speakers by now."""
        if self.conversation is not None:
            start, end = task.start / audio.SAMPLE_RATE, task.end / audio.SAMPLE_RATE
            for segment in self.conversation.update(
                self.tasks.index(task, self.n_final), start, end if task.overlapped else None, task.utterances(),
                done=task.status is not None,
            ):  # fmt: skip
                self._finish(dataclasses.replace(segment, tokens=_separated(segment.tokens, self.text)))

    def _finish(self, segment: Segment) -> None:
        """A segment is final."""
        self.finals.append(segment)
        self.text = join(self.text, segment.text)

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
        if self.conversation is not None and running is not None:
            for segment in self.conversation.rest():
                segments.append(dataclasses.replace(segment, tokens=_separated(segment.tokens, text)))
                text = join(text, segment.text)
        for task in [*self.tasks[self.n_final :], heard] if self.conversation is None else ():
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
            warnings=(
                *(self._reader.warnings if self._reader else ()),
                *self.warnings,
                *(self.conversation.warnings if self.conversation else ()),
            ),
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

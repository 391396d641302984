"""Recordings on their way to transcripts, and the stretches of them that are decoded side by side."""

from __future__ import annotations

import codecs
import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from pycrispasr import _native, audio
from pycrispasr.cutter import LONGEST, Cut, plan, quietest
from pycrispasr.errors import AudioError
from pycrispasr.live_text import separator
from pycrispasr.result import Segment, Status, Timings, Token, Transcript, Word
from pycrispasr.word_times import Aligner, Kind

_WORK = ("log_mel", "encoder", "adapter", "prefill", "decode", "hypotheses", "n_prompt_tokens", "n_tokens")
"""What a recording's timings add up, by its name in the library's result."""

_SHORTEST_HALF = 1 * audio.SAMPLE_RATE  # what a stretch that looped may be split into


class Stretch:
    """A stretch of audio, and its text as far as it is decoded.

    Args:
        start: Where it begins, in samples from the beginning of the audio.
        samples: Its samples.
        whole: It is no part of a stretch that looped.
    """

    def __init__(self, start: int, samples: audio.Samples, *, whole: bool = True) -> None:
        self.start, self.end = start, start + len(samples)
        self.samples: audio.Samples | None = samples  # as long as they are needed
        self.tokens: list[Token] = []
        self.words: tuple[Word, ...] | None = None
        self.status: Status | None = None  # as long as it is not done
        self.may_split = whole  # if it loops: not when somebody has got tokens of it
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._content = bytearray()

    def add(self, token: int, probability: float, content: bytes) -> None:
        """Takes the next token."""
        self._content += content
        self.tokens.append(Token(token, self._decoder.decode(content), probability))

    def end_with(self, status: Status) -> None:
        """No more tokens come."""
        self.status = status
        self.samples = None

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
        )

    def halves(self) -> list[Stretch]:
        """The same audio cut at the quietest place of its middle half; nothing where that is too short."""
        samples = self.samples
        if samples is None or len(samples) < 4 * _SHORTEST_HALF:
            return []
        cut = quietest(samples, len(samples) // 4, len(samples) - len(samples) // 4)
        return [
            Stretch(self.start, samples[:cut], whole=False),
            Stretch(self.start + cut, samples[cut:], whole=False),
        ]


class Recording:
    """A recording on its way to a transcript: its stretches, and what is done of them."""

    def __init__(self) -> None:
        self.n_samples = 0  # of all its audio so far
        self.stretches: list[Stretch] = []  # in order
        self.finals: list[Segment] = []  # of the first of them, which are done
        self.text = ""  # of these
        self.lost = 0.0  # seconds that were lost on the way here
        self.word_times: Kind | None = None
        self.waiting: collections.deque[Stretch] = collections.deque()  # that have not been started
        self._work: dict[str, float] = dict.fromkeys(_WORK, 0)

    @classmethod
    def of(cls, samples: audio.Samples) -> Recording:
        """A whole recording.

        Args:
            samples: Mono at 16 kHz, shape `[n]`. They are not copied.

        Raises:
            AudioError: There are none.
        """
        if not len(samples):
            raise AudioError("the audio is empty: it has 0 samples")
        recording = cls()
        recording.n_samples = len(samples)
        for start, end in plan(samples):
            recording.append(Cut(start, samples[start:end]))
        return recording

    def append(self, cut: Cut) -> None:
        """Another stretch is complete."""
        self.stretches.append(Stretch(cut.start, cut.samples))
        self.waiting.append(self.stretches[-1])

    @property
    def finished(self) -> bool:
        """True when every stretch is done."""
        return len(self.finals) == len(self.stretches)

    @property
    def seconds(self) -> float:
        """Its length so far."""
        return self.n_samples / audio.SAMPLE_RATE

    @property
    def seconds_done(self) -> float:
        """Its length but what is not done yet."""
        undone = self.stretches[len(self.finals) :]
        return self.seconds - sum(stretch.seconds for stretch in undone if stretch.status is None)

    def keep(self, stretch: Stretch, result: dict[str, Any]) -> None:
        """Takes the library's result for a stretch whose last token has been added.

        One that looped is put back in two parts, where that may help.
        """
        self._add(self._work, result)
        if result["looped"] and stretch.may_split and (halves := stretch.halves()):
            place = self.stretches.index(stretch, len(self.finals))
            self.stretches[place : place + 1] = halves
            self.waiting.extendleft(reversed(halves))
            return
        stretch.end_with("looped" if result["looped"] else "truncated" if result["truncated"] else "ok")
        while not self.finished and (first := self.stretches[len(self.finals)]).status:
            self.finals.append(first.segment(self.text))
            self.text += separator(self.text, first.text) + first.text

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
        native: The session.
        token_bytes: Gives a token's bytes.
        aligner: Gives times to words, if that is wanted; the session keeps the attention of its heads.
    """

    def __init__(
        self, native: _native.NativeSession, token_bytes: Callable[[int], bytes], aligner: Aligner | None = None
    ) -> None:
        self.native = native
        self._aligner = aligner
        self.running: dict[int, tuple[Recording, Stretch]] = {}  # by sequence
        self._token_bytes = token_bytes
        self._listening: int | None = None  # the sequence
        self._heard = 0  # samples that it was fed

    @property
    def full(self) -> bool:
        """True when no sequence is free."""
        return len(self.running) + (self._listening is not None) == self.native.sequences

    def reset(self) -> None:
        """Forgets everything, and a cancellation."""
        self.native.reset()
        self.running.clear()
        self._listening = None

    def start(self, recording: Recording) -> None:
        """Puts a recording's next stretch into a free sequence."""
        stretch = recording.waiting[0]
        sequence = self._free()
        self._end(sequence, stretch, 0)
        recording.waiting.popleft()
        self.running[sequence] = recording, stretch

    def listen(self, samples: audio.Samples) -> None:
        """Takes the stretch that goes on, from its beginning: what has not been heard yet is worked on at once."""
        if self._listening is None:
            self._listening, self._heard = self._free(), 0
        samples = samples[:LONGEST]
        if len(samples) > self._heard:
            self.native.feed(samples[self._heard :], self._listening)
            self._heard = len(samples)

    def stop_listening(self, recording: Recording) -> None:
        """The recording's last stretch is the one that was listened to."""
        sequence, self._listening = self._listening, None
        if sequence is not None:
            stretch = recording.waiting[-1]
            self._end(sequence, stretch, self._heard)
            recording.waiting.pop()
            self.running[sequence] = recording, stretch

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
        while len(self.running) < width and not self.full and recording.waiting:
            self.start(recording)
        return self.step()

    def step(self) -> bool:
        """One more token of every stretch that is being decoded. False when there is none."""
        sequences = list(self.running)
        for sequence, step in zip(sequences, self.native.next_of(sequences) if sequences else (), strict=True):
            recording, stretch = self.running[sequence]
            if step is not None:
                stretch.add(*step, self._token_bytes(step[0]))
            else:
                self._align(sequence)
                recording.keep(stretch, self.native.result(sequence))
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

    def _end(self, sequence: int, stretch: Stretch, heard: int) -> None:
        """Gives a sequence what it has not heard of a stretch."""
        samples = audio.NOTHING if stretch.samples is None else stretch.samples
        if len(samples) > heard:
            self.native.feed(samples[heard:], sequence)
        self.native.end(sequence, len(samples))

"""When the words of a known text were said: a model that is made for that reads audio and text together.

It has two places behind each word, at which it tells when the word begins and ends. What counts as a word, and how
times that go back are mended, is as the model's makers have it (Qwen3ASRProcessor of the transformers library,
`split_words_for_alignment` and `decode_forced_alignment`).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import importlib
import itertools
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pycrispasr.audio import SAMPLE_RATE, Samples
from pycrispasr.decoding.engine import Engine
from pycrispasr.errors import AudioError, UnsupportedOperationError, UsageError
from pycrispasr.results.segment import Segment, Token, Word
from pycrispasr.results.transcript import Timings, Transcript
from pycrispasr.runtimes import native
from pycrispasr.text import join

_PLACE = -1  # among tokens: the time there is asked for
_IDEOGRAPHS = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_OPENING = ("Ps", "Pi")  # categories of marks that belong to the word behind them
_JAPANESE, _KOREAN = "ja", "ko"
_SLACK = SAMPLE_RATE // 10  # samples that a recording may be shorter than its transcript says


class Unit(NamedTuple):
    """A word of a text.

    Attributes:
        text: As it stands there, with its punctuation, without whitespace around it.
        spoken: Its letters and numbers, which the model reads; "" where it has none.
    """

    text: str
    spoken: str


class Span(NamedTuple):
    """When something was said.

    Attributes:
        start: Seconds from the beginning of the audio.
        end: Seconds, not before `start`.
        probability: The smaller one of what the model gave its two times.
    """

    start: float
    end: float
    probability: float


def split(text: str, language: str | None = None) -> list[Unit]:
    """The words of a text. Together they are all of it but whitespace.

    Spaces divide words, and each Chinese character is one. In Korean only spaces count. In Japanese the package
    `nagisa` finds them, as the makers have it.

    Args:
        text: Of any length.
        language: Its code; None where it is not known: then neither "ko" nor "ja".

    Raises:
        UnsupportedOperationError: It is Japanese, and `nagisa` is not installed.
    """
    if language == _JAPANESE:
        return _with_marks(text, _japanese(text))
    return _with_marks(text, list(_cores(text, alone=_is_ideograph if language != _KOREAN else lambda _: False)))


def check_language(language: str | None) -> None:
    """Makes sure that the words of a language can be told.

    Raises:
        UnsupportedOperationError: It is Japanese, and `nagisa` is not installed.
    """
    if language == _JAPANESE:
        _nagisa()


def spoken(text: str) -> str:
    """The letters, numbers and apostrophes of a word."""
    return "".join(filter(_is_spoken, text))


def mended(times: Sequence[int]) -> list[int]:
    """Times in order, of times some of which may go back.

    The longest subsequence that never goes back is kept. Of what lies between two of its members, one or two take the
    time of the nearer one, and more of them are spread evenly.

    Args:
        times: Whole numbers, at least 0.
    """
    kept = _longest_ascending(times)
    found = list(times)
    for before, behind in itertools.pairwise([-1, *kept, len(times)]):
        if not (count := behind - before - 1):
            continue
        left, right = times[before if before >= 0 else behind], times[behind if behind < len(times) else before]
        for i in range(count):
            if count <= 2:
                found[before + 1 + i] = left if i + 1 <= count - i else right
            else:
                found[before + 1 + i] = int(left + (right - left) / (count + 1) * (i + 1))
    return found


def _longest_ascending(values: Sequence[int]) -> list[int]:
    """The places of a longest subsequence that never goes back; of several the one whose last member comes first."""
    # By its length, the places at which such a one can end: their values fall. Negated for bisect, which wants them
    # to rise.
    ends: list[list[int]] = []
    places: list[list[int]] = []
    lowest: list[int] = []  # the last, smallest value of each length
    before = [-1] * len(values)
    for place, value in enumerate(values):
        length = bisect.bisect_right(lowest, value)
        if length:
            first = bisect.bisect_left(ends[length - 1], -value)
            before[place] = places[length - 1][first]
        if length == len(lowest):
            ends.append([])
            places.append([])
            lowest.append(value)
        ends[length].append(-value)
        places[length].append(place)
        lowest[length] = value
    found = []
    place = places[-1][0] if places else -1
    while place >= 0:
        found.append(place)
        place = before[place]
    return found[::-1]


class ForcedAligner:
    """Gives times to words, by a model of its own.

    Args:
        engine: Of that model.
        model: That model.
        bin_ms: Milliseconds of its bins of time.
    """

    def __init__(self, engine: Engine, model: native.NativeModel, bin_ms: int) -> None:
        self._engine, self._model, self._bin_ms = engine, model, bin_ms

    def spans(self, samples: Samples, units: Sequence[Unit]) -> tuple[list[Span], dict[str, Any]]:
        """When each word was said, and what the work took, by the names in the library's result.

        A word without letters or numbers was said when the one before it ended.

        Args:
            samples: Mono at 16 kHz, `[n]`.
            units: Of the text that they say.

        Raises:
            AudioError: Audio and text are too long for one pass, or there is no audio.
        """
        tokens: list[int] = []
        for unit in units:
            if unit.spoken:
                text = unicodedata.normalize("NFC", unit.spoken)
                tokens += [*self._model.tokenize(text.encode("utf-8", "replace")), _PLACE, _PLACE]
        places, result = self._engine.align(samples, tokens) if tokens else ([], {})
        whole = len(samples) / SAMPLE_RATE
        times = [min(time / 1000, whole) for time in mended([place * self._bin_ms for place, _ in places])]
        found: list[Span] = []
        k, now = 0, 0.0
        for unit in units:
            if unit.spoken:
                start, now = times[k : k + 2]
                found.append(Span(start, now, min(places[k][1], places[k + 1][1])))
                k += 2
            else:
                found.append(Span(now, now, found[-1].probability if found else 1.0))
        return found, result

    def align(
        self, tokens: Sequence[Token], text: str, samples: Samples, first: int, language: str | None
    ) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
        """The tokens of a segment with their times, and the words that they make.

        Args:
            tokens: All that were given; none where they are not known. Those of another text are left as they are.
            text: What was said.
            samples: The segment, mono at 16 kHz, `[n]`.
            first: Where it begins, in samples from the beginning of the audio.
            language: Code of the text's language, as far as it is known.

        Raises:
            UnsupportedOperationError: It is Japanese, and `nagisa` is not installed.
            AudioError: Audio and text are too long for one pass.
        """
        units = split(text, language)
        spans, _ = self.spans(samples, units) if units else ([], {})
        begin, stop = first / SAMPLE_RATE, (first + len(samples)) / SAMPLE_RATE

        def absolute(seconds: float) -> float:
            return min(max(round(begin + seconds, 3), begin), stop)

        moved = [Span(absolute(span.start), absolute(span.end), span.probability) for span in spans]
        if "".join("".join(token.text for token in tokens).split()) != "".join(text.split()):
            return tuple(tokens), timed((), units, moved, begin)[1]
        return timed(tokens, units, moved, begin)


def timed(
    tokens: Sequence[Token], units: Sequence[Unit], spans: Sequence[Span], begin: float
) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
    """Tokens with times and words with probabilities, of words whose times are known.

    Characters share their word's time evenly. A token without any is said when the one before it ends.

    Args:
        tokens: Which say these words; none where they are not known.
        units: The words.
        spans: Their times.
        begin: When the first token is said, where no word is.
    """
    edges: list[tuple[float, float]] = []  # when each character is said
    owners: list[int] = []  # whose it is
    for place, (unit, span) in enumerate(zip(units, spans, strict=True)):
        count = len("".join(unit.text.split()))
        step = (span.end - span.start) / max(count, 1)
        edges += [
            (span.start + k * step, span.end if k == count - 1 else span.start + (k + 1) * step) for k in range(count)
        ]
        owners += [place] * count
    sure = [span.probability for span in spans] if not tokens else [1.0] * len(spans)
    last = spans[-1].end if spans else begin

    def rounded(seconds: float) -> float:
        return min(max(round(seconds, 3), begin), last)

    found, at, now = [], 0, begin
    for token in tokens:
        count = len("".join(token.text.split()))
        mine = edges[at : at + count]
        start, end = (mine[0][0], mine[-1][1]) if mine else (now, now)
        for place in set(owners[at : at + max(count, 1)]):  # one without text begins a character of the next one
            sure[place] = min(sure[place], token.probability)
        found.append(dataclasses.replace(token, start=rounded(start), end=rounded(end)))
        at, now = at + count, end
    words = (
        Word(unit.text, span.start, span.end, probability)
        for unit, span, probability in zip(units, spans, sure, strict=True)
    )
    return tuple(found), tuple(words)


_Core = tuple[int, int, str]  # a word's first character and the one behind its last, and what is spoken


def _cores(text: str, *, alone: Callable[[str], bool]) -> Iterator[_Core]:
    """Words divided by spaces, from their first to their last spoken character; some characters are words alone."""
    begun: int | None = None
    end = 0
    letters = ""
    for place, character in enumerate(f"{text} "):
        is_alone = alone(character)
        if begun is not None and (is_alone or character.isspace()):
            yield begun, end, letters
            begun, letters = None, ""
        if is_alone:
            yield place, place + 1, character
        elif not character.isspace() and _is_spoken(character):
            begun, end, letters = place if begun is None else begun, place + 1, letters + character


def _japanese(text: str) -> list[_Core]:
    """As `nagisa` finds them, which looks at characters in their plain form (NFKC)."""
    owners: list[tuple[int, int]] = []  # for each plain character, where what it stands for begins and ends
    for begin, end in _plain_forms(text):
        owners += [(begin, end)] * len("".join(unicodedata.normalize("NFKC", text[begin:end]).split()))
    cores: list[_Core] = []
    at = 0
    for word in _nagisa().tagging(text).words:
        mine = owners[at : at + len("".join(word.split()))]
        at += len(mine)
        if not mine or not (letters := spoken(word)):
            continue
        begin, end = mine[0][0], mine[-1][1]
        if cores and begin < cores[-1][1]:  # one character of the text, such as a ligature, is in two words
            begin = cores[-1][1]
            if begin >= end:
                cores[-1] = (*cores[-1][:2], cores[-1][2] + letters)
                continue
        cores.append((begin, end, letters))
    return cores


def _plain_forms(text: str) -> Iterator[tuple[int, int]]:
    """Where characters begin and end that have a plain form (NFKC) of their own: marks go with what they stand on."""
    begin = 0
    for place in range(1, len(text) + 1):
        rest = text[place : place + 1]
        alone = len(unicodedata.normalize("NFKC", text[begin:place])) + len(unicodedata.normalize("NFKC", rest))
        if not rest or len(unicodedata.normalize("NFKC", text[begin : place + 1])) >= alone:
            yield begin, place
            begin = place


def _nagisa() -> Any:
    try:
        return importlib.import_module("nagisa")
    except ImportError:
        raise UnsupportedOperationError(
            "language='ja': Japanese is written without spaces, and its words are found by a package that is not "
            "installed: pip install nagisa, or pass the text as a list of words"
        ) from None


def _with_marks(text: str, cores: Sequence[_Core]) -> list[Unit]:
    """Words with the punctuation that stands beside them: what opens something goes with the word behind it."""
    if not cores:
        return [Unit(text.strip(), "")] if text.strip() else []
    cuts = [0]
    for (_, end, _), (begin, _, _) in itertools.pairwise(cores):
        gap = text[end:begin]
        own = max((place + 1 for place, character in enumerate(gap) if character.isspace()), default=len(gap))
        while own and (gap[own - 1].isspace() or unicodedata.category(gap[own - 1]) in _OPENING):
            own -= 1
        cuts.append(end + own)
    cuts.append(len(text))
    return [
        Unit(text[begin:end].strip(), letters)
        for (begin, end), (_, _, letters) in zip(itertools.pairwise(cuts), cores, strict=True)
    ]


def _is_ideograph(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _IDEOGRAPHS)


def _is_spoken(character: str) -> bool:
    return character == "'" or unicodedata.category(character)[0] in "LN" or _is_ideograph(character)


def align_text(aligner: ForcedAligner, samples: Samples, text: str | Sequence[str], language: str | None) -> Transcript:
    """A transcript of a text that is known: a segment for each of its lines.

    Args:
        aligner: Tells when words were said.
        samples: The recording, mono at 16 kHz, `[n]`.
        text: What is said in it; or its words.
        language: Its code, as far as it is known.

    Raises:
        UsageError: The text has no words.
        UnsupportedOperationError: It is Japanese, and `nagisa` is not installed.
        AudioError: Audio and text are too long for one pass.
    """
    began = time.perf_counter()
    if isinstance(text, str):
        lines = [(line.strip(), split(line, language)) for line in text.splitlines() if line.strip()]
    else:
        units = [Unit(word.strip(), spoken(word)) for word in text if word.strip()]
        lines = [(functools.reduce(join, (unit.text for unit in units), ""), units)]
    every = [unit for _, units in lines for unit in units]
    if not any(unit.spoken for unit in every):
        raise UsageError(f"the text {text!r:.40} has no words: pass what is said in the recording")
    spans, result = aligner.spans(samples, every)
    _, words = timed((), every, [Span(round(a, 3), round(b, 3), p) for a, b, p in spans], 0.0)
    segments: list[Segment] = []
    place = 0
    for line, units in lines:
        own = words[place : place + len(units)]
        place += len(units)
        segments.append(Segment(own[0].start, own[-1].end, line, (), "ok", own, language=language))
    return Transcript(
        text=functools.reduce(join, (segment.text for segment in segments), ""),
        segments=tuple(segments),
        duration=len(samples) / SAMPLE_RATE,
        language=language,
        complete=True,
        timings=Timings(
            **{name: result[name] for name in ("log_mel", "encoder", "prefill")},
            prompt_tokens=result["n_prompt_tokens"],
            total=time.perf_counter() - began,
        ),
        word_times="aligner",
    )


def align_transcript(
    aligner: ForcedAligner, samples: Samples, transcript: Transcript, language: str | None
) -> Transcript:
    """The same transcript with the times of its words and tokens, segment by segment.

    Args:
        aligner: Tells when words were said.
        samples: The recording, mono at 16 kHz, `[n]`.
        transcript: Whose segments say where in it their text was said.
        language: Code of the text's language; None: as each segment tells it.

    Returns:
        Segments that cannot be aligned have no words, and `warnings` say why.

    Raises:
        UnsupportedOperationError: It is Japanese, and `nagisa` is not installed.
        AudioError: A segment lies outside the recording, or none can be aligned.
    """
    segments: list[Segment] = []
    failures: list[str] = []
    for segment in transcript.segments:
        first, end = (round(seconds * SAMPLE_RATE) for seconds in (segment.start, segment.end))
        if end > len(samples) + _SLACK:
            raise AudioError(
                f"a segment ends at {segment.end:.2f} s, and the recording at {len(samples) / SAMPLE_RATE:.2f} s: "
                "the transcript is one of another recording"
            )
        tokens, words = segment.tokens, None
        try:
            tokens, words = aligner.align(
                segment.tokens, segment.text, samples[first:end], first, language or segment.language
            )
        except AudioError as error:
            failures.append(no_times(segment.start, error))
            if len(failures) == len(transcript.segments):
                raise
        segments.append(dataclasses.replace(segment, tokens=tokens, words=words))
    return dataclasses.replace(
        transcript,
        text=functools.reduce(join, (segment.text for segment in segments), ""),
        segments=tuple(segments),
        warnings=(*transcript.warnings, *failures),
        word_times="aligner",
    )


def no_times(start: float, reason: Exception) -> str:
    """A sentence about a segment that cannot be aligned."""
    return f"the segment at {start:.1f} s has no word times: {reason}"

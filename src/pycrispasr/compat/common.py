"""What both shapes share: models' names, options that mean nothing here, and a transcription on its way."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import re
import sys
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.audio import Samples
from pycrispasr.compat.languages import by_any_name, whisper_code
from pycrispasr.errors import UnsupportedOperationError, UsageError
from pycrispasr.model import Model, devices
from pycrispasr.models import hub
from pycrispasr.options import DecodingOptions, JobKeywords, Precision, Vad
from pycrispasr.results.segment import Segment
from pycrispasr.text import is_wide, pieces

MODEL = hub.DEFAULT
"""What stands for Whisper's models."""

BUNDLED = "pycrispasr/tiny"
"""The small model in this package, whose own name, "tiny", is that of a Whisper model."""

WHISPER_MODELS = (
    "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large", "large-v1", "large-v2",
    "large-v3", "large-v3-turbo", "turbo", "distil-small.en", "distil-medium.en", "distil-large-v2", "distil-large-v3",
    "distil-large-v3.5",
)  # fmt: skip
_WHISPER_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]*whisper[\w.-]*|distil-whisper/[\w.-]+", re.IGNORECASE)

# What may be named to a model that takes no language. The makers' card says English; its vocabulary has Chinese too.
_SCRIPTS = {"en": "en", "english": "en", "zh": "zh", "chinese": "zh", "mandarin": "zh"}

PREPENDED, APPENDED = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"
"""Marks that openai-whisper and faster-whisper join to the word behind and before them."""

_GREEDY = "the most probable token is taken at every step"
_NO_PROMPT = "this model takes no text beside the audio"
_NO_CARRY = "no text is carried over from the segment before"
_ONE_LANGUAGE = "a model names one language, with no probability"
_LOOPS = "loops are stopped while they happen"

# Options with the values that change nothing: others' defaults, and what is done here anyway. Others get a warning.
_HARMLESS: dict[str, tuple[tuple[object, ...], str]] = {
    "beam_size": ((5, 1, None), _GREEDY),
    "best_of": ((5, 1, None), _GREEDY),
    "patience": ((1, None), _GREEDY),
    "length_penalty": ((1, None), _GREEDY),
    "repetition_penalty": ((1,), _LOOPS),
    "no_repeat_ngram_size": ((0,), _LOOPS),
    "temperature": ((0,), _GREEDY),
    "compression_ratio_threshold": ((2.4, None), _LOOPS),
    "log_prob_threshold": ((-1, None), _GREEDY),
    "logprob_threshold": ((-1, None), _GREEDY),
    "no_speech_threshold": ((0.6, None), "this model tells no probability of silence"),
    "condition_on_previous_text": ((True, False), _NO_CARRY),
    "prompt_reset_on_temperature": ((0.5,), _NO_CARRY),
    "initial_prompt": ((None, "", ()), _NO_PROMPT),
    "carry_initial_prompt": ((False,), _NO_PROMPT),
    "prompt": ((None, "", ()), _NO_PROMPT),
    "hotwords": ((None, ""), _NO_PROMPT),
    "suppress_blank": ((True,), "no token is suppressed"),
    "suppress_tokens": (((-1,), "-1", None, (), ""), "no token is suppressed"),
    "without_timestamps": ((True, False), "this model writes no times"),
    "max_initial_timestamp": ((1, None), "this model writes no times"),
    "prepend_punctuations": ((PREPENDED,), "a word has its punctuation"),
    "append_punctuations": ((APPENDED,), "a word has its punctuation"),
    "hallucination_silence_threshold": ((None,), "a voice activity detector leaves silence out"),
    "multilingual": ((True, False), "a model that tells languages tells that of each segment"),
    "language_detection_threshold": ((0.5, None), _ONE_LANGUAGE),
    "language_detection_segments": ((1,), "the language is that of the text"),
    "chunk_length": ((30, None), "segments of at most 30 seconds end at pauses"),
    "log_progress": ((False,), "no progress is shown"),
    "fp16": ((True, False), "what is computed in follows from the model and the machine"),
}

# Options that say what to transcribe: a warning would not do.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "prefix": ((None, "", ()), "this model cannot be told how a text begins"),
    "clip_timestamps": (("0", (0,), None, ()), "pass the part of the samples that is meant"),
}

_HINTS = ("initial_prompt", "prompt", "hotwords")  # a context, for models that take one
_LANGUAGE_TOKENS = 32  # within which a model has named the language that it hears

OPTIONS = _HARMLESS | _REFUSED
"""All options of both packages that mean nothing here, with the values that are taken, and the reason."""


def open_model(
    name: str | os.PathLike[str],
    *,
    device: str,
    threads: int = 0,
    precision: Precision = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Model:
    """Opens a model by a name that a program for Whisper has, or by one of ours."""
    name, revision = model_name(name, revision)
    return Model(
        name,
        device=device,
        threads=threads or None,
        precision=precision,
        revision=revision,
        local_files_only=local_files_only,
    )


def model_name(name: str | os.PathLike[str], revision: str | None = None) -> tuple[str | os.PathLike[str], str | None]:
    """Our name of a model, and its revision; warns where another model stands for one of Whisper's."""
    if isinstance(name, str):
        if name in WHISPER_MODELS or (_WHISPER_REPOSITORY.fullmatch(name) and not os.path.exists(name)):
            warn(f"{name!r} is a model for Whisper: {MODEL!r} is used, another model, which is for English")
            if revision is not None:
                warn(f"revision={revision!r} has no effect: it is of another model")
            return MODEL, None
        if name == BUNDLED:
            return "tiny", revision
    return name, revision


def available_models() -> list[str]:
    """Names of models: ours, and Whisper's, which stand for "moss-transcribe"."""
    return [MODEL, BUNDLED, *WHISPER_MODELS]


def find_device(device: str, index: int = 0) -> str:
    """Our name for a device; the CPU's, with a warning, where there is no such one."""
    kind, _, number = device.partition(":")
    if kind in ("auto", "cpu"):
        return kind
    wanted = f"{kind}:{number or index}"
    if wanted in (one.name for one in devices()):
        return wanted
    warn(f"there is no device {wanted!r}: the CPU is used")
    return "cpu"


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a caller tells of a recording.

    Attributes:
        language: Whisper's code of the language, for results; None where it is to be found out.
        told: The same as the model is told it, by its own code; None for a model that takes none.
        context: What the audio may be about; None for a model that takes none.
    """

    language: str | None = None
    told: str | None = None
    context: str | None = None


def check(model: Model, options: Mapping[str, object], language: object = None, task: object = "transcribe") -> Hints:
    """Takes what the model can be told, refuses what cannot be honoured, and warns about what has no effect.

    Raises:
        UnsupportedOperationError: Another task is asked for, or another part of the audio; or another language than
            English or Chinese, and the model takes none.
        UsageError: The model takes languages, but not this one.
        TypeError: There is no such option.
    """
    if model.languages and language is not None and options.get("multilingual"):
        warn(f"language={language!r} has no effect: with multilingual=True that of each segment is found out")
        language = None
    code, told = (None, None) if language is None else _language(model, str(language))
    if task != "transcribe":
        raise UnsupportedOperationError(f"task={task!r}: this model writes down what is said, in its language")
    for name, value in options.items():
        harmless, why = OPTIONS.get(name) or (None, "")
        if harmless is None:
            raise TypeError(f"transcribe() got an unexpected keyword argument {name!r}")
        if model.takes_context and name in (*_HINTS, "carry_initial_prompt"):
            continue
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        if name == "temperature" and isinstance(value, tuple):
            value = value[0] if value else 0  # the others are for another try
        if value in harmless:
            continue
        if name in _REFUSED:
            raise UnsupportedOperationError(f"{name}={value!r}: {why}")
        warn(f"{name}={value!r} has no effect: {why}")
    texts = [_text(name, options.get(name)) for name in _HINTS] if model.takes_context else []
    return Hints(code, told, "\n".join(filter(None, texts)) or None)


def _language(model: Model, wanted: str) -> tuple[str, str | None]:
    """Whisper's code of a language, and the model's own, where it takes one."""
    plain = wanted.strip().lower()
    if model.languages:
        told = by_any_name(model.languages).get(plain)
        if told is None:
            known = ", ".join(languages(model))
            raise UsageError(f"language={wanted!r}: this model takes {known}, or their English names; or None")
        return whisper_code(told), told
    code = _SCRIPTS.get(plain)
    if code is None:
        raise UnsupportedOperationError(f"language={wanted!r}: this model is for English ('en'), as its makers say")
    if code != "en":
        warn(f"language={wanted!r}: this model is for English, as its makers say; it writes what it hears")
    return code, None


def _text(name: str, value: object) -> str:
    """A prompt or hotwords as text; "" for none, or for tokens, which would be another vocabulary's."""
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a str, not {value!r}")
    words = tuple(value)
    if not all(isinstance(word, str) for word in words):
        warn(f"{name}={words!r} has no effect: tokens are of Whisper's vocabulary, this model has another; pass text")
        return ""
    return ", ".join(words)


def languages(model: Model) -> list[str]:
    """Whisper's codes of the languages that a model takes; "en" for one that takes none."""
    return sorted(map(whisper_code, model.languages)) or ["en"]


def warn(message: str) -> None:
    """Warns the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pycrispasr."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def load(recording: Any) -> Samples:
    """The samples of a file, or of an array at 16 kHz.

    Raises:
        AudioError: The audio cannot be read.
    """
    is_array = hasattr(recording, "__array__")
    return audio.load(np.asarray(recording) if is_array else recording, sample_rate=16000 if is_array else None)


class Numbers(TypedDict):
    """Whisper's statistics of a segment."""

    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float


def numbers(segment: Segment) -> Numbers:
    """Whisper's statistics of a segment; this model has no probability of silence, so it is 0."""
    logs = [math.log(max(token.probability, 1e-10)) for token in segment.tokens]
    return {
        "tokens": [token.id for token in segment.tokens],
        "avg_logprob": sum(logs) / len(logs) if logs else 0.0,
        "compression_ratio": compression_ratio(segment.text),
        "no_speech_prob": 0.0,
        "temperature": 0.0,
    }


class Run:
    """A transcription on its way: an iterator of its segments that have text. Any thread may take the next one."""

    def __init__(
        self,
        model: Model,
        samples: Samples,
        *,
        vad: Vad,
        silence: float | None = None,
        max_new_tokens: int | None = None,
        word_timestamps: bool = False,
        batch: int | None = None,
        hints: Hints | None = None,
    ) -> None:
        hints = hints or Hints()
        options: JobKeywords = {
            "sample_rate": audio.SAMPLE_RATE, "vad": vad, "silence": silence, "max_new_tokens": max_new_tokens,
            "word_timestamps": word_timestamps, "language": hints.told, "context": hints.context,
        }  # fmt: skip
        if batch is not None:
            options["batch"] = batch
        DecodingOptions.of(options)  # an error now, not when the first segment is asked for
        self._lock = threading.RLock()
        self._names_language = bool(model.languages)
        self._first: Segment | None = None
        self._ahead: collections.deque[Segment] = collections.deque()
        # A generator that knew this object would keep it, and the session, until the garbage collector comes.
        self._rest = _with_text(_decoded(model, samples, options))

    def __iter__(self) -> Iterator[Segment]:
        return self

    def __next__(self) -> Segment:
        with self._lock:
            segment = self._ahead.popleft() if self._ahead else next(self._rest)
            if self._first is None:
                self._first = segment
            return segment

    def language(self) -> tuple[str | None, float]:
        """The language of the first text; makes that text, if need be.

        Returns:
            What the model says it is, and 1; or else "en" or "zh", and the share of words in its script. None and 0 for
            no text, or for one that a model which names languages gave none.
        """
        with self._lock:
            if self._first is None:
                with contextlib.suppress(StopIteration):
                    self._ahead.appendleft(next(self))
            if self._first is None:
                return None, 0.0
            if self._first.language is not None:
                return whisper_code(self._first.language), 1.0
            return (None, 0.0) if self._names_language else script(self._first.text)


def _with_text(segments: Iterator[Segment]) -> Iterator[Segment]:
    for segment in segments:
        if segment.status != "ok":
            _warn_of(segment)
        if segment.text:
            yield segment


def _warn_of(segment: Segment) -> None:
    warn(f"{segment.start:.2f}-{segment.end:.2f} s: {segment.status} {segment.error or ''}".rstrip())


def _decoded(model: Model, samples: Samples, options: JobKeywords) -> Iterator[Segment]:
    if model.runtime == "crispasr":  # which gives all segments at once, and one language for all
        transcript = model.transcribe(samples, **options)
        for segment in transcript.segments:
            yield dataclasses.replace(segment, language=segment.language or transcript.language)
    else:
        yield from model.segments(samples, **options)


def detect(model: Model, samples: Samples, *, vad: Vad, silence: float | None = None) -> dict[str, float]:
    """The languages of a recording, as `shares` gives them. A model that names them is not asked for the whole text."""
    if not model.languages:
        return shares(model, Run(model, samples, vad=vad, silence=silence))
    heard = list(
        model.segments(
            samples, sample_rate=audio.SAMPLE_RATE, vad=vad, silence=silence, max_new_tokens=_LANGUAGE_TOKENS
        )
    )
    for segment in heard:
        if segment.status == "failed":
            _warn_of(segment)
    return shares(model, heard)


def shares(model: Model, segments: Iterable[Segment]) -> dict[str, float]:
    """Languages of segments by Whisper's codes, the one with the most first, and how much of all is in each.

    That is the share of the audio that the model says is in it; of the words in its script, for a model that names no
    language. Empty where nothing is said.
    """
    segments = list(segments)
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language is not None:
            code = whisper_code(segment.language)
            seconds[code] = seconds.get(code, 0.0) + segment.end - segment.start
    if seconds or model.languages:
        total = sum(seconds.values())
        return {code: seconds[code] / total for code in sorted(seconds, key=lambda code: -seconds[code])}
    written, share = script(" ".join(segment.text for segment in segments))
    return {} if written is None else {written: share, "en" if written == "zh" else "zh": 1 - share}


def probabilities(model: Model, found: Mapping[str, float]) -> dict[str, float]:
    """The shares of languages that were found, the one with the most first, and 0 for others that the model knows."""
    others = languages(model) if model.languages else ["en", "zh"]
    return {**found, **{code: 0.0 for code in others if code not in found}}


def pad_or_trim(array: npt.ArrayLike, length: int, axis: int) -> npt.NDArray[Any]:
    """An array cut, or filled with zeros, to a length along one axis."""
    content = np.asarray(array)
    size = content.shape[axis]
    if size > length:
        return content.take(range(length), axis=axis)
    widths = [(0, 0)] * content.ndim
    widths[axis] = 0, length - size
    return np.pad(content, widths)


def format_timestamp(seconds: float, always_include_hours: bool = False, decimal_marker: str = ".") -> str:
    """A time as "MM:SS.mmm", with "HH:" before it from an hour on.

    Args:
        seconds: At least 0.
        always_include_hours: Write the hours of shorter times, too.
        decimal_marker: Stands before the milliseconds.

    Raises:
        AssertionError: The time is negative, as both packages say it.
    """
    if seconds < 0:
        raise AssertionError("non-negative timestamp expected")
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    hours = f"{minutes // 60:02}:" if always_include_hours or minutes >= 60 else ""
    return f"{hours}{minutes % 60:02}:{rest // 1000:02}{decimal_marker}{rest % 1000:03}"


def compression_ratio(text: str) -> float:
    """Bytes of a text for each byte of it compressed."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def last_time(segments: Sequence[dict[str, Any]]) -> float | None:
    """When the last word of segments ends, or else the last segment; None without segments."""
    for segment in reversed(segments):
        if segment.get("words"):
            return float(segment["words"][-1]["end"])
    return float(segments[-1]["end"]) if segments else None


def script(text: str) -> tuple[str | None, float]:
    """The language of a text in English or Chinese, by its characters, and the share of words in it; None for none."""
    words = [piece.strip() for piece in pieces(text) if any(map(str.isalnum, piece))]
    if not words:
        return None, 0.0
    chinese = sum(is_wide(word[0]) for word in words) / len(words)
    return ("zh", chinese) if chinese > 0.5 else ("en", 1 - chinese)

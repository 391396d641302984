"""The options of a transcription: each is declared, documented and checked here, and nowhere else.

Public functions take them as keywords (`**options: Unpack[...]`, which type checkers and editors show one by one), make
frozen objects of them, and pass these on. `takes` writes the keywords into a function's signature and docstring.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from pycrispasr.errors import AudioError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from pycrispasr.model import Model

Vad = Literal["auto", "on", "off"]
Runtime = Literal["auto", "pycrispasr", "crispasr"]
Precision = Literal["auto", "f32", "bf16"]
Allow = Literal["all", "public", "data"]

MAX_NEW_TOKENS = 512
"""Tokens after which the text of a segment is cut unless told otherwise: more than anybody says in 30 seconds."""

BATCH = 4
"""Segments that are decoded at once unless told otherwise."""

_SILENCE = {"auto": 1.0, "on": 0.8, "off": 0.8}  # seconds
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Options:
    """Made of keywords, of which those that are None stand for the default."""

    __slots__ = ()

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Self:
        """Takes its own out of many keywords."""
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: keywords[name] for name in names if keywords.get(name) is not None})

    def keywords(self) -> dict[str, Any]:
        """What `of` makes the same again of."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadingOptions(_Options):
    """How a model is opened.

    Attributes:
        device: The name of one of `devices()`; "cuda", "metal" or "vulkan" for the first of these; or "auto": a
            graphics card where there is one, else the CPU. Where the card does not start, or has too little memory for
            the weights, "auto" goes on to the CPU with a warning in the log. With a `precision`, "auto" is the CPU.
        threads: Threads for computing on the CPU. None: the number of physical cores that this process may use, its
            container's quota counted, and no slow cores beside fast ones. The result does not depend on it.
        precision: What products with the model's matrices are computed in. "f32": nothing is rounded, whatever the
            file's types. "bf16": factors are rounded to BF16, in which the model was trained, and sums are kept in
            F32. "auto": the fastest that leaves texts as they are, BF16 where the processor has fast instructions for
            it, else F32. Quantised matrices are multiplied in 8-bit integers where that is faster, and for single
            tokens always, unless "f32" is asked for. A GPU takes "auto" only.
        runtime: What computes. "pycrispasr": this package's own library, which runs MOSS-Transcribe and Qwen3-ASR.
            "crispasr": CrispASR's library (extra `[crispasr]`), which runs models of many architectures, but can only
            `transcribe` whole recordings. "auto": the former where the file is of its architecture, else the latter.
        sequences: How many segments are decoded at once at the most, for all who use the model together; others wait
            for their turn. None: as many as half of the free memory has room for, and at most 16.
        revision: A branch, tag or commit of the model's repository on the hub; by default its newest state at the first
            use.
        local_files_only: Never use the network, not even for a model that is not here yet.
        mmap: Map the model's file, so that loading takes no time, and all processes share one copy of it; the file must
            not be changed while the model is open. False: read it into memory of this process's own, which takes as
            long as reading does, and nothing that happens to the file matters from then on.
        isolate: Have CrispASR's library in a process of its own, so that a file or a sound that makes it end its
            process is an error, and it can be cancelled. None: yes, wherever this program can start another Python.
            False: in this process, for files that you trust. Our own library needs no such thing.
    """

    device: str = "auto"
    threads: int | None = None
    precision: Precision = "auto"
    runtime: Runtime = "auto"
    sequences: int | None = None
    revision: str | None = None
    local_files_only: bool = False
    mmap: bool = True
    isolate: bool | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_count("threads", self.threads)
        if self.sequences is not None:
            check_count("sequences", self.sequences)
        check_choice(f"there is no runtime {self.runtime!r}", self.runtime, Runtime)
        check_choice(f"there is no precision {self.precision!r}", self.precision, Precision)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one recording may take. `math.inf` stands for no limit.

    Arrays have no limit, nor has what is heard while it comes (`audio.listen`, sessions).

    Attributes:
        seconds: Of sound. A longer recording is refused where its header tells so; else it ends there with an error,
            and what was heard until then is kept.
        gap_seconds: Of silence that stands for sound that is missing in one place. Where a file's clock jumps further,
            what follows is taken to follow at once, with a warning.
        download_bytes: From a web address, a pipe, or another file object that cannot seek.
        download_seconds: From a web address: from looking up its host to the last byte.
    """

    seconds: float = 100_000.0
    gap_seconds: float = 3600.0
    download_bytes: float = 20e9
    download_seconds: float = 7200.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise UsageError(f"Limits.{field.name} cannot be {value!r}: it must be a positive number, or math.inf")

    def exceeded(self, name: str, what: str) -> AudioError:
        """The error for a recording that is beyond a limit.

        Args:
            name: The limit.
            what: What the recording does, as a sentence goes on behind its name.
        """
        unit = name.rpartition("_")[2]
        option = {"seconds": "--max-seconds", "download_bytes": "--max-download"}.get(name, "--max-download-seconds")
        return AudioError(
            f"{what} more than the limit of {getattr(self, name):.15g} {unit}: to allow more, "
            f"pass limits=audio.Limits({name}=...), on the command line {option}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions(_Options):
    """What of a recording is heard, and how it is divided into segments.

    What concerns the audio itself (its rate, its channels) is checked where it is opened.

    Attributes:
        sample_rate: Samples per second of an array. A file tells its own.
        channel: Which channel of several is heard, from 0. None: their mean.
        track: Which sound track of a file with several is heard, from 0. None: the first one, with a warning.
        vad: How a long recording is divided. "on": a voice activity detector (Silero's) finds speech, and what lies
            between is left out. "off": all audio is heard, cut where it is quietest. "auto": as "on" for more than 30
            seconds, but only what is quiet too is left out, so that no music or noise is passed over in which somebody
            might speak.
        silence: Seconds without speech that end a segment, and are left out. None: 0.8 with "on", 1.0 with "auto".
        allow: What a recording may be. "all": anything. "data": arrays, bytes and file objects; a name, which could
            mean any file, device or address that this process can reach, is refused. "public": these, and web
            addresses whose host is public.
        limits: How long a recording may be, and how much of it is downloaded: see `audio.Limits`.
    """

    sample_rate: float | None = None
    channel: int | None = None
    track: int | None = None
    vad: Vad = "auto"
    silence: float | None = None
    allow: Allow = "all"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        check_choice(f"vad cannot be {self.vad!r}", self.vad, Vad)
        check_source(self.allow, self.limits)
        if self.silence is not None:
            check_seconds("silence", self.silence)

    @property
    def silence_seconds(self) -> float:
        """`silence`, or what it is by default."""
        return _SILENCE[self.vad] if self.silence is None else self.silence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions(_Options):
    """How segments become text.

    Attributes:
        max_new_tokens: The text of a segment is cut after so many tokens; its status is "truncated" then. None: 512,
            which is more than anybody says in 30 seconds; a segment that reaches it is tried again in two parts. For
            a model that hears whole recordings 12 for each second.
        batch: How many segments are decoded at once. More take more memory; beyond 4 they save little more time. The
            text does not depend on it.
        word_timestamps: Tell when each word was said: `Segment.words`, and `Token.start` and `Token.end`. True: from
            what the model itself attended to. "aligner": from a model that is made to tell times, which hears each
            segment once more, and takes the text of any model.
        aligner: The model for "aligner", or for True instead of the model itself: what `Model` takes, or one that is
            open. None: "qwen3-aligner". It is opened at the first use, on the same device, and closed with the model.
        language: The language that is spoken, one of `Model.languages` or its English name. None: the model finds out,
            for each segment. Not every model takes one.
        context: What the audio may be about: names, terms, or any text, or a list of these. Not every model takes it.
        speakers: Names of the speakers, in the order in which they are first heard, for `Segment.speaker`. None, and
            for those beyond: "Speaker 1" and so on. Only for models that tell speakers apart.
    """

    max_new_tokens: int | None = None
    batch: int = BATCH
    word_timestamps: bool | Literal["aligner"] = False
    aligner: str | os.PathLike[str] | Model | None = None
    language: str | None = None
    context: str | Sequence[str] | None = None
    speakers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.speakers is not None:
            if isinstance(self.speakers, str) or not all(isinstance(name, str) for name in self.speakers):
                raise TypeError(f"speakers must be a list of str, not {self.speakers!r}")
            object.__setattr__(self, "speakers", tuple(self.speakers))
        if self.word_timestamps not in (True, False, "aligner"):
            raise UsageError(f"word_timestamps cannot be {self.word_timestamps!r}: choose True, False or 'aligner'")
        if self.aligner is not None and not self.word_timestamps:
            raise UsageError(f"aligner={self.aligner!r} is for word times: pass word_timestamps='aligner' too")
        if self.language is not None and not isinstance(self.language, str):
            raise TypeError(f"language must be a str, not {self.language!r}")
        if self.context is not None:
            words = [self.context] if isinstance(self.context, str) else list(self.context)
            if not all(isinstance(word, str) for word in words):
                raise TypeError(f"context must be a str or a list of str, not {self.context!r}")
            if any("\0" in word or re.search("[\ud800-\udfff]", word) for word in words):
                raise UsageError("context cannot have NUL characters or lone surrogates in it: leave them out")
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        check_count("batch", self.batch)

    @property
    def by_aligner(self) -> bool:
        """Words get their times from a model of its own."""
        return self.word_timestamps == "aligner" or self.aligner is not None

    @property
    def context_text(self) -> str | None:
        """`context` as one text; None for none."""
        words = [self.context] if isinstance(self.context, str) else self.context or ()
        return unicodedata.normalize("NFC", ", ".join(words)) or None

    @property
    def token_limit(self) -> int:
        """`max_new_tokens`, or what it is by default."""
        return MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens


class OwnLoadingKeywords(TypedDict, total=False):
    """Those of `LoadingOptions` that our runtime knows."""

    device: str
    threads: int | None
    precision: Precision
    sequences: int | None
    revision: str | None
    local_files_only: bool
    mmap: bool


class LoadingKeywords(OwnLoadingKeywords, total=False):
    """Those of `LoadingOptions`."""

    runtime: Runtime
    isolate: bool | None


class SegmentingKeywords(TypedDict, total=False):
    """Those of `ReadingOptions` that say where segments end."""

    vad: Vad
    silence: float | None


class FileKeywords(SegmentingKeywords, total=False):
    """Those of `ReadingOptions` that concern files."""

    channel: int | None
    track: int | None
    allow: Allow
    limits: Limits


class ReadingKeywords(FileKeywords, total=False):
    """Those of `ReadingOptions`."""

    sample_rate: float | None


class TextKeywords(TypedDict, total=False):
    """Those of `DecodingOptions` that change a text."""

    max_new_tokens: int | None
    language: str | None
    context: str | Sequence[str] | None


class DecodingKeywords(TextKeywords, total=False):
    """Those of `DecodingOptions`."""

    batch: int
    word_timestamps: bool | Literal["aligner"]
    aligner: str | os.PathLike[str] | Model | None
    speakers: Sequence[str] | None


class AlignKeywords(TypedDict, total=False):
    """Those of `ReadingOptions` that `Model.align` takes."""

    sample_rate: float | None
    channel: int | None
    track: int | None
    allow: Allow
    limits: Limits


class StreamKeywords(ReadingKeywords, TextKeywords, total=False):
    """What `Model.stream` takes."""


class JobKeywords(ReadingKeywords, DecodingKeywords, total=False):
    """What `Model.job` and most of what stands on it take."""


class TranscribeKeywords(LoadingKeywords, JobKeywords, total=False):
    """What `pycrispasr.transcribe` takes."""


class SessionKeywords(SegmentingKeywords, DecodingKeywords, total=False):
    """What `Model.session` takes."""


class WorkerKeywords(OwnLoadingKeywords, FileKeywords, DecodingKeywords, total=False):
    """What `pycrispasr.ray.Transcriber` takes."""


def takes(keywords: type, **defaults: object) -> Callable[[_Function], _Function]:
    """Writes options into the signature and the docstring of a function or class, which takes them as `**options`.

    Args:
        keywords: One of the typed dictionaries above: the options' names.
        **defaults: Of options whose default is another one here.
    """
    found = _declared()
    names = list(_names(keywords))

    def decorate(taker: _Function) -> _Function:
        function: Any = vars(taker)["__init__"] if isinstance(taker, type) else taker
        signature = inspect.signature(function)
        kept = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, found[name].default),
                annotation=found[name].annotation,
            )
            for name in names
        ]
        function.__signature__ = signature.replace(parameters=[*kept, *added])
        entry = re.search(r"^( *)\*\*options: .*(?:\n\1 +.*)*", taker.__doc__ or "", re.MULTILINE)
        if entry is not None:  # not with `python -OO`, which takes docstrings away
            lines = [entry[1] + line for name in names for line in found[name].lines]
            taker.__doc__ = (taker.__doc__ or "").replace(entry[0], "\n".join(lines))
        return taker

    return decorate


def check_names(function: str, keywords: Mapping[str, object], known: type) -> None:
    """As Python does for a function with these keywords.

    Raises:
        TypeError: There is a keyword that is none of its own.
    """
    names = _names(known)
    for name in keywords:
        if name not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def check_count(name: str, value: int) -> int:
    """A whole number of at least 1 that C takes as an int32_t.

    Raises:
        TypeError: It is no whole number.
        UsageError: It is below 1, or does not fit.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not -(2**31) <= value < 2**31:
        raise UsageError(f"{name} cannot be {value}: it is out of range")
    if value < 1:
        raise UsageError(f"{name} cannot be {value}: it must be at least 1")
    return value


def check_seconds(name: str, value: float) -> float:
    """A positive number of seconds.

    Raises:
        UsageError: It is none.
    """
    if not 0 < value < math.inf:
        raise UsageError(f"{name} cannot be {value}: it must be a positive number of seconds")
    return float(value)


def check_source(allow: Allow, limits: Limits) -> None:
    """What a recording may be, and may take.

    Raises:
        UsageError: There is no such `allow`.
        TypeError: `limits` are none.
    """
    check_choice(f"allow cannot be {allow!r}", allow, Allow)
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be audio.Limits(...), not {limits!r}")


def check_choice(refusal: str, value: str, choices: Any) -> None:
    """One of the values of a `Literal`.

    Raises:
        UsageError: It is none of them: the refusal, and what can be chosen.
    """
    values = choices.__args__
    if value not in values:
        *most, last = map(repr, values)
        raise UsageError(f"{refusal}: choose {', '.join(most)} or {last}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Declared:
    default: object
    annotation: str
    lines: list[str]  # of the documentation, without indentation


@functools.cache
def _declared() -> dict[str, _Declared]:
    """Every option, as its class declares and documents it."""
    found = {}
    for options in (LoadingOptions, ReadingOptions, DecodingOptions):
        entries = re.split(r"^(\w+): ", inspect.cleandoc(options.__doc__ or "").partition("Attributes:\n")[2]
                           .replace("\n    ", "\n").removeprefix("    "), flags=re.MULTILINE)  # fmt: skip
        texts = dict(zip(entries[1::2], entries[2::2], strict=True))
        for field in dataclasses.fields(options):
            lines = f"{field.name}: {texts.get(field.name, '').rstrip()}".splitlines()
            found[field.name] = _Declared(field.default, str(field.type), lines)
    return found


@functools.cache
def _names(keywords: type) -> dict[str, object]:
    """The names of a typed dictionary in order: of options first that are declared first."""
    own = keywords.__annotations__
    return {name: own[name] for name in _declared() if name in own}

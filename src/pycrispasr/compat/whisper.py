"""The shape of the package openai-whisper: `load_model(...).transcribe(...)["text"]`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from pycrispasr import audio as audio_module
from pycrispasr.audio import Samples
from pycrispasr.compat import common
from pycrispasr.errors import UnsupportedOperationError
from pycrispasr.formats import spaced_words
from pycrispasr.live_text import separator
from pycrispasr.result import Segment

__all__ = [
    "DecodingOptions",
    "DecodingResult",
    "Whisper",
    "available_models",
    "decode",
    "detect_language",
    "load_audio",
    "load_model",
    "log_mel_spectrogram",
    "pad_or_trim",
    "transcribe",
]

_LONGEST = round(audio_module.CHUNK_SECONDS * audio_module.SAMPLE_RATE)


class Whisper:
    """A model, as `load_model` gives it.

    Attributes:
        model: The `pycrispasr.Model`.
        device: The name of what it runs on.
        is_multilingual: True.
        dims: Its sizes: `dims.n_mels` is the only one.
    """

    def __init__(self, name: str | os.PathLike[str], device: str) -> None:
        self.model = common.open_model(name, device=device)
        is_ours = self.model.runtime == "pycrispasr"
        self.device = self.model.info.device if is_ours else device
        self.is_multilingual = True
        self.dims = Dimensions(self.model.info.n_mels if is_ours else 80)

    def transcribe(self, audio: Any, **options: Any) -> dict[str, Any]:
        """See `transcribe`."""
        return transcribe(self, audio, **options)

    def decode(self, mel: Mel, options: DecodingOptions | None = None, **more: Any) -> DecodingResult:
        """See `decode`."""
        return decode(self, mel, options, **more)

    def detect_language(self, mel: Mel) -> tuple[None, dict[str, float]]:
        """See `detect_language`."""
        return detect_language(self, mel)


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """Sizes of a model.

    Attributes:
        n_mels: Bins of its log-mel spectrogram.
    """

    n_mels: int


def available_models() -> list[str]:
    """Names that `load_model` takes: ours, and Whisper's, which stand for "moss-transcribe"."""
    return [common.MODEL, common.BUNDLED, *common.WHISPER_MODELS]


def load_model(
    name: str | os.PathLike[str],
    device: object = None,
    download_root: str | None = None,
    in_memory: bool = False,  # noqa: ARG001
) -> Whisper:
    """Opens a model.

    Args:
        name: A name that `pycrispasr.Model` takes; "pycrispasr/tiny" for its bundled model; or a Whisper model's name,
            such as "turbo" or "tiny", for which "moss-transcribe" is used, with a warning.
        device: "cpu", "cuda", a `torch.device`, or None for the best. Where there is no such device, the CPU is used,
            with a warning.
        download_root: Has no effect: models are in the Hugging Face cache, which HF_HOME moves.
        in_memory: The file is mapped, whatever is asked for.

    Raises:
        PycrispasrError: What `pycrispasr.Model` raises.
    """
    if download_root is not None:
        common.warn(f"download_root={download_root!r} has no effect: HF_HOME says where models are kept")
    return Whisper(name, "auto" if device is None else common.find_device(str(device)))


def load_audio(file: str | os.PathLike[str], sr: int = audio_module.SAMPLE_RATE) -> Samples:
    """The samples of a file, float32, mono, 16 kHz.

    Raises:
        AudioError: The file cannot be read.
        UnsupportedOperationError: Another rate is asked for.
    """
    if sr != audio_module.SAMPLE_RATE:
        raise UnsupportedOperationError(f"sr={sr}: this model hears 16000 samples a second")
    return common.load(file)


def transcribe(
    model: Whisper,
    audio: Any,
    *,
    verbose: bool | None = None,
    language: str | None = None,
    task: str = "transcribe",
    word_timestamps: bool = False,
    sample_len: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Transcribes a whole recording.

    Args:
        model: What `load_model` gave.
        audio: A path, or samples at 16 kHz.
        verbose: True prints segments as they are made.
        language: "en", "zh" or None, which all mean the same: this model hears by itself which it is.
        task: "transcribe".
        word_timestamps: Give each segment its words and their times.
        sample_len: Where the text of 30 seconds is cut.
        options: The others of openai-whisper. What they ask for cannot be done here, so that values other than their
            defaults warn or raise: `docs/drop-in.md` lists them.

    Returns:
        "text", "segments" (dictionaries with "id", "seek", "start", "end", "text", "tokens", "temperature",
        "avg_logprob", "compression_ratio", "no_speech_prob" and, where asked for, "words") and "language": what was
        asked for, else "en" or "zh" by the text's script, or None without text.

    Raises:
        AudioError: The audio cannot be read, or is too short.
        UnsupportedOperationError: Another language or task is asked for, or a part of the audio.
        TypeError: There is no such option.
    """
    common.check(options, language, task)
    run = common.Run(
        model.model, common.load(audio), vad="auto", max_new_tokens=sample_len, word_timestamps=word_timestamps
    )
    found = run.language()[0] if language is None else common.LANGUAGES[language.lower()]
    segments: list[dict[str, Any]] = []
    text = ""
    for segment in run:
        made = _segment(len(segments), segment, separator(text, segment.text))
        segments.append(made)
        text += made["text"]
        if verbose:
            print(f"[{_clock(segment.start)} --> {_clock(segment.end)}] {segment.text}", flush=True)
    return {"text": text, "segments": segments, "language": found}


def _segment(number: int, segment: Segment, space: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "seek": round(segment.start * 100),
        "start": segment.start,
        "end": segment.end,
        "text": space + segment.text,
        **common.numbers(segment),
    }
    if segment.words is not None:
        made["words"] = [
            {"word": word.text, "start": word.start, "end": word.end, "probability": word.probability}
            for word in spaced_words(segment)
        ]
        if made["words"]:
            made["words"][0]["word"] = space + made["words"][0]["word"]
    return made


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    hours = f"{minutes // 60:02}:" if minutes >= 60 else ""
    return f"{hours}{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def pad_or_trim(array: npt.ArrayLike, length: int = _LONGEST) -> Samples:
    """Samples cut, or filled with silence, to 30 seconds or another length."""
    samples = np.asarray(array, np.float32)[:length]
    return np.pad(samples, (0, length - len(samples)))


class Mel:
    """Audio on its way to `decode`: what `log_mel_spectrogram` gives. It has no numbers to look at."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._done: dict[tuple[Whisper, int | None], list[Segment]] = {}

    def to(self, *_: object, **__: object) -> Mel:
        """Itself: it is made where it is needed."""
        return self

    def heard(self, model: Whisper, sample_len: int | None = None) -> list[Segment]:
        """What a model hears in it, found once."""
        if (model, sample_len) not in self._done:
            run = common.Run(model.model, self.samples, vad="auto", max_new_tokens=sample_len)
            self._done[model, sample_len] = list(run)
        return self._done[model, sample_len]


def log_mel_spectrogram(audio: Any, n_mels: int = 80, padding: int = 0, device: object = None) -> Mel:  # noqa: ARG001
    """What `decode` and `detect_language` take for audio.

    Args:
        audio: A path, or samples at 16 kHz.
        n_mels: The model knows its own.
        padding: Is not needed.
        device: Is chosen with the model.

    Raises:
        AudioError: The audio cannot be read.
    """
    samples = common.load(audio)
    spoken = np.trim_zeros(samples, "b")  # this model needs no padding, and hears less well with it
    return Mel(spoken if spoken.size else samples)


def detect_language(model: Whisper, mel: Mel) -> tuple[None, dict[str, float]]:
    """None, and the share of the text that is in each language's script: this model tells no probabilities."""
    language, share = common.script(" ".join(segment.text for segment in mel.heard(model)))
    other = {"en": "zh", "zh": "en"}
    return None, {"en": 0.0, "zh": 0.0} if language is None else {language: share, other[language]: 1 - share}


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options for `decode`: those of `transcribe`."""

    task: str = "transcribe"
    language: str | None = None
    temperature: float = 0.0
    sample_len: int | None = None
    best_of: int | None = None
    beam_size: int | None = None
    patience: float | None = None
    length_penalty: float | None = None
    prompt: str | list[int] | None = None
    prefix: str | list[int] | None = None
    suppress_tokens: str | Iterable[int] | None = "-1"
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    fp16: bool = True


@dataclasses.dataclass(frozen=True)
class DecodingResult:
    """What `decode` gives.

    Attributes:
        language: As in `transcribe`.
        tokens: Indices in the model's vocabulary.
        text: All of it.
        avg_logprob: The mean logarithm of the tokens' probabilities.
        no_speech_prob: Always 0: this model tells no such probability.
        temperature: Always 0.
        compression_ratio: Bytes of the text for each byte of it compressed.
    """

    language: str | None
    tokens: list[int]
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    compression_ratio: float


def decode(model: Whisper, mel: Mel, options: DecodingOptions | None = None, **more: Any) -> DecodingResult:
    """Transcribes what `log_mel_spectrogram` gave.

    Args:
        model: What `load_model` gave.
        mel: What `log_mel_spectrogram` gave.
        options: As for `transcribe`.
        more: Take the place of some of them.

    Raises:
        AudioError: The audio is too short.
        UnsupportedOperationError: As for `transcribe`.
    """
    wanted = dataclasses.asdict(dataclasses.replace(options or DecodingOptions(), **more))
    language, task, limit = wanted.pop("language"), wanted.pop("task"), wanted.pop("sample_len")
    common.check(wanted, language, task)
    segments = mel.heard(model, limit)
    text = ""
    for segment in segments:
        text += separator(text, segment.text) + segment.text
    tokens = tuple(token for segment in segments for token in segment.tokens)
    found = common.script(text)[0] if language is None else common.LANGUAGES[language.lower()]
    end = segments[-1].end if segments else 0.0
    return DecodingResult(language=found, text=text, **common.numbers(Segment(0.0, end, text, tokens, "ok")))

"""The shape of the package faster-whisper: `WhisperModel(...).transcribe(...)` gives segments and info."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from pycrispasr import audio as audio_module
from pycrispasr.audio import Samples
from pycrispasr.compat import common
from pycrispasr.errors import UnsupportedOperationError
from pycrispasr.formats import spaced_words
from pycrispasr.live_text import separator
from pycrispasr.model import BATCH

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pycrispasr.model import Precision

__all__ = [
    "BatchedInferencePipeline",
    "Segment",
    "TranscriptionInfo",
    "WhisperModel",
    "Word",
    "available_models",
    "decode_audio",
]

_PRECISIONS: dict[str, Precision] = {"float32": "f32", "bfloat16": "bf16"}
_SILENCE = 2.0  # seconds that end speech, as there


@dataclasses.dataclass
class Word:
    """A word, and when it was said.

    Attributes:
        start: Seconds from the beginning of the audio.
        end: Seconds from the beginning of the audio.
        word: The word with its punctuation, and with the space before it.
        probability: The smallest probability of its tokens.
    """

    start: float
    end: float
    word: str
    probability: float


@dataclasses.dataclass
class Segment:
    """The text of one stretch of audio.

    Attributes:
        id: Counts from 1.
        seek: Where it begins, in hundredths of a second.
        start: Seconds from the beginning of the audio.
        end: Seconds from the beginning of the audio.
        text: Its text. It begins with a space where one is needed after the segment before.
        tokens: Indices in the model's vocabulary.
        avg_logprob: The mean logarithm of the tokens' probabilities.
        compression_ratio: Bytes of the text for each byte of it compressed.
        no_speech_prob: Always 0: this model tells no such probability.
        words: Its words, where asked for.
        temperature: Always 0: the most probable token is taken at every step.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None
    temperature: float | None


@dataclasses.dataclass(init=False)
class TranscriptionInfo:
    """About a whole recording.

    Attributes:
        language: What was asked for, else "en" or "zh" by the script of the first text, or None where there is none.
            Reading it makes the first segment, if that is not done yet.
        language_probability: 1 for a language that was asked for, else the share of the first text in its script.
        duration: Seconds of audio.
        duration_after_vad: The same: what is left out is found on the way.
        all_language_probs: None.
        transcription_options: The options that `transcribe` was given.
        vad_options: Those of the voice activity detector, or None without it.
    """

    language: str | None
    language_probability: float
    duration: float
    duration_after_vad: float
    all_language_probs: list[tuple[str, float]] | None
    transcription_options: dict[str, Any]
    vad_options: dict[str, Any] | None

    def __init__(
        self,
        language: str | Callable[[], tuple[str | None, float]],
        duration: float,
        transcription_options: dict[str, Any],
        vad_options: dict[str, Any] | None,
    ) -> None:
        if callable(language):
            self._find = language
        else:
            self.language, self.language_probability = language, 1.0
        self.duration = self.duration_after_vad = duration
        self.all_language_probs = None
        self.transcription_options = transcription_options
        self.vad_options = vad_options

    def __getattr__(self, name: str) -> Any:
        """The language, once it is asked for."""
        if name not in ("language", "language_probability"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.language, self.language_probability = self._find()
        del self._find  # it cannot be copied to another process
        return self.__dict__[name]


class WhisperModel:
    """A model, opened as faster-whisper opens one.

    Args:
        model_size_or_path: A name that `pycrispasr.Model` takes; "pycrispasr/tiny" for its bundled model; or a
            Whisper model's name, such as "large-v3" or "tiny", for which "moss-transcribe" is used, with a warning.
        device: "auto", "cpu" or "cuda". Where there is no such device, the CPU is used, with a warning.
        device_index: Which of several devices: one.
        compute_type: "float32" and "bfloat16" are what is computed in. Others leave it to the model and the machine:
            weights stay in the types of the model's file.
        cpu_threads: Threads on the CPU; 0 for one for each physical core.
        num_workers: Any number of threads may use a model at once.
        download_root: Has no effect: models are in the Hugging Face cache, which HF_HOME moves.
        local_files_only: Use no network.
        revision: A branch, tag or commit of a repository of the Hugging Face hub.
        options: Others of faster-whisper have no effect, and give a warning.

    Raises:
        PycrispasrError: What `pycrispasr.Model` raises.
        UnsupportedOperationError: `files` are passed, or several devices.
    """

    def __init__(
        self,
        model_size_or_path: str | os.PathLike[str],
        device: str = "auto",
        device_index: int | Sequence[int] = 0,
        compute_type: str = "default",
        cpu_threads: int = 0,
        num_workers: int = 1,  # noqa: ARG002
        download_root: str | None = None,
        local_files_only: bool = False,
        files: Mapping[str, Any] | None = None,
        revision: str | None = None,
        use_auth_token: str | bool | None = None,
        **options: object,
    ) -> None:
        indices = [device_index] if isinstance(device_index, int) else list(device_index)
        if len(indices) != 1:
            raise UnsupportedOperationError(f"device_index={device_index!r}: a model runs on one device")
        if files is not None:
            raise UnsupportedOperationError("files cannot be passed as bytes: pass the path of a GGUF file")
        if download_root is not None:
            common.warn(f"download_root={download_root!r} has no effect: HF_HOME says where models are kept")
        if use_auth_token is not None:
            common.warn("use_auth_token has no effect: HF_TOKEN is read")
        for name, value in options.items():
            common.warn(f"{name}={value!r} has no effect: it is for another runtime")
        self.model = common.open_model(
            model_size_or_path,
            device=common.find_device(device, indices[0]),
            threads=cpu_threads,
            precision=_PRECISIONS.get(compute_type, "auto"),
            revision=revision,
            local_files_only=local_files_only,
        )

    @property
    def supported_languages(self) -> list[str]:
        """English and Chinese."""
        return ["en", "zh"]

    @property
    def is_multilingual(self) -> bool:
        """True."""
        return True

    def transcribe(
        self,
        audio: str | os.PathLike[str] | BinaryIO | npt.NDArray[np.floating[Any]],
        language: str | None = None,
        task: str = "transcribe",
        *,
        word_timestamps: bool = False,
        vad_filter: bool = False,
        vad_parameters: Mapping[str, Any] | object | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = BATCH,
        **options: object,
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        """Transcribes a recording while its segments are asked for.

        Args:
            audio: A path, a binary file object, or samples at 16 kHz.
            language: "en", "zh" or None, which all mean the same: this model hears by itself which it is.
            task: "transcribe".
            word_timestamps: Give each segment its words and their times.
            vad_filter: Leave out what the voice activity detector takes for silence.
            vad_parameters: Of these `min_silence_duration_ms` counts: how long speech must pause for a cut.
            max_new_tokens: Where the text of 30 seconds is cut.
            batch_size: How many stretches are decoded side by side; the text does not depend on it.
            options: The others of faster-whisper. What they ask for cannot be done here, so that values other than
                their defaults warn or raise: `docs/drop-in.md` lists them.

        Returns:
            A generator, and what is known beforehand.

        Raises:
            AudioError: The audio cannot be read, or is too short.
            UnsupportedOperationError: Another language or task is asked for, or a part of the audio.
            TypeError: There is no such option.
        """
        common.check(options, language, task)
        samples = common.load(audio)
        vad_options = _vad_options(vad_parameters) if vad_filter else None
        run = common.Run(
            self.model,
            samples,
            vad="off" if vad_options is None else "on",
            silence=None if vad_options is None else vad_options["min_silence_duration_ms"] / 1000,
            max_new_tokens=max_new_tokens,
            word_timestamps=word_timestamps,
            batch=batch_size,
        )
        info = TranscriptionInfo(
            run.language if language is None else common.LANGUAGES[language.lower()],
            len(samples) / audio_module.SAMPLE_RATE,
            {"word_timestamps": word_timestamps, "max_new_tokens": max_new_tokens, **options},
            vad_options,
        )
        return _segments(run), info


class BatchedInferencePipeline:
    """What faster-whisper wraps around a model to decode stretches side by side: here every model does.

    Args:
        model: A `WhisperModel`.
    """

    def __init__(self, model: WhisperModel) -> None:
        self.model = model

    def transcribe(
        self,
        audio: str | os.PathLike[str] | BinaryIO | npt.NDArray[np.floating[Any]],
        language: str | None = None,
        task: str = "transcribe",
        *,
        batch_size: int = 8,
        vad_filter: bool = True,
        **options: Any,
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        """As `WhisperModel.transcribe`, with the voice activity detector unless it is told not to use it.

        Args:
            audio: As there.
            language: As there.
            task: As there.
            batch_size: As there.
            vad_filter: As there.
            options: As there.
        """
        return self.model.transcribe(audio, language, task, vad_filter=vad_filter, batch_size=batch_size, **options)


def available_models() -> list[str]:
    """Names that `WhisperModel` takes: ours, and Whisper's, which stand for "moss-transcribe"."""
    return [common.MODEL, common.BUNDLED, *common.WHISPER_MODELS]


def decode_audio(input_file: str | os.PathLike[str] | BinaryIO, sampling_rate: int = 16000) -> Samples:
    """The samples of a file, float32, mono, 16 kHz.

    Raises:
        AudioError: The file cannot be read.
        UnsupportedOperationError: Another rate is asked for.
    """
    if sampling_rate != audio_module.SAMPLE_RATE:
        raise UnsupportedOperationError(f"sampling_rate={sampling_rate}: this model hears 16000 samples a second")
    return common.load(input_file)


def _vad_options(parameters: Mapping[str, Any] | object | None) -> dict[str, Any]:
    if parameters is None:
        given: Mapping[str, Any] = {}
    else:
        given = parameters if isinstance(parameters, Mapping) else vars(parameters)
    for name, value in given.items():
        if name != "min_silence_duration_ms":
            common.warn(f"vad_parameters: {name}={value!r} has no effect: the detector has its own")
    return {"min_silence_duration_ms": given.get("min_silence_duration_ms", _SILENCE * 1000)}


def _segments(run: common.Run) -> Iterator[Segment]:
    before = ""
    for number, segment in enumerate(run, 1):
        space = separator(before, segment.text)
        words = None
        if segment.words is not None:
            words = [Word(word.start, word.end, word.text, word.probability) for word in spaced_words(segment)]
            if words:
                words[0].word = space + words[0].word
        yield Segment(
            id=number,
            seek=round(segment.start * 100),
            start=segment.start,
            end=segment.end,
            text=space + segment.text,
            words=words,
            **common.numbers(segment),
        )
        before = segment.text

"""faster-whisper's module `transcribe`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from pycrispasr.audio import CHUNK_SECONDS, SAMPLE_RATE
from pycrispasr.compat import common
from pycrispasr.compat.faster_whisper.vad import VadOptions
from pycrispasr.errors import UnsupportedOperationError
from pycrispasr.options import BATCH
from pycrispasr.results.cues import spaced_words
from pycrispasr.segmentation.silero import FRAME
from pycrispasr.text import separator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pycrispasr.options import Precision, Vad

_PRECISIONS: dict[str, Precision] = {"float32": "f32", "bfloat16": "bf16"}
_FRAME = FRAME / SAMPLE_RATE  # seconds of the detector's step: no shorter silence can be found
_DEFAULTS = {name: values[0] for name, (values, _) in common.OPTIONS.items()}


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

    def _asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass
class Segment:
    """The text of one segment of audio.

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

    def _asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class TranscriptionOptions(dict[str, Any]):
    """The options that `transcribe` was given, or those of the detector, as attributes too: `options.beam_size`.

    What was not given has the package's default there.
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        for defaults in (_DEFAULTS, dataclasses.asdict(VadOptions())):
            if name in defaults:
                return defaults[name]
        raise AttributeError(f"there is no option {name!r}")


@dataclasses.dataclass(init=False)
class TranscriptionInfo:
    """About a whole recording.

    Attributes:
        language: Whisper's code of what was asked for; else of what the model says the first text is in; else, of a
            model that names no language, "en" or "zh" by the script of that text. None where there is no text, or
            no language was named. Reading it makes the first segment, if that is not done yet.
        language_probability: 1 for a language that was asked for or that the model named, which it does with no
            probability; the share of the first text's words in the script; 0 for None.
        duration: Seconds of audio.
        duration_after_vad: The same: what is left out is found on the way.
        all_language_probs: None.
        transcription_options: The options that `transcribe` was given.
        vad_options: Those of the voice activity detector, or None without it.

    It may be read from any thread, pickled and copied.
    """

    language: str | None
    language_probability: float
    duration: float
    duration_after_vad: float
    all_language_probs: list[tuple[str, float]] | None
    transcription_options: TranscriptionOptions
    vad_options: TranscriptionOptions | None

    def __init__(
        self,
        language: str | Callable[[], tuple[str | None, float]],
        duration: float,
        transcription_options: TranscriptionOptions,
        vad_options: TranscriptionOptions | None,
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
        find = self.__dict__.get("_find")
        if find is not None:  # else another thread has found it meanwhile
            self.language, self.language_probability = find()
            self.__dict__.pop("_find", None)
        return self.__dict__[name]

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, the language included."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


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
        """Whisper's codes of what `language` can be; "en" for a model that takes none."""
        return common.languages(self.model)

    @property
    def is_multilingual(self) -> bool:
        """True where the model can be told a language."""
        return bool(self.model.languages)

    def transcribe(  # noqa: D417  the others are in docs/drop-in.md
        self,
        audio: str | os.PathLike[str] | BinaryIO | npt.NDArray[np.floating[Any]],
        language: str | None = None,
        task: str = "transcribe",
        log_progress: bool = False,
        beam_size: int = 5,
        best_of: int = 5,
        patience: float = 1,
        length_penalty: float = 1,
        repetition_penalty: float = 1,
        no_repeat_ngram_size: int = 0,
        temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        compression_ratio_threshold: float | None = 2.4,
        log_prob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        prompt_reset_on_temperature: float = 0.5,
        initial_prompt: str | Iterable[int] | None = None,
        prefix: str | None = None,
        suppress_blank: bool = True,
        suppress_tokens: Sequence[int] | None = (-1,),
        without_timestamps: bool = False,
        max_initial_timestamp: float = 1.0,
        word_timestamps: bool = False,
        prepend_punctuations: str = common.PREPENDED,
        append_punctuations: str = common.APPENDED,
        multilingual: bool = False,
        vad_filter: bool = False,
        vad_parameters: Mapping[str, Any] | VadOptions | None = None,
        max_new_tokens: int | None = None,
        chunk_length: int | None = None,
        clip_timestamps: str | Sequence[Any] | None = "0",
        hallucination_silence_threshold: float | None = None,
        hotwords: str | None = None,
        language_detection_threshold: float | None = 0.5,
        language_detection_segments: int = 1,
        *,
        batch_size: int = BATCH,
        **more: object,
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        """Transcribes a recording while its segments are asked for.

        Options that are not listed here ask for what cannot be done: values other than their defaults warn or raise, as
        `docs/drop-in.md` lists.

        Args:
            audio: A path, a binary file object, or samples at 16 kHz.
            language: One of `supported_languages`, or its English name; None: the model finds out, for each segment. A
                model that takes no language also has "zh", with a warning.
            task: "transcribe".
            initial_prompt: What the audio may be about, as text, for every segment; a model that takes no context has a
                warning instead.
            hotwords: Names and terms to expect: as `initial_prompt`, which they follow.
            multilingual: True: the model finds out the language of each segment, whatever `language` says.
            word_timestamps: Give each segment its words and their times.
            vad_filter: Leave out what the voice activity detector takes for silence.
            vad_parameters: Of these `min_silence_duration_ms` counts: how long speech must pause for a cut.
            max_new_tokens: Where the text of 30 seconds is cut.
            batch_size: How many segments are decoded at once; the text does not depend on it.
            more: Options of openai-whisper.

        Returns:
            A generator, and what is known beforehand.

        Raises:
            AudioError: The audio cannot be read, or is too short.
            UsageError: The model takes languages, but not this one; or a number is out of range.
            UnsupportedOperationError: Another task is asked for, or a part of the audio; or another language, and the
                model takes none.
            TypeError: There is no such option.
        """
        options = dict(
            log_progress=log_progress, beam_size=beam_size, best_of=best_of, patience=patience,
            length_penalty=length_penalty, repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size, temperature=temperature,
            compression_ratio_threshold=compression_ratio_threshold, log_prob_threshold=log_prob_threshold,
            no_speech_threshold=no_speech_threshold, condition_on_previous_text=condition_on_previous_text,
            prompt_reset_on_temperature=prompt_reset_on_temperature, initial_prompt=initial_prompt, prefix=prefix,
            suppress_blank=suppress_blank, suppress_tokens=suppress_tokens, without_timestamps=without_timestamps,
            max_initial_timestamp=max_initial_timestamp, prepend_punctuations=prepend_punctuations,
            append_punctuations=append_punctuations, multilingual=multilingual, chunk_length=chunk_length,
            clip_timestamps=clip_timestamps, hallucination_silence_threshold=hallucination_silence_threshold,
            hotwords=hotwords, language_detection_threshold=language_detection_threshold,
            language_detection_segments=language_detection_segments,
            **more,
        )  # fmt: skip
        hints = common.check(self.model, options, language, task)
        samples = common.load(audio)
        vad_options = _vad_options(vad_parameters) if vad_filter else None
        vad, silence = _detector(vad_options)
        run = common.Run(
            self.model,
            samples,
            vad=vad,
            silence=silence,
            max_new_tokens=max_new_tokens,
            word_timestamps=word_timestamps,
            batch=batch_size,
            hints=hints,
        )
        info = TranscriptionInfo(
            run.language if hints.language is None else hints.language,
            len(samples) / SAMPLE_RATE,
            TranscriptionOptions(word_timestamps=word_timestamps, max_new_tokens=max_new_tokens, **options),
            vad_options,
        )
        return _segments(run), info

    def detect_language(
        self,
        audio: npt.NDArray[np.floating[Any]] | None = None,
        features: npt.NDArray[np.floating[Any]] | None = None,
        vad_filter: bool = False,
        vad_parameters: Mapping[str, Any] | VadOptions | None = None,
        language_detection_segments: int = 1,
        language_detection_threshold: float = 0.5,
    ) -> tuple[str, float, list[tuple[str, float]]]:
        """The language that is spoken: what the model says it is, or else by the script of what it writes.

        Args:
            audio: Samples at 16 kHz, shape `[n]`.
            features: Cannot be taken: this model makes its own.
            vad_filter: Leave out what the voice activity detector takes for silence.
            vad_parameters: As for `transcribe`.
            language_detection_segments: How many times 30 seconds are heard.
            language_detection_threshold: Has no effect: a model names one language, with no probability.

        Returns:
            Whisper's code of the language, the share of what was heard that is in it, and the shares of all languages,
            the largest first. Shares are of the audio; of the words, by their script, where the model names no
            language, and "en" and "zh" are all there is. Where nothing is said, the language is "en", and all are 0.

        Raises:
            UnsupportedOperationError: Only `features` are given.
        """
        if audio is None or features is not None:
            raise UnsupportedOperationError("features cannot be taken, since this model makes its own: pass audio")
        common.check(self.model, {"language_detection_threshold": language_detection_threshold})
        samples = common.load(audio)[: round(language_detection_segments * CHUNK_SECONDS * SAMPLE_RATE)]
        vad, silence = _detector(_vad_options(vad_parameters) if vad_filter else None)
        found = common.detect(self.model, samples, vad=vad, silence=silence)
        every = list(common.probabilities(self.model, found).items())
        return *(every[0] if found else ("en", 0.0)), every


class BatchedInferencePipeline:
    """What faster-whisper wraps around a model to decode segments at once: here every model does.

    Args:
        model: A `WhisperModel`.
    """

    def __init__(self, model: WhisperModel) -> None:
        self.model = model

    def transcribe(  # noqa: D417  the others are in docs/drop-in.md
        self,
        audio: str | os.PathLike[str] | BinaryIO | npt.NDArray[np.floating[Any]],
        language: str | None = None,
        task: str = "transcribe",
        log_progress: bool = False,
        beam_size: int = 5,
        best_of: int = 5,
        patience: float = 1,
        length_penalty: float = 1,
        repetition_penalty: float = 1,
        no_repeat_ngram_size: int = 0,
        temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        compression_ratio_threshold: float | None = 2.4,
        log_prob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        prompt_reset_on_temperature: float = 0.5,
        initial_prompt: str | Iterable[int] | None = None,
        prefix: str | None = None,
        suppress_blank: bool = True,
        suppress_tokens: Sequence[int] | None = (-1,),
        without_timestamps: bool = True,
        max_initial_timestamp: float = 1.0,
        word_timestamps: bool = False,
        prepend_punctuations: str = common.PREPENDED,
        append_punctuations: str = common.APPENDED,
        multilingual: bool = False,
        vad_filter: bool = True,
        vad_parameters: Mapping[str, Any] | VadOptions | None = None,
        max_new_tokens: int | None = None,
        chunk_length: int | None = None,
        clip_timestamps: str | Sequence[Any] | None = None,
        hallucination_silence_threshold: float | None = None,
        batch_size: int = 8,
        hotwords: str | None = None,
        language_detection_threshold: float | None = 0.5,
        language_detection_segments: int = 1,
        **more: object,
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        """As `WhisperModel.transcribe`, with the voice activity detector unless `vad_filter` is False.

        Args:
            audio: As there.
            language: As there.
            task: As there.
            initial_prompt: As there.
            hotwords: As there.
            multilingual: As there.
            word_timestamps: As there.
            vad_filter: As there.
            vad_parameters: As there.
            max_new_tokens: As there.
            batch_size: As there.
            more: As there.
        """
        return self.model.transcribe(
            audio, language, task, word_timestamps=word_timestamps, vad_filter=vad_filter,
            vad_parameters=vad_parameters, max_new_tokens=max_new_tokens, batch_size=batch_size,
            log_progress=log_progress, beam_size=beam_size, best_of=best_of, patience=patience,
            length_penalty=length_penalty, repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size, temperature=temperature,
            compression_ratio_threshold=compression_ratio_threshold, log_prob_threshold=log_prob_threshold,
            no_speech_threshold=no_speech_threshold, condition_on_previous_text=condition_on_previous_text,
            prompt_reset_on_temperature=prompt_reset_on_temperature, initial_prompt=initial_prompt, prefix=prefix,
            suppress_blank=suppress_blank, suppress_tokens=suppress_tokens, without_timestamps=without_timestamps,
            max_initial_timestamp=max_initial_timestamp, prepend_punctuations=prepend_punctuations,
            append_punctuations=append_punctuations, multilingual=multilingual, chunk_length=chunk_length,
            clip_timestamps=clip_timestamps, hallucination_silence_threshold=hallucination_silence_threshold,
            hotwords=hotwords, language_detection_threshold=language_detection_threshold,
            language_detection_segments=language_detection_segments,
            **more,
        )  # fmt: skip


def _vad_options(parameters: Mapping[str, Any] | object | None) -> TranscriptionOptions:
    given = parameters if isinstance(parameters, Mapping) else {} if parameters is None else vars(parameters)
    defaults = dataclasses.asdict(VadOptions())
    for name, value in given.items():
        if name not in defaults:
            raise TypeError(f"there is no option {name!r} of the voice activity detector")
        if name != "min_silence_duration_ms" and value != defaults[name]:
            common.warn(f"vad_parameters: {name}={value!r} has no effect: the detector has its own")
    pause = given.get("min_silence_duration_ms", defaults["min_silence_duration_ms"])
    return TranscriptionOptions(min_silence_duration_ms=pause)


def _detector(options: TranscriptionOptions | None) -> tuple[Vad, float | None]:
    """Whether the detector says where segments end, and after how many seconds of silence."""
    return ("off", None) if options is None else ("on", max(_FRAME, options.min_silence_duration_ms / 1000))


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

"""openai-whisper's module `decoding`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pycrispasr.compat import common
from pycrispasr.compat.whisper.audio import Mel
from pycrispasr.results.segment import Segment
from pycrispasr.text import separator

if TYPE_CHECKING:
    from pycrispasr.compat.whisper.model import Whisper


def detect_language(
    model: Whisper,
    mel: Mel,
    tokenizer: object = None,  # noqa: ARG001
) -> tuple[None, dict[str, float]]:
    """None, and how much of what is heard is in each language: models tell no probabilities.

    Shares are of the audio, by what the model says its language is; of the words, by their script, where the model
    names none, and "en" and "zh" are all there is. All are 0 where nothing is said.
    """
    return None, common.probabilities(model.model, mel.languages(model))


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options for `decode`: those of `transcribe`. `prompt`, as text, is what `initial_prompt` is there."""

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
        UsageError: As for `transcribe`.
        UnsupportedOperationError: As for `transcribe`.
    """
    wanted = dataclasses.asdict(dataclasses.replace(options or DecodingOptions(), **more))
    language, task, limit = wanted.pop("language"), wanted.pop("task"), wanted.pop("sample_len")
    hints = common.check(model.model, wanted, language, task)
    segments = mel.heard(model, limit, hints)
    text = ""
    for segment in segments:
        text += separator(text, segment.text) + segment.text
    tokens = tuple(token for segment in segments for token in segment.tokens)
    found = hints.language or next(iter(common.shares(model.model, segments)), None)
    end = segments[-1].end if segments else 0.0
    return DecodingResult(language=found, text=text, **common.numbers(Segment(0.0, end, text, tokens, "ok")))

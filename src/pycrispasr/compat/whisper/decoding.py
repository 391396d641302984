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

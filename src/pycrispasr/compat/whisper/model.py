"""openai-whisper's module `model`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from pycrispasr.compat import common
from pycrispasr.compat.whisper import decoding
from pycrispasr.compat.whisper.audio import Mel
from pycrispasr.compat.whisper.decoding import DecodingOptions, DecodingResult
from pycrispasr.compat.whisper.transcribe import transcribe


@dataclasses.dataclass(frozen=True)
class ModelDimensions:
    """Sizes of a model.

    Attributes:
        n_mels: Bins of its log-mel spectrogram.
    """

    n_mels: int


class Whisper:
    """A model, as `load_model` gives it.

    Attributes:
        model: The `pycrispasr.Model`.
        device: The name of what it runs on.
        is_multilingual: True where it can be told a language.
        dims: Its sizes: `dims.n_mels` is the only one.
    """

    def __init__(self, name: str | os.PathLike[str], device: str) -> None:
        self.model = common.open_model(name, device=device)
        is_ours = self.model.runtime == "pycrispasr"
        self.device = self.model.info.device if is_ours else device
        self.is_multilingual = bool(self.model.languages)
        self.dims = ModelDimensions(self.model.info.n_mels if is_ours else 80)

    def transcribe(self, audio: Any, **options: Any) -> dict[str, Any]:
        """See `transcribe`."""
        return transcribe(self, audio, **options)

    def decode(self, mel: Mel, options: DecodingOptions | None = None, **more: Any) -> DecodingResult:
        """See `decode`."""
        return decoding.decode(self, mel, options, **more)

    def detect_language(self, mel: Mel) -> tuple[None, dict[str, float]]:
        """See `detect_language`."""
        return decoding.detect_language(self, mel)

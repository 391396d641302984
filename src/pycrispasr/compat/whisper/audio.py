"""openai-whisper's module `audio`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pycrispasr.audio import Samples
from pycrispasr.compat import common
from pycrispasr.errors import UnsupportedOperationError
from pycrispasr.results.segment import Segment

if TYPE_CHECKING:
    from pycrispasr.compat.whisper.model import Whisper

SAMPLE_RATE = 16000
"""Samples per second."""
N_FFT = 400
"""Samples of a window of the spectrogram."""
HOP_LENGTH = 160
"""Samples from one window to the next."""
CHUNK_LENGTH = 30
"""Seconds that are transcribed at once."""
N_SAMPLES = CHUNK_LENGTH * SAMPLE_RATE
"""Samples of them."""
N_FRAMES = N_SAMPLES // HOP_LENGTH
"""Windows of them."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
"""Windows of a second."""


def load_audio(file: str | os.PathLike[str], sr: int = SAMPLE_RATE) -> Samples:
    """The samples of a file, float32, mono, 16 kHz.

    Raises:
        AudioError: The file cannot be read.
        UnsupportedOperationError: Another rate is asked for.
    """
    if sr != SAMPLE_RATE:
        raise UnsupportedOperationError(f"sr={sr}: this model hears 16000 samples a second")
    return common.load(file)


def pad_or_trim(array: npt.ArrayLike, length: int = N_SAMPLES, *, axis: int = -1) -> npt.NDArray[Any]:
    """An array cut, or filled with zeros, to 30 seconds of samples or another length, along one axis."""
    return common.pad_or_trim(array, length, axis)


class Mel:
    """Audio on its way to `decode`: what `log_mel_spectrogram` gives. It has no numbers to look at."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._done: dict[tuple[Whisper, int | None, common.Hints], list[Segment]] = {}

    def to(self, *_: object, **__: object) -> Mel:
        """Itself: it is made where it is needed."""
        return self

    def heard(self, model: Whisper, sample_len: int | None = None, hints: common.Hints | None = None) -> list[Segment]:
        """What a model hears in it, found once."""
        key = model, sample_len, hints or common.Hints()
        if key not in self._done:
            run = common.Run(model.model, self.samples, vad="auto", max_new_tokens=sample_len, hints=hints)
            self._done[key] = list(run)
        return self._done[key]

    def languages(self, model: Whisper) -> dict[str, float]:
        """The languages in it, as `common.shares` gives them; a model that names them does not make the whole text."""
        if model.model.languages:
            return common.detect(model.model, self.samples, vad="auto")
        return common.shares(model.model, self.heard(model))


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

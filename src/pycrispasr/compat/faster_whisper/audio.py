"""faster-whisper's module `audio`."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.audio import Samples
from pycrispasr.compat import common
from pycrispasr.errors import AudioError, UnsupportedOperationError


def decode_audio(
    input_file: str | os.PathLike[str] | BinaryIO, sampling_rate: int = 16000, split_stereo: bool = False
) -> Samples | tuple[Samples, Samples]:
    """The samples of a file, float32, mono, 16 kHz.

    Args:
        input_file: A path or a binary file object.
        sampling_rate: 16000.
        split_stereo: Give the left and the right channel; of a mono file both are the same.

    Raises:
        AudioError: The file cannot be read.
        UnsupportedOperationError: Another rate is asked for.
    """
    if sampling_rate != audio.SAMPLE_RATE:
        raise UnsupportedOperationError(f"sampling_rate={sampling_rate}: this model hears 16000 samples a second")
    if not split_stereo:
        return common.load(input_file)
    content = input_file if isinstance(input_file, (str, os.PathLike)) else input_file.read()  # read twice
    left = audio.load(content, channel=0)
    try:
        return left, audio.load(content, channel=1)
    except AudioError:  # there is but one channel
        return left, left.copy()


def pad_or_trim(array: npt.NDArray[Any], length: int = 3000, *, axis: int = -1) -> npt.NDArray[Any]:
    """An array cut, or filled with zeros, to a length along one axis."""
    return common.pad_or_trim(array, length, axis)

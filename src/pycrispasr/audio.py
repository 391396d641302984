"""Audio in any common form, as what the model hears: float32 mono samples at 16 kHz."""

from __future__ import annotations

import io
import math
import operator
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from pycrispasr.errors import AudioError, AudioNotFoundError

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16000
"""Samples per second that the model takes."""

CHUNK_SECONDS = 30.0
"""The longest stretch of audio that is transcribed at once: the model was trained on clips of about this length."""

Samples: TypeAlias = npt.NDArray[np.float32]
NOTHING: Samples = np.empty(0, np.float32)
Audio: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[Any]"

_BLOCK_FRAMES = 1 << 16
_MAX_CHANNELS = 64
_MIN_RATE, _MAX_RATE = 1000, 768_000
# Scales of the integer types. 8-bit types are missing on purpose: signed and unsigned ones mean different things.
_FULL_SCALE = {"i2": 32768.0, "i4": 2147483648.0}
# Far above what clipped or normalised audio reaches, far below integer samples that were only cast to float.
_MAX_PEAK = 16.0


def load(audio: Audio, *, sample_rate: float | None = None, channel: int | None = None) -> Samples:
    """Reads audio and makes it mono at 16 kHz.

    Channels are averaged, then the rate is converted (soxr, high quality).

    Args:
        audio: A path; the bytes of an audio file; a binary file object; or an array of samples, of shape `[frames]` or
            `[frames, channels]` as soundfile gives them. Arrays are float32 or float64, nominally in [-1, 1], or int16
            or int32 over their full range. Files are whatever libsndfile reads: WAV, FLAC, OGG, MP3, AIFF and more.
        sample_rate: Samples per second of an array. A file tells its own rate; where it is given as well, the two must
            agree.

    Returns:
        Samples, float32, of shape `[n]`, 16000 a second.

    Raises:
        AudioNotFoundError: There is no such file.
        AudioError: The file cannot be decoded, or the array's type, shape, values or rate cannot be right.
    """
    if isinstance(audio, (str, os.PathLike)):
        path = os.fsdecode(audio)
        if os.path.isdir(path):
            raise AudioError(f"{path!r} is a directory: name the audio files in it")
        if not os.path.exists(path):
            raise AudioNotFoundError(f"there is no audio file {path!r}")
        return _decode(path, repr(path), sample_rate)
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(audio), f"audio of {len(audio)} bytes", sample_rate)
    if hasattr(audio, "read"):
        return _decode(_seekable(audio), f"file object {getattr(audio, 'name', '')!r}", sample_rate)
    if not hasattr(audio, "__array__"):
        raise AudioError(
            f"audio cannot be {audio!r:.40} of type {type(audio).__name__}: "
            "pass a path, bytes, a binary file object or a NumPy array of samples"
        )
    if sample_rate is None:
        raise AudioError("an array does not tell its sample rate: pass sample_rate, e.g. sample_rate=16000")
    resampler = Resampler(sample_rate)
    samples = to_mono(audio)
    if not samples.size:
        raise AudioError(f"the audio is empty: shape {np.shape(audio)}")
    return np.concatenate([resampler.push(samples), resampler.finish()])


class AudioReader:
    """shim"""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.duration: float | None = len(samples) / SAMPLE_RATE
        self.warnings: list[str] = []

    def blocks(self) -> Iterator[Samples]:
        for i in range(0, len(self.samples), 1 << 16):
            yield self.samples[i : i + (1 << 16)]

    def close(self) -> None:
        pass

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open(audio: Audio, *, sample_rate: float | None = None, channel: int | None = None) -> AudioReader:  # noqa: A001
    return AudioReader(load(audio, sample_rate=sample_rate))


def to_mono(samples: npt.NDArray[Any]) -> Samples:
    """An array of samples as float32, mono, at its own rate.

    Args:
        samples: Shape `[frames]` or `[frames, channels]`, zero frames allowed; float32 or float64 nominally in [-1, 1],
            or int16 or int32 over their full range.

    Returns:
        The mean of the channels, float32, of shape `[frames]`.

    Raises:
        AudioError: The type, the shape or a value cannot be right.
    """
    array = np.asarray(samples)
    kind = array.dtype.str[1:]
    if kind not in ("f4", "f8", *_FULL_SCALE):
        raise AudioError(
            f"samples cannot be of type {array.dtype}: pass float32 in [-1, 1], float64, int16 or int32 "
            "(unsigned 8-bit samples become float32 by (samples - 128.0) / 128)"
        )
    if array.ndim not in (1, 2):
        raise AudioError(f"audio cannot have shape {array.shape}: pass [frames] or [frames, channels]")
    if array.ndim == 2:
        frames, channels = array.shape
        if channels == 0 or channels > _MAX_CHANNELS or (frames and channels > frames):
            raise AudioError(
                f"audio of shape {array.shape} would have {channels} channels: the shape is [frames, channels], "
                "so pass audio.T if the channels come first"
            )
        with np.errstate(invalid="ignore"):  # inf and -inf have no mean; what comes of it is refused below
            array = array[:, 0] if channels == 1 else array.mean(axis=1, dtype=np.float64)
    if kind in _FULL_SCALE:
        return (array / _FULL_SCALE[kind]).astype(np.float32)
    if array.size:
        low, high = float(array.min()), float(array.max())  # both are nan if any sample is
        if not (math.isfinite(low) and math.isfinite(high)):
            value = array[~np.isfinite(array)][0]
            raise AudioError(f"a sample is {value}: every sample must be a finite number")
        if max(-low, high) > _MAX_PEAK:
            raise AudioError(
                f"samples reach {max(-low, high):g}, but float audio lies in [-1, 1]: "
                "divide 16-bit samples by 32768, or pass them as int16"
            )
    return np.ascontiguousarray(array, dtype=np.float32)


class Resampler:
    """Converts mono audio of one rate to 16 kHz, block by block.

    The blocks' lengths do not change the result.

    Args:
        sample_rate: Samples per second of what comes in.

    Raises:
        AudioError: The rate is no whole number between 1000 and 768000.
    """

    def __init__(self, sample_rate: float) -> None:
        self.sample_rate = check_rate(sample_rate)
        self._stream = None
        if self.sample_rate != SAMPLE_RATE:
            import soxr

            self._stream = soxr.ResampleStream(self.sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def push(self, samples: Samples) -> Samples:
        """The next samples in, and those that are ready out: float32, shape `[n]`."""
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def finish(self) -> Samples:
        """The samples that were still inside, shape `[n]`. Nothing can be pushed after it."""
        return NOTHING if self._stream is None else self._stream.resample_chunk(NOTHING, last=True)


def _decode(file: str | BinaryIO, name: str, sample_rate: float | None) -> Samples:
    import soundfile

    wanted = None if sample_rate is None else check_rate(sample_rate)
    try:
        with soundfile.SoundFile(file) as sound:
            if wanted is not None and wanted != sound.samplerate:
                raise AudioError(f"its rate is {sound.samplerate}, not {wanted}: leave sample_rate away for files")
            resampler = Resampler(sound.samplerate)
            blocks = [resampler.push(to_mono(block)) for block in _blocks(sound)]
            blocks.append(resampler.finish())
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise AudioError(
            f"{name} cannot be decoded ({str(error).rstrip('.')}): "
            "convert it to a format that libsndfile reads, such as WAV, FLAC, OGG or MP3"
        ) from error
    samples = np.concatenate(blocks)
    if not samples.size:
        raise AudioError(f"{name}: the audio is empty")
    return samples


def _blocks(sound: soundfile.SoundFile) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of shape `[frames, channels]`: a long recording is never in memory with all its channels."""
    while len(block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        yield block


def _seekable(file: Any) -> BinaryIO:
    """The file object itself where libsndfile can work on it, else one over all its bytes."""
    if isinstance(file, (io.BufferedIOBase, io.RawIOBase)) and file.seekable():
        return file  # type: ignore[return-value]
    content = file.read()
    if not isinstance(content, (bytes, bytearray)):
        raise AudioError(f"a file object for audio must give bytes, not {type(content).__name__}: open it with 'rb'")
    return io.BytesIO(content)


def check_rate(sample_rate: float) -> int:
    """A rate in samples per second as a whole number.

    Raises:
        AudioError: It is no whole number between 1000 and 768000.
    """
    try:
        rate = operator.index(sample_rate)  # type: ignore[arg-type]
    except TypeError:
        is_whole = isinstance(sample_rate, (float, np.floating)) and float(sample_rate).is_integer()
        rate = int(sample_rate) if is_whole else 0
    if isinstance(sample_rate, bool) or not _MIN_RATE <= rate <= _MAX_RATE:
        raise AudioError(
            f"sample_rate cannot be {sample_rate!r}: "
            f"pass the samples per second, a whole number from {_MIN_RATE} to {_MAX_RATE}"
        )
    return rate

"""Audio in any common form, as what the model hears: float32 mono samples at 16 kHz."""

from __future__ import annotations

import builtins
import contextlib
import io
import math
import operator
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from pycrispasr.audio import addresses, decoders, pipes
from pycrispasr.errors import (
    AudioError,
    AudioNotFoundError,
    ClosedError,
    OutOfMemoryError,
    PycrispasrError,
    UsageError,
)
from pycrispasr.options import Allow, Limits, check_source
from pycrispasr.text import printable

SAMPLE_RATE = 16000
"""Samples per second that the model takes."""

CHUNK_SECONDS = 30.0
"""The longest segment, which is transcribed at once: the model was trained on clips of about this length."""

Samples: TypeAlias = npt.NDArray[np.float32]
NOTHING: Samples = np.empty(0, np.float32)
Audio: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[Any]"

_MIN_RATE, _MAX_RATE = 1000, 768_000
# 8-bit types are missing on purpose: signed and unsigned ones mean different things.
_TYPES = ("f4", "f8", "i2", "i4")
# Far above what clipped or normalised audio reaches, far below integer samples that were only cast to float.
_MAX_PEAK = 16.0

# When to warn: docs/audio.md has what was measured.
_FULL = 0.999  # from here on a sample is at full scale
_CLIPPED = 0.01  # share of the samples
_SILENCE = 1e-4
_OFFSET = 0.01  # mean of the samples, where it is also above the rest's root mean square
_CANCELLED = 0.01  # what is left of the channels' power when they are mixed


def open(  # noqa: A001  audio.open, as in wave.open
    audio: Audio,
    *,
    sample_rate: float | None = None,
    channel: int | None = None,
    track: int | None = None,
    allow: Allow = "all",
    limits: Limits = Limits(),  # noqa: B008  it never changes
) -> AudioReader:
    """Opens audio to be read in blocks, so that a long recording is never in memory as a whole.

        with audio.open("talk.mp3") as reader:
            for samples in reader.blocks():
                ...

    Args:
        audio: A path; an address that begins with http://, https:// or file://; the bytes of an audio file; a binary
            file object; or an array of samples, of shape `[frames]` or `[frames, channels]` as soundfile gives them.
            Arrays are float32 or float64, nominally in [-1, 1], or int16 or int32 over their full range. Files are
            whatever libsndfile reads: WAV, FLAC, OGG, MP3, AIFF and more; with PyAV installed (`pip install
            'pycrispasr[av]'`) also what FFmpeg reads: M4A, MP4, WebM, MKV and more, of which one stream of
            sound is taken. Non-seekable input, and what comes from the web, is kept in a temporary file beyond 16 MiB.
        sample_rate: Samples per second of an array. A file tells its own rate; where it is given as well, the two must
            agree.
        channel: Which channel to take, from 0. By default the mean of all.
        track: Which of several streams of sound in a file to take, from 0. By default the first, with a warning.
        allow: What `audio` may be. "all": anything. "data": an array, bytes or a file object; a name, which could mean
            any file, device or address that this process can reach, is refused. "public": these, and web addresses
            whose host is public.
        limits: How long it may be, and how much of it is downloaded.

    Raises:
        AudioNotFoundError: There is no such file.
        AudioError: The file cannot be fetched or decoded, or is beyond a limit, or `allow` refuses it; there is no such
            channel or track; or the array's type, shape or rate cannot be right.
        OutOfMemoryError: An allocation failed.
        UsageError: There is no such `allow`.
    """
    check_source(allow, limits)
    rate = None if sample_rate is None else check_rate(sample_rate)
    pick = None if channel is None else _check_number("channel", channel, "mix all")
    stream = None if track is None else _check_number("track", track, "take the first")
    name = "" if _is_array(audio) else _name(audio)
    with contextlib.ExitStack() as stack, _explained(name):
        source: _Array | decoders.Decoder
        if not name:
            source, limits = _Array(audio, rate), Limits(seconds=math.inf)
            if stream:
                raise AudioError(f"there is no track {stream}: an array is one track, 0")
        else:
            file = _file(audio, stack, allow, limits)
            source = decoders.decode(file, track=stream, longest_gap=limits.gap_seconds)
            stack.enter_context(contextlib.closing(source))
            if rate is not None and rate != source.rate:
                raise AudioError(f"its rate is {source.rate}, not {rate}: leave sample_rate away for files")
            check_rate(source.rate)
            if (source.duration or 0) > limits.seconds:
                raise limits.exceeded("seconds", f"its header tells of {source.duration:.0f} s,")
        _check_channels(source.channels, pick)
        return AudioReader(source, name, pick, limits, stack.pop_all())


def listen(
    stream: BinaryIO,
    *,
    format: str | None = None,  # noqa: A002  as FFmpeg calls it
    sample_rate: int | None = None,
    channels: int | None = None,
    channel: int | None = None,
    name: str = "the stream",
) -> AudioReader:
    """Reads audio as it comes out of a pipe or a socket, a tenth of a second at a time.

    What it is shows in its first bytes: a WAV header, or a format that FFmpeg decodes as it comes (with PyAV: OGG,
    FLAC, MP3, AAC, WebM and more). Everything else is raw samples.

        with audio.listen(sys.stdin.buffer.raw) as reader:
            for samples in reader.blocks():
                session.push(samples, wait=True)

    Args:
        stream: A binary file object. Its `read` should give what is there, as that of an unbuffered one does. It stays
            open, and is not sought in.
        format: Of raw samples, by FFmpeg's names: s8, u8, s16le, s16be, s24le, s24be, s32le, s32be, f32le, f32be,
            f64le, f64be, mulaw, alaw. None: what the first bytes tell, and s16le where they tell nothing.
        sample_rate: Samples per second of raw samples. None: 16000. Where a header tells it, that one is taken.
        channels: Of raw samples, which take turns. None: 1. Where a header tells it, that one is taken.
        channel: Which channel to take, from 0. By default the mean of all.
        name: What errors call it.

    Raises:
        AudioError: The format is known and cannot be decoded here, there is no such channel, or the rate cannot be.
        UsageError: There is no such `format`, or there cannot be so many channels.
    """
    rate = None if sample_rate is None else check_rate(sample_rate)
    pick = None if channel is None else _check_number("channel", channel, "mix all")
    with contextlib.ExitStack() as stack, _explained(name):
        source = pipes.decode(stream, form=format, sample_rate=rate, channels=channels)
        stack.enter_context(contextlib.closing(source))
        check_rate(source.rate)
        _check_channels(source.channels, pick)
        return AudioReader(source, name, pick, Limits(seconds=math.inf), stack.pop_all())


def load(
    audio: Audio,
    *,
    sample_rate: float | None = None,
    channel: int | None = None,
    track: int | None = None,
    allow: Allow = "all",
    limits: Limits = Limits(),  # noqa: B008  it never changes
) -> Samples:
    """Reads audio and makes it mono at 16 kHz.

    Channels are averaged, then the rate is converted (soxr, high quality).

    Args:
        audio: As for `open`.
        sample_rate: As for `open`.
        channel: As for `open`.
        track: As for `open`.
        allow: As for `open`.
        limits: As for `open`.

    Returns:
        Samples, float32, of shape `[n]`, 16000 a second.

    Raises:
        AudioNotFoundError: There is no such file.
        AudioError: As `open` and `AudioReader.blocks` do.
        OutOfMemoryError: An allocation failed.
        UsageError: There is no such `allow`.
    """
    with open(audio, sample_rate=sample_rate, channel=channel, track=track, allow=allow, limits=limits) as reader:
        return np.concatenate(list(reader.blocks()))


class AudioReader:
    """Audio that is read in blocks, once. Made by `open`; a context manager.

    Attributes:
        duration: Seconds of audio where the source tells it beforehand, else None. A file's header may be wrong.
        warnings: What was odd about the audio, in sentences: clipping, an offset, silence, a file cut short. Complete
            when `blocks` has ended.
    """

    def __init__(
        self,
        source: _Array | decoders.Decoder,
        name: str,
        channel: int | None,
        limits: Limits,
        resources: contextlib.ExitStack,
    ) -> None:
        self.duration = source.duration
        self.warnings: list[str] = []
        self._source: _Array | decoders.Decoder | None = source
        self._name = name
        self._channel = channel
        self._limits = limits
        self._resources = resources
        self._begun = False

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files. The caller's own file object stays open. May be called twice."""
        self._source = None
        self._resources.close()

    def blocks(self) -> Iterator[Samples]:
        """Reads to the end. The blocks' lengths do not follow any rule, and do not change the samples.

        Yields:
            Samples, float32, of shape `[n]`, 16000 a second: more than none, and a few seconds at most. They may be the
            caller's own array, so they are only to be read.

        Raises:
            AudioError: The audio is empty, cannot be decoded at all, or holds values that cannot be right. A file that
                ends too early or is damaged further on is no error: `warnings` has a sentence about it.
            UsageError: The audio has been read before, or is closed.
        """
        if self._source is None:
            raise ClosedError("the audio is closed: open it again")
        if self._begun:
            raise UsageError("the audio has been read already: open it again")
        self._begun = True
        return self._read(self._source)

    def _read(self, source: _Array | decoders.Decoder) -> Iterator[Samples]:
        resampler = Resampler(source.rate)
        seconds, is_empty, is_over = 0.0, True, False
        oddities = _Oddities()
        try:
            with _explained(self._name):
                for rate, block in source.blocks():
                    if rate != resampler.sample_rate:
                        ready = resampler.finish()
                        resampler = Resampler(rate)
                        if ready.size:
                            is_empty = False
                            yield ready
                    room = (self._limits.seconds - seconds) * rate
                    if is_over := len(block) > room:
                        block = block[: int(room)]
                    _check_channels(block.shape[1], self._channel)
                    mono = _mono(block, self._channel)
                    _check_values(mono, seconds, rate)
                    oddities.hear(block if self._channel is None else mono[:, None], mono)
                    seconds += len(block) / rate
                    if (ready := resampler.push(mono)).size:
                        is_empty = False
                        yield ready
                    if is_over:
                        break
                if (ready := resampler.finish()).size:
                    is_empty = False
                    yield ready
                if is_over:
                    raise self._limits.exceeded("seconds", "it goes on for")
                if is_empty:
                    raise AudioError("the audio is empty")
        finally:
            self.warnings += [*source.warnings, *oddities.sentences()]


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever goes wrong with a recording is an error of ours that names it: decoders and file objects raise anything.

    Args:
        name: Of the recording; "" for an array.
    """
    before = f"{name}: " if name else ""
    try:
        yield
    except AudioError as error:
        raise type(error)(before + str(error)) from error.__cause__
    except PycrispasrError:
        raise
    except OSError as error:
        raise AudioError(f"{name} cannot be read: {printable(error.strerror or str(error))}") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"{before}there is too little memory to read it") from error
    except Exception as error:
        told = printable(f"{type(error).__name__}: {error}")
        raise AudioError(f"{before}it cannot be read ({told})") from error


def to_mono(samples: npt.NDArray[Any]) -> Samples:
    """A block of samples as float32, mono, at its own rate.

    Args:
        samples: Shape `[frames]` or `[frames, channels]`, any number of frames; float32 or float64 nominally in
            [-1, 1], or int16 or int32 over their full range.

    Returns:
        The mean of the channels, float32, of shape `[frames]`.

    Raises:
        AudioError: The type, the shape or a value cannot be right.
    """
    mono = _mono(decoders.scaled(_check_array(samples)), None)
    _check_values(mono)
    return mono


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


class _Array:
    """An array as a source of blocks."""

    def __init__(self, array: Any, rate: int | None) -> None:
        if rate is None:
            raise AudioError("an array does not tell its sample rate: pass sample_rate, e.g. sample_rate=16000")
        self._array = _check_array(array)
        frames, channels = self._array.shape
        if 0 < frames < channels:  # a recording; a block of one may be as short
            raise _wrong_axis(self._array)
        if not self._array.size:
            raise AudioError(f"the audio is empty: shape {np.shape(array)}")
        self.rate = rate
        self.channels: int = self._array.shape[1]
        self.duration: float | None = len(self._array) / rate
        self.warnings: list[str] = []

    def blocks(self) -> Iterator[tuple[int, decoders.Block]]:
        size = min(decoders.BLOCK_FRAMES, 4 * self.rate)
        for start in range(0, len(self._array), size):
            yield self.rate, decoders.scaled(self._array[start : start + size])


class _Oddities:
    """What to tell the caller about, found in one pass."""

    def __init__(self) -> None:
        self._frames = self._clipped = 0
        self._sum = self._power = self._power_of_channels = 0.0
        self._peak = 0.0
        self._channels = 1
        self._tail = np.zeros(0, np.bool_)  # whether the last two frames were at full scale

    def hear(self, block: decoders.Block, mono: Samples) -> None:
        """The next block, `[frames, channels]`, and its mean."""
        self._channels = max(self._channels, block.shape[1])
        loudest = np.abs(block).max(axis=1)
        full = np.concatenate([self._tail, loudest >= _FULL])
        self._clipped += int(np.count_nonzero(full[2:] & full[1:-1] & full[:-2]))
        self._tail = full[-2:]
        self._frames += len(mono)
        self._peak = max(self._peak, float(loudest.max(initial=0)))
        self._sum += float(mono.sum(dtype=np.float64))
        power = float(np.square(mono, dtype=np.float64).sum())
        self._power += power
        self._power_of_channels += (
            power if block.shape[1] == 1 else float(np.square(block, dtype=np.float64).sum()) / block.shape[1]
        )

    def sentences(self) -> list[str]:
        """All that is to be told."""
        if not self._frames:
            return []
        if self._peak < _SILENCE:
            return ["it is silent: no sample is above -80 dB of full scale"]
        found = []
        if self._clipped > _CLIPPED * self._frames:
            found.append(
                f"it is clipped: {self._clipped / self._frames:.1%} of its samples are at full scale or beyond, so "
                "words may be lost; record it with less gain"
            )
        if self._channels > 1 and self._power < _CANCELLED * self._power_of_channels:
            found.append("its channels cancel each other when they are mixed: take one of them, channel=0")
        mean = self._sum / self._frames
        spread = max(0.0, self._power / self._frames - mean * mean)
        if abs(mean) > max(_OFFSET, math.sqrt(spread)):
            found.append(f"it has a constant offset of {mean:.3f}, larger than the sound itself: check the recorder")
        return found


def _is_array(audio: Any) -> bool:
    if isinstance(audio, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(audio, "read"):
        return False
    if not hasattr(audio, "__array__"):
        raise AudioError(
            f"audio cannot be {audio!r:.40} of type {type(audio).__name__}: "
            "pass a path, bytes, a binary file object or a NumPy array of samples"
        )
    return True


def _name(audio: Any) -> str:
    if isinstance(audio, (str, os.PathLike)):
        return repr(addresses.shown(os.fsdecode(audio)))
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return f"audio of {len(audio)} bytes"
    name = getattr(audio, "name", "")
    return f"file object {(addresses.shown(name) if isinstance(name, str) else name)!r}"


def _file(audio: Any, stack: contextlib.ExitStack, allow: Allow, limits: Limits) -> BinaryIO:
    """A file object that libsndfile can work on. What is opened here is closed with the stack."""
    if isinstance(audio, str) and (address := re.match(r"\s*([a-z][a-z0-9+.-]*)://", audio, re.IGNORECASE)):
        scheme = address[1].lower()
        if scheme in ("http", "https") and allow != "data":
            return stack.enter_context(addresses.download(audio, limits, public=allow == "public"))
        if scheme not in ("http", "https", "file"):
            raise AudioError(f"cannot be fetched from {scheme}://: pass http, https, file or a path")
        audio = addresses.path_of(audio) if allow == "all" else audio
    if isinstance(audio, (str, os.PathLike)):
        if allow != "all":
            also = "" if allow == "data" else ", or a public web address"
            raise AudioError(f"a name is not followed here, allow={allow!r}: pass bytes or a file object{also}")
        path = os.fsdecode(audio)
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            raise AudioNotFoundError("there is no such audio file") from None
        if stat.S_ISDIR(mode):
            raise AudioError("this is a directory: name the audio files in it")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise AudioError("this is a device: name an audio file")
        file = stack.enter_context(builtins.open(path, "rb"))  # noqa: SIM115  it is closed with the stack
        return file if stat.S_ISREG(mode) else stack.enter_context(addresses.spool(file, limits))
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return io.BytesIO(audio)
    return audio if _is_seekable(audio) else stack.enter_context(addresses.spool(audio, limits))


def _is_seekable(file: Any) -> bool:
    """Whether a file object can be read from anywhere: by what it does, since its class tells too little."""
    try:
        if hasattr(file, "seekable") and not file.seekable():
            return False
        file.seek(0, io.SEEK_END)
        file.tell()
        file.seek(0)
    except (AttributeError, NotImplementedError, OSError, TypeError, ValueError):
        return False
    if not isinstance(file.read(0), (bytes, bytearray, memoryview)):
        raise AudioError("a file object for audio must give bytes, not text: open it with 'rb'")
    return True


def _check_array(samples: Any) -> npt.NDArray[Any]:
    """The array as `[frames, channels]`, without a copy."""
    array = np.asarray(samples)
    if array.dtype.str[1:] not in _TYPES:
        raise AudioError(
            f"samples cannot be of type {array.dtype}: pass float32 in [-1, 1], float64, int16 or int32 "
            "(unsigned 8-bit samples become float32 by (samples - 128.0) / 128)"
        )
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise AudioError(f"audio cannot have shape {array.shape}: pass [frames] or [frames, channels]")
    if not 0 < array.shape[1] <= decoders.MAX_CHANNELS:
        raise _wrong_axis(array)
    return array


def _wrong_axis(array: npt.NDArray[Any]) -> AudioError:
    return AudioError(
        f"audio of shape {array.shape} would have {array.shape[1]} channels: the shape is [frames, channels], "
        "so pass audio.T if the channels come first"
    )


def _mono(block: decoders.Block, channel: int | None) -> Samples:
    """One channel, or the mean of all, float32 `[frames]`."""
    with np.errstate(invalid="ignore", over="ignore"):  # what has no mean, or is too large, is refused afterwards
        if channel is not None or block.shape[1] == 1:
            return np.ascontiguousarray(block[:, channel or 0], dtype=np.float32)
        mixed: Samples = block.mean(axis=1, dtype=np.float64).astype(np.float32)
        return mixed


def _check_values(mono: Samples, start: float | None = None, rate: int = SAMPLE_RATE) -> None:
    """Refuses impossible values, with their time if the samples' beginning is given in seconds."""
    if not mono.size:
        return
    low, high = float(mono.min()), float(mono.max())  # both are nan if any sample is
    if math.isfinite(low) and math.isfinite(high) and max(-low, high) <= _MAX_PEAK:
        return
    wrong = ~(np.abs(mono) <= _MAX_PEAK)
    is_finite = np.isfinite(mono)
    index = int(np.argmax(wrong if is_finite.all() else ~is_finite))
    where = "" if start is None else f" at {start + index / rate:.3f} s"
    if not is_finite.all():
        raise AudioError(f"a sample{where} is {mono[index]}: every sample must be a finite number")
    raise AudioError(
        f"samples{where} reach {max(-low, high):g}, but float audio lies in [-1, 1]: "
        "divide 16-bit samples by 32768, or pass them as int16"
    )


def _check_number(what: str, value: int, otherwise: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or number < 0:
        raise AudioError(f"{what} cannot be {value!r}: pass its number, from 0, or leave it away to {otherwise}")
    return number


def _check_channels(channels: int, channel: int | None) -> None:
    """Refuses audio with too many channels, or without the one that is asked for."""
    if channels > decoders.MAX_CHANNELS:
        raise AudioError(f"it has {channels} channels, more than {decoders.MAX_CHANNELS}")
    if channel is not None and channel >= channels:
        has = f"{channels} channels, 0 to {channels - 1}" if channels > 1 else "one channel, 0"
        raise AudioError(f"there is no channel {channel}: the audio has {has}")

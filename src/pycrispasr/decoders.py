"""Decodes files of sound in blocks: with libsndfile where it can read them, else with FFmpeg through PyAV.

Both read from a file object and from nothing else: what a file refers to (playlists, web addresses) is never opened.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from pycrispasr.errors import AudioError

BLOCK_FRAMES = 1 << 16
"""The most frames that are decoded at once; at low rates it is four seconds."""

MAX_CHANNELS = 64

Block = npt.NDArray[Any]
"""Samples of shape `[frames, channels]`, float32 or float64."""

_STEP = 1 << 12  # frames for libsndfile: those of a step in which decoding fails are lost
_HOLE = 0.2  # seconds: silence stands for longer holes between packets
_STREAMED = 0x7FFFF000  # sizes from here on are what writers to a pipe put where they cannot know
# How libsndfile logs that a header's size cannot be: "data : 64000 (should be 32000)".
_CORRECTED = re.compile(
    r"^\s*(?:riff|form|data|ssnd|riff size|data size)\s*: (\d+) \(should be (\d+)\)", re.IGNORECASE | re.MULTILINE
)


class Decoder(Protocol):
    """A file that is being decoded, from its beginning to its end.

    Attributes:
        rate: Samples per second.
        channels: Channels.
        duration: Seconds that the header tells of, or None.
        warnings: What is odd, in sentences; complete when `blocks` has ended.
    """

    rate: int
    channels: int
    duration: float | None
    warnings: list[str]

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Each block with its rate, which can change within a file."""

    def close(self) -> None:
        """Leaves the file object open."""


def decode(file: BinaryIO) -> Decoder:
    """Begins to decode a seekable file object, from its first byte.

    Raises:
        AudioError: Nothing here can read it, or there is no sound in it.
    """
    import soundfile

    watched = _WatchedFile(file)
    watched.repair_wav()
    try:
        return _Libsndfile(watched)
    except soundfile.SoundFileError as error:
        watched.check()
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    try:
        import av
    except ImportError:
        raise AudioError(
            f"cannot be decoded ({reason}): convert it to a format that libsndfile reads, such as WAV, FLAC, OGG or "
            "MP3, or, for what FFmpeg reads (m4a, mp4, webm, mkv and more), pip install 'pycrispasr[av]'"
        ) from None
    try:
        return _FFmpeg(watched)
    except av.error.FFmpegError as error:
        raise AudioError(
            f"cannot be decoded (libsndfile: {reason}; FFmpeg: {error.strerror}): is it a file of sound?"
        ) from None


class _WatchedFile:
    """A file object as both libraries take it. They call it from C, where nothing may be raised: `check` does so later.

    It has no name on purpose: by some names they would take any bytes for samples.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._patch: tuple[int, bytes] | None = None
        self._error: BaseException | None = None
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, none after an error."""
        try:
            start = self._file.tell()
            content = b"" if self._error else self._file.read(size)
        except BaseException as error:  # noqa: BLE001  raised by check()
            self._error = error
            return b""
        if self._patch and start < self._patch[0] + len(self._patch[1]) and self._patch[0] < start + len(content):
            changed = bytearray(content)
            for place, byte in enumerate(self._patch[1], self._patch[0] - start):
                if 0 <= place < len(changed):
                    changed[place] = byte
            return bytes(changed)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file's; a place before the beginning, where damaged files may lead, is not gone to."""
        try:
            return self._file.seek(offset, whence)
        except (ValueError, OSError):
            return self._file.tell()

    def tell(self) -> int:
        """As a file's."""
        return self._file.tell()

    def check(self) -> None:
        """Raises what a read has run into."""
        if self._error:
            raise self._error

    def repair_wav(self) -> None:
        """Lets a WAV file whose writer never filled in the size of its samples have all that follow.

        libsndfile takes that size, 0, at its word.
        """
        if re.fullmatch(rb"RIFF....WAVE", self.read(12), re.DOTALL):
            while len(header := self.read(8)) == 8:
                size = int.from_bytes(header[4:], "little")
                if header[:4] == b"data":
                    place, follows = self.tell() - 4, self.read(8)
                    is_chunk = len(follows) == 8 and follows[:4].isalnum() and follows[:4].isascii()
                    if size == 0 and follows and not is_chunk:
                        self._patch = place, b"\xff\xff\xff\xff"
                    break
                self.seek(size + size % 2, io.SEEK_CUR)
        self.seek(0)
        self.check()


class _Libsndfile:
    def __init__(self, file: _WatchedFile) -> None:
        import soundfile

        self._file = file
        self._sound = soundfile.SoundFile(file)
        # soundfile seeks after each read of a seekable file. In an MP3 this loses the bits that frames borrow from the
        # ones before them, and in a damaged file it fails.
        self._sound.seekable = lambda: False
        self.rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        seconds = self._sound.frames / self.rate
        self.duration: float | None = seconds if 0 < seconds < 1e9 else None
        self.warnings: list[str] = []
        self._hint = ""

    def blocks(self) -> Iterator[tuple[int, Block]]:
        import soundfile

        size = min(BLOCK_FRAMES, 4 * self.rate)
        frames = 0
        failure = ""
        while not failure:
            block, filled = np.empty((size, self.channels), np.float32), 0
            try:
                while filled < size and (got := len(self._sound.read(out=block[filled : filled + _STEP]))):
                    filled += got
            except soundfile.SoundFileError as error:
                failure = str(getattr(error, "error_string", error)).strip().rstrip(".")
            self._file.check()
            if not filled:
                break
            frames += filled
            yield self.rate, block[:filled]
        seconds = frames / self.rate
        more = self._follows()
        if failure or more or seconds < (self.duration or 0) - 0.1:
            damage = failure and f"it is damaged at {seconds:.2f} s ({failure})"
            told = len(self.warnings)
            for rate, block in self._rest(seconds):
                failure, more = "", False
                seconds += len(block) / rate
                yield rate, block
            if damage and not failure and len(self.warnings) == told:
                self.warnings.append(damage)
        if failure and not seconds:
            raise AudioError(f"cannot be decoded ({failure})")
        self._compare(seconds, failure)
        if more:
            self.warnings.append(f"more follows after {seconds:.2f} s that cannot be read{self._hint}")

    def close(self) -> None:
        self._sound.close()

    def _follows(self) -> bool:
        """Whether there is more behind the end: OGG and MP3 files can be several, one after the other."""
        if self._sound.format == "OGG":  # libsndfile has read ahead, and perhaps beyond the next one's first page
            begin = max(0, self._file.tell() - (1 << 16))
            self._file.seek(begin)
            first_pages = re.findall(rb"OggS\0[\2\3\6\7]", self._file.read(1 << 17))
            return len(first_pages) > (begin == 0)
        if self._sound.format == "MP3":
            begins = self._file.read(4)
            return len(begins) == 4 and begins[0] == 0xFF and begins[1] >= 0xE0
        return False

    def _rest(self, done: float) -> Iterator[tuple[int, Block]]:
        """What FFmpeg can still read after the seconds that are done. Its rate can be another one."""
        try:
            import av
        except ImportError:
            self._hint = ": pip install 'pycrispasr[av]'"
            return
        try:
            other = _FFmpeg(self._file)
        except (AudioError, av.error.FFmpegError):
            return
        passed = 0.0
        with contextlib.closing(other):
            for rate, block in other.blocks():
                begin = max(0, round((done - passed) * rate))
                if begin < len(block):
                    yield rate, block[begin:]
                passed += len(block) / rate
        self.warnings += other.warnings

    def _compare(self, seconds: float, failure: str) -> None:
        """Tells of a header that promises more than there was."""
        promised = max(self.duration or 0, seconds)
        for told, found in re.findall(_CORRECTED, self._sound.extra_info):
            if 0 < int(found) < int(told) < _STREAMED:
                promised = max(promised, seconds * int(told) / int(found))
        if failure:
            self.warnings.append(f"it cannot be decoded beyond {seconds:.2f} s ({failure}){self._hint}")
        elif promised - seconds > 0.1:
            self.warnings.append(cut_short(promised, seconds))


class _FFmpeg:
    def __init__(self, file: _WatchedFile) -> None:
        import av

        file.seek(0)
        # Tags need not be UTF-8; from its version 19 on PyAV does not mind.
        lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
        # Without a protocol, FFmpeg opens nothing but the file object.
        container: Any = av.open(file, options={"protocol_whitelist": "none"}, **lenient)
        self._container = container
        self.warnings: list[str] = []
        try:
            file.check()
            streams = self._container.streams.audio
            if not streams:
                kinds = sorted({stream.type for stream in self._container.streams})
                raise AudioError(f"there is no sound in it, only {' and '.join(kinds) or 'nothing'}")
            if len(streams) > 1:
                self.warnings.append(f"it has {len(streams)} streams of sound: the first one is used")
            self._file = file
            self._stream = streams[0]
            codec = self._stream.codec_context
            if codec is None:
                raise AudioError("cannot be decoded (FFmpeg: no decoder for the codec that it names)")
            self.rate = int(codec.sample_rate or 0)
            self.channels = int(codec.channels or 0)
            if not self.rate or not self.channels:
                raise AudioError(f"cannot be decoded (FFmpeg: no parameters of codec {codec.name!r} were found)")
            self._origin = (self._container.start_time or 0) / av.time_base
            self._limit = (self._container.duration or 0) / av.time_base
            self.duration: float | None = self._limit or None
            if self._stream.duration is not None and self._stream.time_base is not None:
                end = (self._stream.start_time or 0) + self._stream.duration
                self.duration = float(end * self._stream.time_base) - self._origin
        except BaseException:
            self._container.close()
            raise

    def blocks(self) -> Iterator[tuple[int, Block]]:
        heard = 0.0  # seconds, with what is held
        held: list[Block] = []
        rate, count = self.rate, 0
        for frame in self._frames():
            block = _samples(frame)
            if held and (frame.sample_rate != rate or block.shape[1] != held[0].shape[1] or count >= rate):
                yield rate, np.concatenate(held)
                held, count = [], 0
            rate = frame.sample_rate
            if frame.pts is not None:
                # Sound that begins after the picture, or packets that are missing: times stay those of the file.
                until = min(float(frame.pts * frame.time_base) - self._origin, self._limit)
                missing = round((until - heard) * rate) if until - heard > _HOLE else 0
                for size in [BLOCK_FRAMES] * (missing // BLOCK_FRAMES) + [missing % BLOCK_FRAMES] * bool(missing):
                    yield rate, np.concatenate([*held, np.zeros((size, block.shape[1]), np.float32)])
                    held, count = [], 0
                heard += missing / rate
            held.append(block)
            count += len(block)
            heard += len(block) / rate
        if held:
            yield rate, np.concatenate(held)
        if self.duration is not None and self.duration - heard > 0.5 and self._is_written():
            self.warnings.append(cut_short(self.duration, heard))

    def close(self) -> None:
        self._container.close()

    def _frames(self) -> Iterator[Any]:
        """Decoded frames. A packet that cannot be decoded is left out, and counted."""
        import av

        broken = total = 0
        reason = ""
        packets = self._container.demux(self._stream)
        try:
            while True:
                try:
                    packet = next(packets, None)
                except av.error.FFmpegError as error:
                    self._file.check()
                    self.warnings.append(f"it cannot be read to its end (FFmpeg: {error.strerror})")
                    packet = None
                try:
                    frames = self._stream.decode(packet) if packet is None else packet.decode()
                except av.error.EOFError:
                    return
                except av.error.FFmpegError as error:
                    broken, reason = broken + 1, str(error.strerror)
                    frames = []
                total += 1
                yield from (frame for frame in frames if frame.samples)
                if packet is None:
                    return
        finally:
            self._file.check()
            if broken:
                self.warnings.append(
                    f"{broken} of {total} packets cannot be decoded (FFmpeg: {reason}): silence or "
                    "nothing stands for them"
                )

    def _is_written(self) -> bool:
        """Whether the duration of the sound stands in the file, and is not guessed from its size and its bit rate."""
        family = self._container.format.name
        return "mp4" in family or ("matroska" in family and len(self._container.streams) == 1)


def cut_short(promised: float, seconds: float) -> str:
    """The sentence for a file that lacks its end."""
    return f"it is cut short: its header tells of {promised:.2f} s, but only {seconds:.2f} s are there"


def _samples(frame: Any) -> Block:
    """The samples of FFmpeg's frame, `[frames, channels]`, in [-1, 1]."""
    array = frame.to_ndarray()  # [channels, frames], or [1, frames * channels] where channels take turns
    array = array.T if frame.format.is_planar else array.reshape(frame.samples, -1)
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    return scaled(array)


def scaled(array: npt.NDArray[Any]) -> Block:
    """Samples of a signed integer type as float32 in [-1, 1]; those of a float type as they are."""
    if array.dtype.kind == "f":
        return array
    block: Block = (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    return block

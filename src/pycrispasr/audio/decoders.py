"""Decodes files of sound in blocks: with libsndfile where it can read them, else with FFmpeg through PyAV.

A file is a row of parts (`containers`), which are decoded one by one; times are those of the file. Both libraries read
from a file object and from nothing else: what a file refers to (playlists, web addresses) is never opened.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from pycrispasr.audio import containers
from pycrispasr.audio.containers import STREAMED, Part, Window
from pycrispasr.errors import AudioError
from pycrispasr.options import Limits

LONGEST_GAP = Limits().gap_seconds
"""Seconds that silence stands for unless told otherwise."""

BLOCK_FRAMES = 1 << 16
"""The most frames that are decoded at once; at low rates it is four seconds."""

MAX_CHANNELS = 64

Block = npt.NDArray[Any]
"""Samples of shape `[frames, channels]`, float32 or float64."""

_STEP = 1 << 12  # frames for libsndfile: those of a step in which decoding fails are lost
_HOLE = 0.05  # seconds: silence stands for longer holes between packets; times of packets are rounded
_TOLD = 0.2  # seconds: longer gaps get a warning
_BEGUN = 0.1  # seconds: sound that has not gone on for so long begins behind a hole
_BROADCASTS = ("mpegts", "mpeg")  # whose clocks begin anew where recordings were cut and joined
_LONGEST_GAP_OF_BROADCASTS = 60.0
_SKIP_MANUAL = 1 << 29  # of FFmpeg's flags2: what a file calls padding stays
# Formats that are frames and nothing else: FFmpeg makes up their times, as if nothing in them ever changed.
_WITHOUT_TIMES = ("aac", "ac3", "amr", "dts", "eac3", "flac", "loas", "mlp", "mp3", "truehd")
# How libsndfile logs that a header's size cannot be: "data : 64000 (should be 32000)".
_CORRECTED = re.compile(
    r"^\s*(?:riff|form|data|ssnd|riff size|data size)\s*: (\d+) \(should be (\d+)\)", re.IGNORECASE | re.MULTILINE
)


class Source(Protocol):
    """What FFmpeg reads from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end or after an error."""

    def check(self) -> None:
        """Raises what a read has run into."""


class Decoder(Protocol):
    """A file that is being decoded, from its beginning to its end.

    Attributes:
        rate: Samples per second.
        channels: Channels.
        duration: Seconds that the header announces, or None.
        warnings: What is odd, in sentences; complete when `blocks` has ended.
        start: Seconds before it, for what the warnings tell.
    """

    rate: int
    channels: int
    duration: float | None
    warnings: list[str]
    start: float

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Each block with its rate, which can change within a file."""

    def close(self) -> None:
        """Leaves the file object open."""


def decode(file: BinaryIO, *, track: int | None = None, longest_gap: float = LONGEST_GAP) -> Decoder:
    """Begins to decode a seekable file object, from its first byte.

    Args:
        file: Stays open.
        track: Which stream of sound, from 0; None for the first one, with a warning where there are more.
        longest_gap: Seconds that silence stands for; a file's clock that jumps further is wrong.

    Raises:
        AudioError: Nothing here can read it, or there is no sound in it, or no such track.
    """
    return _Joined(file, containers.parts(file), track, longest_gap)


class _Joined:
    """A file's parts, each decoded by itself, one behind the other."""

    def __init__(self, file: BinaryIO, parts: Sequence[Part], track: int | None, longest_gap: float) -> None:
        self.start = 0.0
        self._file, self._parts, self._track, self._longest_gap = file, parts, track, longest_gap
        self._first: Decoder | None = _open(file, parts[0], track, longest_gap)
        self._current: Decoder | None = self._first
        self.rate, self.channels, self.duration = self._first.rate, self._first.channels, self._first.duration
        if len(parts) > 1:
            known = [part.seconds for part in parts if part.seconds is not None]
            self.duration = sum(known) if len(known) == len(parts) else None
        self.warnings: list[str] = []

    def blocks(self) -> Iterator[tuple[int, Block]]:
        seconds = 0.0
        failure: AudioError | None = None
        for part in self._parts:
            try:
                self._current = source = self._first or _open(self._file, part, self._track, self._longest_gap)
                self._first = None
                with contextlib.closing(source):
                    source.start = seconds
                    for rate, block in source.blocks():
                        seconds += len(block) / rate
                        yield rate, block
                found = [*part.warnings, *source.warnings]
            except AudioError as error:
                failure = failure or error
                found = [f"what follows {seconds:.2f} s is no sound that can be read: {error}"]
            self.warnings += [sentence for sentence in found if sentence not in self.warnings]
        if failure is not None and not seconds:
            raise failure

    def close(self) -> None:
        if self._current is not None:
            self._current.close()


def _open(file: BinaryIO, part: Part, track: int | None, longest_gap: float) -> Decoder:
    """The decoder for a part.

    libsndfile, where it reads the format: it gives the samples as they are. FFmpeg for all else, for a second track,
    and for some formats that libsndfile reads too: it does not notice what is missing in an OGG file, and prints about
    damage in an MP3 file to stderr, and in those of `_prints` to stdout.
    """
    soundfile = libsndfile()
    window = Window(file, part)
    reason = "Format not recognised"
    if _prints(window):
        reason = "not read with it, since it would print about damage"
    elif track in (None, 0) and part.kind != "unknown mpeg" and not (part.kind in ("mp3", "ogg") and has_ffmpeg()):
        try:
            return _Libsndfile(window, part, longest_gap)
        except soundfile.SoundFileError as error:
            window.check()
            reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    if not has_ffmpeg():
        if track:
            raise AudioError(f"for track {track} of a file PyAV is needed: pip install 'pycrispasr[av]'")
        raise AudioError(
            f"cannot be decoded ({reason}): convert it to a format that libsndfile reads, such as WAV, FLAC, OGG or "
            "MP3, or, for what FFmpeg reads (m4a, mp4, webm, mkv and more), pip install 'pycrispasr[av]'"
        )
    import av

    try:
        return FFmpeg(window, part, track=track, longest_gap=longest_gap)
    except av.error.FFmpegError as error:
        raise AudioError(
            f"cannot be decoded (libsndfile: {reason}; FFmpeg: {error.strerror}): is it a file of sound?"
        ) from None


def _prints(window: Window) -> bool:
    """Whether libsndfile prints about damage in this format to stdout, which belongs to the program.

    All that it prints are remarks of two readers, on MIDI's sample dumps (SDS) and on Apple Lossless in a CAF file.
    """
    head = window.read(32)
    window.seek(0)
    return (head[:2] == b"\xf0\x7e" and head[3:4] == b"\1") or (head[:4] == b"caff" and head[28:] == b"alac")


@functools.cache
def libsndfile() -> Any:
    """The module `soundfile`.

    It opens files under a lock, which another thread may hold at the moment of a fork: a child gets a new one.
    """
    import soundfile

    if hasattr(os, "register_at_fork") and hasattr(soundfile.SoundFile, "_sf_error_lock"):

        def renew_lock() -> None:
            soundfile.SoundFile._sf_error_lock = threading.Lock()

        os.register_at_fork(after_in_child=renew_lock)
    return soundfile


def has_ffmpeg() -> bool:
    """Whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class _Libsndfile:
    def __init__(self, window: Window, part: Part, longest_gap: float) -> None:
        soundfile = libsndfile()

        self.start = 0.0
        self._window, self._part, self._longest_gap = window, part, longest_gap
        self._sound = soundfile.SoundFile(window)
        # soundfile seeks after each read of a seekable file. In an MP3 this loses the bits that frames borrow from the
        # ones before them, and in a damaged file it fails.
        self._sound.seekable = lambda: False
        self.rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        seconds = self._sound.frames / self.rate
        self.duration: float | None = part.seconds if part.kind == "mp3" else seconds if 0 < seconds < 1e9 else None
        self.warnings: list[str] = []
        self._hint = ""

    def blocks(self) -> Iterator[tuple[int, Block]]:
        soundfile = libsndfile()

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
            self._window.check()
            if not filled:
                break
            frames += filled
            yield self.rate, block[:filled]
        seconds = frames / self.rate
        if self._part.kind == "other" and (failure or seconds < (self.duration or 0) - 0.1):
            damage = failure and f"it is damaged at {self.start + seconds:.2f} s ({failure})"
            told = len(self.warnings)
            for rate, block in self._rest(seconds):
                failure = ""
                seconds += len(block) / rate
                yield rate, block
            if damage and not failure and len(self.warnings) == told:
                self.warnings.append(damage)
        if failure and not seconds:
            raise AudioError(f"cannot be decoded ({failure})")
        self._compare(seconds, failure)

    def close(self) -> None:
        self._sound.close()

    def _rest(self, done: float) -> Iterator[tuple[int, Block]]:
        """What FFmpeg can still read behind a damaged place. Times stay the same: nothing was missing before it."""
        if not has_ffmpeg():
            self._hint = ": pip install 'pycrispasr[av]'"
            return
        import av

        try:
            other = FFmpeg(self._window, self._part, longest_gap=self._longest_gap)
        except (AudioError, av.error.FFmpegError):
            return
        passed, other.start = 0.0, self.start
        with contextlib.closing(other):
            for rate, block in other.blocks():
                begin = max(0, round((done - passed) * rate))
                if begin < len(block):
                    yield rate, block[begin:]
                passed += len(block) / rate
        self.warnings += other.warnings

    def _compare(self, seconds: float, failure: str) -> None:
        """Tells of a header that promises more than there was."""
        promised = self._part.promised if self._part.kind == "mp3" else self.duration
        promised = max(promised or 0, seconds)
        for told, found in re.findall(_CORRECTED, self._sound.extra_info):
            if 0 < int(found) < int(told) < STREAMED:
                promised = max(promised, seconds * int(told) / int(found))
        if failure:
            self.warnings.append(f"it cannot be decoded beyond {self.start + seconds:.2f} s ({failure}){self._hint}")
        elif promised - seconds > 0.1:
            self.warnings.append(cut_short(promised, seconds))


class FFmpeg:
    """What FFmpeg decodes.

    Args:
        window: Is read from its beginning; where it has no `seek`, that is enough.
        part: What is known of it.
        track: Which sound track, from 0; None for the first one, with a warning where there are more.
        form: FFmpeg's name of the format. None: found out.
        step: Seconds of sound in a block, about.
        options: Further ones for FFmpeg.
        longest_gap: As for `decode`.
    """

    def __init__(
        self,
        window: Source,
        part: Part | None = None,
        *,
        track: int | None = None,
        form: str | None = None,
        step: float = 1.0,
        options: Mapping[str, str] | None = None,
        longest_gap: float = LONGEST_GAP,
    ) -> None:
        import av

        if isinstance(window, Window):
            window.seek(0)
        part = part or Part(())
        self.start = 0.0
        self._window, self._part, self._step, self._longest_gap = window, part, step, longest_gap
        # Tags need not be UTF-8; from its version 19 on PyAV does not mind.
        ways: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
        if part.kind == "mp3":
            form = "mp3"  # a single frame is too little to know it by
        # Without a protocol, FFmpeg opens nothing but the file object.
        container: Any = av.open(window, format=form, options={"protocol_whitelist": "none", **(options or {})}, **ways)
        self._container = container
        self.warnings: list[str] = []
        try:
            window.check()
            streams = self._container.streams.audio
            if not streams:
                kinds = sorted({stream.type for stream in self._container.streams})
                raise AudioError(f"there is no sound in it, only {' and '.join(kinds) or 'nothing'}")
            if track is not None and track >= len(streams):
                has = f"{len(streams)} tracks, 0 to {len(streams) - 1}" if len(streams) > 1 else "one track, 0"
                raise AudioError(f"there is no track {track}: the file has {has}")
            if track is None and len(streams) > 1:
                self.warnings.append(f"it has {len(streams)} sound tracks: the first one is used, see track=")
            self._stream = streams[track or 0]
            codec = self._stream.codec_context
            if codec is None:
                raise AudioError("cannot be decoded (FFmpeg: no decoder for the codec that it names)")
            if (
                codec.name == "alac"
            ):  # its packets are as long as they are; FFmpeg would cut a CAF file's last one twice
                codec.flags2 |= _SKIP_MANUAL
            self.rate = int(codec.sample_rate or 0)
            self.channels = int(codec.channels or 0)
            if not self.rate or not self.channels:
                raise AudioError(f"cannot be decoded (FFmpeg: no parameters of codec {codec.name!r} were found)")
            self._family = str(self._container.format.name)
            self._origin = (self._container.start_time or 0) / av.time_base
            self.duration: float | None = (self._container.duration or 0) / av.time_base or None
            if self._stream.duration is not None and self._stream.time_base is not None:
                end = (self._stream.start_time or 0) + self._stream.duration
                self.duration = float(end * self._stream.time_base) - self._origin
            if part.kind == "mp3":
                self.duration = part.seconds
        except BaseException:
            self._container.close()
            raise

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """As a `Decoder`'s."""
        clock = _Clock(self._origin, self._family, self._longest_gap)
        heard = 0.0  # seconds, with what is held
        held: list[Block] = []
        rate, count = self.rate, 0
        for frame in self._frames():
            block = _samples(frame)
            if held and (frame.sample_rate != rate or block.shape[1] != held[0].shape[1] or count >= rate * self._step):
                yield rate, np.concatenate(held)
                held, count = [], 0
            rate = frame.sample_rate
            missing = round(clock.gap(frame, heard) * rate)
            heard += missing / rate
            while missing:
                size = min(missing, BLOCK_FRAMES, 4 * rate)
                yield rate, np.concatenate([*held, np.zeros((size, block.shape[1]), np.float32)])
                held, count = [], 0
                missing -= size
            held.append(block)
            count += len(block)
            heard += len(block) / rate
        if held:
            block, beyond = np.concatenate(held), 0
            if self._part.kind == "ogg" and self._part.seconds:  # FFmpeg gives the last packet of Vorbis as a whole
                beyond = round((heard + self._origin - self._part.seconds) * rate)
            yield rate, block[: len(block) - beyond] if 0 < beyond < len(held[-1]) else block
        self.warnings += clock.sentences(self.start)
        promised = self._part.promised if self._part.kind == "mp3" else self.duration if self._is_written() else None
        if promised is not None and promised - heard > (0.1 if self._part.kind == "mp3" else 0.5):
            self.warnings.append(cut_short(promised, heard))

    def close(self) -> None:
        """As a `Decoder`'s."""
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
                    self._window.check()
                    self.warnings.append(f"it cannot be read to its end (FFmpeg: {error.strerror})")
                    packet = None
                except IndexError:  # at the file's end PyAV looks for a stream that has begun after its opening
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
            self._window.check()
            if broken:
                self.warnings.append(
                    f"{broken} of {total} packets cannot be decoded (FFmpeg: {reason}): silence or "
                    "nothing stands for them"
                )

    def _is_written(self) -> bool:
        """Whether the duration of the sound stands in the file, and is not guessed from its size and its bit rate."""
        return "mp4" in self._family or ("matroska" in self._family and len(self._container.streams) == 1)


class _Clock:
    """Where FFmpeg's frames belong, by the times that stand in the file.

    Args:
        origin: What the file calls its beginning, in seconds.
        family: FFmpeg's name of the format.
        longest: Seconds that silence stands for.
    """

    def __init__(self, origin: float, family: str, longest: float) -> None:
        self._origin = origin
        self._has_times = family not in _WITHOUT_TIMES
        self._longest = min(longest, _LONGEST_GAP_OF_BROADCASTS) if family in _BROADCASTS else longest
        self._holes: list[tuple[float, float]] = []  # where, and how long
        self._jumps: list[tuple[float, float]] = []

    def gap(self, frame: Any, heard: float) -> float:
        """Seconds of silence that stand before a frame, after so many seconds of sound."""
        if frame.pts is None or not self._has_times:
            return 0.0
        ahead = float(frame.pts * frame.time_base) - self._origin - heard
        if abs(ahead) <= _HOLE:
            return 0.0
        if 0 < ahead <= self._longest:
            if heard > _BEGUN and ahead > _TOLD:
                self._holes.append((heard, ahead))
            return ahead
        self._origin += ahead
        self._jumps.append((heard, ahead))
        return 0.0

    def sentences(self, start: float) -> Iterator[str]:
        """What is odd about the times, of a part that begins so many seconds into the file."""
        if self._holes:
            where, total = start + self._holes[0][0], sum(length for _, length in self._holes)
            one = len(self._holes) == 1
            yield (
                f"{total:.2f} s of sound are missing at {where:.2f} s: silence stands for them" if one else
                f"{total:.2f} s of sound are missing in {len(self._holes)} places, the first at {where:.2f} s: silence "
                "stands for them"
            )  # fmt: skip
        for where, length in self._jumps[:1]:
            more = f", and {len(self._jumps) - 1} more times" if len(self._jumps) > 1 else ""
            yield (
                f"its clock jumps by {length:+.2f} s at {start + where:.2f} s{more}: what follows is taken as if it "
                "followed at once, so times may be wrong from there on"
            )


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

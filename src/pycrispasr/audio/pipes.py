"""Audio as it comes out of a pipe: raw samples, samples behind a WAV header, or what FFmpeg decodes.

What it is shows in its first bytes. Nothing is sought, and nothing waits for more than the next few of them.
"""

from __future__ import annotations

import contextlib
import io
import select
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from pycrispasr.audio import containers
from pycrispasr.audio.decoders import MAX_CHANNELS, Block, Decoder, FFmpeg, has_ffmpeg, libsndfile
from pycrispasr.errors import AudioError, UsageError

FORMATS = {
    "s8": ("PCM_S8", 1, "FILE"), "u8": ("PCM_U8", 1, "FILE"),
    "s16le": ("PCM_16", 2, "LITTLE"), "s16be": ("PCM_16", 2, "BIG"),
    "s24le": ("PCM_24", 3, "LITTLE"), "s24be": ("PCM_24", 3, "BIG"),
    "s32le": ("PCM_32", 4, "LITTLE"), "s32be": ("PCM_32", 4, "BIG"),
    "f32le": ("FLOAT", 4, "LITTLE"), "f32be": ("FLOAT", 4, "BIG"),
    "f64le": ("DOUBLE", 8, "LITTLE"), "f64be": ("DOUBLE", 8, "BIG"),
    "mulaw": ("ULAW", 1, "FILE"), "alaw": ("ALAW", 1, "FILE"),
}  # fmt: skip
"""Raw samples, by FFmpeg's names: libsndfile's name, bytes of a sample, and their order."""

_BLOCK = 0.1  # seconds that are read at once
_WAV = {  # by format code and bits of a sample
    (1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le",
    (6, 8): "alaw", (7, 8): "mulaw",
}  # fmt: skip
_EXTENSIBLE = 0xFFFE
_LOOK = 8192  # bytes in which frames of MP3, AAC or a transport stream must follow each other
_MAGIC = {  # FFmpeg's name of a format, by its first bytes
    b"OggS": "ogg", b"fLaC": "flac", b"\x1a\x45\xdf\xa3": "matroska,webm", b".snd": "au", b"caff": "caf",
    b"ID3": "mp3", b"#!AMR": "amr", b"FLV\1": "flv", b"riff": "w64", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x0b\x77": "ac3", b"ADIF": "aac", b"wvpk": "wv",
}  # fmt: skip


class Pipe:
    """A file object that is read once from its beginning, of which the first bytes can be looked at.

    FFmpeg reads from it, through C, where nothing may be raised: `check` does so later.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._held = b""
        self._error: BaseException | None = None

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay unread: so many, or as many as there are."""
        while len(self._held) < size and (more := self._more(size - len(self._held))):
            self._held += more
        return self._held[:size]

    def read(self, size: int) -> bytes:
        """The next bytes: at least one, as many as have come, none at the end."""
        if not self._held:
            return self._more(size)
        content, self._held = self._held[:size], self._held[size:]
        return content

    def check(self) -> None:
        """Raises what a read has run into."""
        if self._error:
            raise self._error

    def _more(self, size: int) -> bytes:
        try:
            while (content := cast("bytes | None", self._stream.read(size))) is None:  # it was set not to block
                select.select([self._stream], [], [])
        except OSError as error:
            self._error = error
        except ValueError:  # it was closed
            pass
        else:
            return content
        return b""


def decode(stream: BinaryIO, *, form: str | None, sample_rate: int | None, channels: int | None) -> Decoder:
    """Begins to decode a stream.

    Args:
        stream: A binary file object whose reads give what is there. It stays open.
        form: One of `FORMATS`; None: what the first bytes tell, and "s16le" where they tell nothing.
        sample_rate: Samples per second of raw samples. None: 16000.
        channels: Of raw samples. None: 1.

    Raises:
        AudioError: The format is known, and cannot be decoded here.
        UsageError: There is no such `form`, or there cannot be so many channels.
    """
    check(form, channels)
    pipe = Pipe(stream)
    kind = _recognise(pipe) if form is None else None
    if kind == "wav":
        with contextlib.suppress(_OtherCodecError):
            return _Wav(pipe)
    if kind is None:
        return _Samples(pipe, form or "s16le", sample_rate or 16000, channels or 1)
    if not has_ffmpeg():
        raise AudioError(f"it is {kind}, for which PyAV is needed: pip install 'pycrispasr[av]'")
    import av

    try:
        return FFmpeg(pipe, form=kind, step=_BLOCK, options={"analyzeduration": "1000000"})
    except av.error.FFmpegError as error:
        raise AudioError(f"it is {kind}, but cannot be decoded (FFmpeg: {error.strerror})") from None


def check(form: str | None, channels: int | None) -> None:
    """Refuses what `decode` cannot take.

    Raises:
        UsageError: There is no such `form`, or there cannot be so many channels.
    """
    if form is not None and form not in FORMATS:
        raise UsageError(f"there is no format {form!r}: choose one of {', '.join(FORMATS)}")
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise UsageError(f"channels cannot be {channels}: from 1 to {MAX_CHANNELS}")


def _recognise(pipe: Pipe) -> str | None:
    """FFmpeg's name of the format; None where the bytes may be samples."""
    head = pipe.peek(12)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        return "avi"
    if head[4:8] == b"ftyp":
        return "mov,mp4,m4a,3gp,3g2,mj2"
    for magic, name in _MAGIC.items():
        if head.startswith(magic) and (name != "ac3" or _is_row(pipe, _ac3_length)):
            return name
    if head[:1] == b"\xff" and len(head) == 12:  # samples can begin like that, too
        if containers.is_mp3(pipe.peek(_LOOK)):
            return "mp3"
        if _is_row(pipe, _adts_length):
            return "aac"
    if head[:1] == b"\x47" and _is_row(pipe, lambda packet: 188 if packet[0] == 0x47 else 0):
        return "mpegts"
    return None


def _is_row(pipe: Pipe, length_of: Callable[[bytes], int]) -> bool:
    """Whether three frames follow each other, each as long as it tells."""
    content, place = pipe.peek(_LOOK), 0
    for _ in range(3):
        frame = content[place : place + 8]
        length = length_of(frame) if len(frame) == 8 else 0
        if not length:
            return False
        place += length
    return True


def _adts_length(frame: bytes) -> int:
    """Bytes of a frame of AAC (ISO/IEC 13818-7, 6.2), 0 where it is none."""
    if frame[0] != 0xFF or frame[1] & 0xF6 != 0xF0 or frame[2] >> 2 & 15 > 12:
        return 0
    return (frame[3] & 3) << 11 | frame[4] << 3 | frame[5] >> 5


def _ac3_length(frame: bytes) -> int:
    """Bytes of a frame of AC-3 at 48 kHz (ATSC A/52, table 5.18), 0 where it is none."""
    kbps = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
    rate, size = frame[4] >> 6, frame[4] & 63
    if frame[:2] != b"\x0b\x77" or rate == 3 or size >= 2 * len(kbps):
        return 0
    hertz = (48000, 44100, 32000)[rate]
    return 2 * (kbps[size // 2] * 96000 // hertz + (size & 1 if rate == 1 else 0))


class _Samples:
    """Raw samples."""

    def __init__(self, pipe: Pipe, form: str, rate: int, channels: int) -> None:
        self.start = 0.0
        self.duration: float | None = None
        self.warnings: list[str] = []
        self.rate, self.channels = rate, channels
        self._pipe, self._form = pipe, form
        self._frame = FORMATS[form][1] * channels  # bytes

    def blocks(self) -> Iterator[tuple[int, Block]]:
        came = 0
        for rate, block in self._read():
            came += len(block)
            yield rate, block
        if not came:
            raise AudioError("no audio came")

    def _read(self) -> Iterator[tuple[int, Block]]:
        return self._blocks(None)

    def close(self) -> None:
        pass

    def _blocks(self, size: int | None) -> Iterator[tuple[int, Block]]:
        """So many bytes of samples, or all."""
        soundfile = libsndfile()

        subtype, _, order = FORMATS[self._form]
        held = b""
        step = max(1, round(_BLOCK * self.rate)) * self._frame
        while size is None or size > 0:
            content = self._pipe.read(step if size is None else min(step, size))
            self._pipe.check()
            if not content:
                break
            if size is not None:
                size -= len(content)
            held += content
            whole = len(held) // self._frame * self._frame
            if whole:
                block, _ = soundfile.read(
                    io.BytesIO(held[:whole]), dtype="float32", always_2d=True, format="RAW", subtype=subtype,
                    endian=order, samplerate=self.rate, channels=self.channels,
                )  # fmt: skip
                held = held[whole:]
                yield self.rate, block


class _OtherCodecError(Exception):
    """A WAV file holds something else than samples."""


class _Wav(_Samples):
    """Samples behind a WAV header; one such file may follow another."""

    def __init__(self, pipe: Pipe) -> None:
        head = 4096
        while (found := _wav_header(pipe.peek(head))) is None and len(pipe.peek(2 * head)) > head:
            head *= 2
        if found is None:
            raise _OtherCodecError
        self._skip, self._size, form, rate, channels = found
        super().__init__(pipe, form, rate, channels)

    def _read(self) -> Iterator[tuple[int, Block]]:
        seconds = 0.0
        while True:
            self._pass(self._skip)
            for rate, block in self._blocks(self._size):
                seconds += len(block) / rate
                yield rate, block
            self._pass(0 if self._size is None else self._size % 2)
            # Behind the samples: chunks that describe them, another file, or more samples than the header announces.
            while (head := self._pipe.peek(12)) and (length := _described(head)):
                self._pass(length)
            if head[:4] == b"RIFF":
                try:
                    following = _Wav(self._pipe)
                except _OtherCodecError:
                    return
                self._skip, self._size, self._form = following._skip, following._size, following._form
                self.rate, self.channels, self._frame = following.rate, following.channels, following._frame
                continue
            if head:
                self.warnings.append(
                    f"its header tells of {seconds:.2f} s, but the samples go on: they are read to their end"
                )
                yield from self._blocks(None)
            return

    def _pass(self, size: int) -> None:
        while size > 0 and (content := self._pipe.read(min(size, 1 << 16))):
            size -= len(content)


def _described(head: bytes) -> int:
    """Bytes of a chunk that is no file of its own and holds no samples; 0 where there is none."""
    if len(head) < 8 or head[:4] in (b"RIFF", b"data") or not all(32 <= byte < 127 for byte in head[:4]):
        return 0
    length = int.from_bytes(head[4:8], "little")
    return 8 + length + length % 2 if length < 1 << 24 else 0


def _wav_header(head: bytes) -> tuple[int, int | None, str, int, int] | None:
    """Of a WAV file: where its samples begin, how many bytes they are if that is known, their format, rate, channels.

    None where more of the file is needed to tell.

    Raises:
        _OtherCodecError: It holds something else than samples.
    """
    place, long_size = 12, None
    form, rate, channels = "", 0, 0
    while place + 8 <= len(head):
        name, size = head[place : place + 4], int.from_bytes(head[place + 4 : place + 8], "little")
        content = head[place + 8 : place + 8 + min(size, 64)]
        if name == b"data":
            if not form:
                raise _OtherCodecError
            if size == 0xFFFFFFFF and long_size:
                size = long_size
            elif not size or size >= containers.STREAMED:
                return place + 8, None, form, rate, channels
            return place + 8, size, form, rate, channels
        if name == b"fmt " and len(content) >= 16:
            code, bits = (int.from_bytes(content[at : at + 2], "little") for at in (0, 14))
            if code == _EXTENSIBLE and len(content) >= 26:
                code = int.from_bytes(content[24:26], "little")
            form = _WAV.get((code, bits), "")
            channels = int.from_bytes(content[2:4], "little")
            rate = int.from_bytes(content[4:8], "little")
            if not form or not 1 <= channels <= MAX_CHANNELS:
                raise _OtherCodecError
        elif name == b"ds64":
            long_size = int.from_bytes(content[8:16], "little")
        place += 8 + size + size % 2
    return None

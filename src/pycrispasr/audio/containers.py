"""What the bytes of a sound file tell before anything is decoded: the parts it consists of, and sizes that are wrong.

Recordings are joined by putting one file behind another. Decoders stop at the first one's end, or run its clock on
into the second one. So a file is taken apart here, and each part is decoded by itself: MP3 frames with tags or rubbish
between them, links of a chained OGG file, WAV, AIFF, AU and FLAC files, concatenated. Every other file is one part.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import io
import itertools
import math
import re
import struct
from typing import BinaryIO, Literal

Range = tuple[int, int]
"""First byte, and the one behind the last."""

Order = Literal["little", "big"]

Kind = Literal["mp3", "ogg", "unknown mpeg", "other"]

_BLOCK = 1 << 20  # bytes that are looked at at once
_BACK = 1 << 13  # bytes before these that are kept: a few frames of MPEG audio
_MAX_PART = 1 << 30  # bytes of samples that one header describes here: fields of 32 bits hold four times as many
_GOES_ON = 0.1  # seconds of samples behind the end that a header tells: less may be padding
STREAMED = 0x7FFFF000
"""Sizes from here on are what writers to a pipe put where they cannot know."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of a file that one decoder reads from its beginning to its end.

    Attributes:
        ranges: Its bytes in the file.
        kind: "mp3": frames of MPEG audio and nothing else. "ogg": one link. "unknown mpeg": something else that begins
            as MPEG audio does, such as AAC.
        seconds: Its length, or None where only decoding tells it. Of a link of Vorbis, where it ends on its clock.
        promised: The length that its header tells, where that is no estimate; only for MP3.
        patches: Bytes to be read in the place of those that are there, by place in the file.
        warnings: What is odd, in sentences.
    """

    ranges: tuple[Range, ...]
    kind: Kind = "other"
    seconds: float | None = None
    promised: float | None = None
    patches: tuple[tuple[int, bytes], ...] = ()
    warnings: tuple[str, ...] = ()


class Window:
    """Some of a file's bytes as a file of its own, in the form that both libraries take.

    They call it from C, where nothing may be raised: `check` does so later. It has no name on purpose: by some names
    they would take any bytes for samples.

    Args:
        file: A seekable file object.
        part: Which bytes; None for all.
    """

    def __init__(self, file: BinaryIO, part: Part | None = None) -> None:
        self._file = file
        self._error: BaseException | None = None
        self._patches = part.patches if part else ()
        self._ranges: tuple[Range, ...] = part.ranges if part else ((0, size_of(file)),)
        self._ends = list(itertools.accumulate(end - begin for begin, end in self._ranges))  # in the window
        self._place = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes, none after an error."""
        whole = self._ends[-1] if self._ends else 0
        left = whole - self._place if size is None or size < 0 else min(size, whole - self._place)
        pieces: list[bytes] = []
        try:
            while left > 0 and not self._error:
                index = bisect.bisect_right(self._ends, self._place)
                end = self._ranges[index][1]
                place = end - (self._ends[index] - self._place)
                piece = _read(self._file, place, min(left, end - place))
                if not piece:
                    break  # the file has become shorter
                pieces.append(self._patched(place, piece))
                self._place += len(piece)
                left -= len(piece)
        except BaseException as error:  # noqa: BLE001  raised by check()
            self._error = error
            return b""
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file's; a place before the beginning, where damaged files may lead, is not gone to."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1] if self._ends else 0}[whence]
        if base + offset >= 0:
            self._place = base + offset
        return self._place

    def tell(self) -> int:
        """As a file's."""
        return self._place

    def check(self) -> None:
        """Raises what a read has run into."""
        if self._error:
            raise self._error

    def _patched(self, place: int, content: bytes) -> bytes:
        changed = bytearray(content)
        for at, patch in self._patches:
            for i, byte in enumerate(patch, at - place):
                if 0 <= i < len(changed):
                    changed[i] = byte
        return bytes(changed)


def size_of(file: BinaryIO) -> int:
    """Bytes in a seekable file."""
    file.seek(0, io.SEEK_END)
    return file.tell()


def parts(file: BinaryIO) -> list[Part]:
    """The parts of a seekable file, at least one."""
    size = size_of(file)
    begin = _behind_id3(file, 0)
    head = _read(file, begin, 12)
    whole = ((begin, size),)
    found: list[Part] = []
    if head[:4] == b"OggS":
        found = _ogg(file, begin, size)
    elif head[:4] == b"fLaC":
        found = _flac(file, begin, size)
    elif _is_riff(head) or _is_aiff(head) or head[:4] in (b".snd", b"dns."):
        found = _samples(file, begin, size)
    elif begin or _is_sync(head):
        found = _mp3(file, begin, size) or [Part(((0, size),), "unknown mpeg")]
    return found or [Part(whole)]


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size) or b""


# ---- Samples behind a header: RIFF (WAV, RF64, BW64), AIFF, AU ------------------------------------------------------


def _is_riff(head: bytes) -> bool:
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def _is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")


def _samples(file: BinaryIO, begin: int, size: int) -> list[Part]:
    """Concatenated files of samples. A size that is plainly too small is corrected."""
    found: list[Part] = []
    while begin < size:
        head = _read(file, begin, 12)
        if _is_riff(head) or _is_aiff(head):
            more, begin = _chunked(file, begin, size, "little" if _is_riff(head) else "big")
        elif head[:4] in (b".snd", b"dns."):
            more, begin = _au(file, begin, size)
        else:
            break
        found += more
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Header:
    begin: int  # of the file
    samples: int  # where they begin
    fields: tuple[tuple[int, int, int], ...]  # that tell how many bytes these are: place, length, what is added to it
    frames_at: int | None  # a field of 4 bytes that tells how many frames they are
    order: Order
    frame: int  # bytes
    per_second: float  # bytes

    def parts(self, told: int, length: int, stop: int) -> list[Part]:
        """The file with another length of its samples: several parts, where one header cannot tell of so many."""
        longest = _MAX_PART // self.frame * self.frame
        warnings: tuple[str, ...] = ()
        if told and told < STREAMED and self.per_second > 0:
            warnings = (
                f"its header tells of {told / self.per_second:.2f} s, but the samples go on: "
                f"{length / self.per_second:.2f} s are read",
            )
        ranges: list[tuple[Range, ...]]
        if length <= longest:
            ranges = [((self.begin, stop),)]
        else:
            cuts = [*range(self.samples, self.samples + length, longest), self.samples + length]
            ranges = [((self.begin, self.samples), piece) for piece in itertools.pairwise(cuts)]
        found = []
        for each in ranges:
            count = min(length, longest, each[-1][1] - max(each[-1][0], self.samples))
            patches = [(at, (count + more).to_bytes(width, self.order)) for at, width, more in self.fields]
            if self.frames_at is not None:
                patches.append((self.frames_at, (count // self.frame).to_bytes(4, self.order)))
            found.append(Part(each, patches=tuple(patches), warnings=warnings))
        return found


def _chunked(file: BinaryIO, begin: int, size: int, order: Order) -> tuple[list[Part], int]:
    """A WAV or AIFF file, and where it ends or another one begins."""
    place, long_size, per_second = begin + 12, 0, 0.0  # of the chunk; of RF64's samples; bytes
    fields: tuple[tuple[int, int, int], ...] = ()
    frame, frames_at = 1, None
    while len(head := _read(file, place, 8)) == 8:
        name, told = head[:4], int.from_bytes(head[4:], order)
        content = place + 8
        if name == b"fmt ":
            _, _, _, per_second, frame = struct.unpack("<HHIIH", _read(file, content, 14).ljust(14, b"\0"))
        elif name == b"COMM":
            comm = _read(file, content, 18).ljust(18, b"\0")
            channels, _, bits = struct.unpack(">HIH", comm[:8])
            frame = channels * ((bits + 7) // 8)
            per_second, frames_at = frame * _extended(comm[8:18]), content + 2
        elif name == b"ds64":
            long_size = int.from_bytes(_read(file, content + 8, 8), "little")
            fields = ((content + 8, 8, 0),)
        elif name in (b"data", b"SSND"):
            if told == 0xFFFFFFFF and long_size:
                told = long_size
            else:
                fields = ((place + 4, 4, 8 if name == b"SSND" else 0),)
            if name == b"SSND":  # two fields stand before the samples
                told, content = max(0, told - 8), content + 8
            header = _Header(begin, content, fields, frames_at, order, max(1, frame), per_second)
            return _sized(file, header, told, size)
        place = content + told + told % 2
    return [Part(((begin, size),))], size


def _sized(file: BinaryIO, header: _Header, told: int, size: int) -> tuple[list[Part], int]:
    """A file whose header announces so many bytes of samples, and where it ends."""
    content, whole = header.samples, [Part(((header.begin, size),))]
    if told == 0 or told >= STREAMED:  # a pipe's writer never filled it in
        is_empty = content >= size or (told == 0 and _is_chunk(file, content, size, header.order))
        if is_empty or (told and size - content <= _MAX_PART):
            return whole, size
        return header.parts(told, size - content, size), size
    if content + told >= size or header.per_second <= 0:
        return whole, size
    for end in range(content + told, size, 1 << 32):  # a field of 32 bits that has overflowed
        stop = _behind_chunks(file, end + (end - content) % 2, size, header.order)
        if stop is not None:
            if end == content + told:
                return [Part(((header.begin, stop),))], stop
            return header.parts(told, end - content, stop), stop
    if size - content - told < _GOES_ON * header.per_second:
        return whole, size
    return header.parts(told, size - content, size), size


def _is_chunk(file: BinaryIO, place: int, size: int, order: Order) -> bool:
    """Whether a chunk of plausible name and size begins there, rather than samples."""
    header = _read(file, place, 8)
    if len(header) < 8 or not all(32 <= byte < 127 for byte in header[:4]):
        return False
    return place + 8 + int.from_bytes(header[4:], order) <= size


def _behind_chunks(file: BinaryIO, place: int, size: int, order: Order) -> int | None:
    """Where the chunks that begin here end: at the end of the file, or at the beginning of another one; else None."""
    first = place
    while place < size:
        head = _read(file, place, 12)
        if _is_riff(head) or _is_aiff(head) or head[:4] == b".snd":
            return place
        if head.startswith((b"ID3", b"TAG")):
            return size
        if not _is_chunk(file, place, size, order):
            return None if place == first else size
        length = int.from_bytes(head[4:8], order)
        place += 8 + length + length % 2
    return size


def _au(file: BinaryIO, begin: int, size: int) -> tuple[list[Part], int]:
    """An AU file, and where it ends or another one begins."""
    order: Order = "big" if _read(file, begin, 1) == b"." else "little"
    offset, told, encoding, rate, channels = (int.from_bytes(_read(file, begin + 4 * i, 4), order) for i in range(1, 6))
    frame = channels * {3: 2, 4: 3, 5: 4, 6: 4, 7: 8}.get(encoding, 1)
    end = begin + offset + told
    if begin + 24 <= end < size and _read(file, end, 4) in (b".snd", b"dns."):
        return [Part(((begin, end),))], end
    header = _Header(begin, begin + offset, ((begin + 8, 4, 0),), None, order, max(1, frame), rate * frame)
    is_sound = told == 0xFFFFFFFF or end >= size or size - end < _GOES_ON * header.per_second
    return ([Part(((begin, size),))] if is_sound else header.parts(told, size - begin - offset, size)), size


def _extended(content: bytes) -> float:
    """A number of 80 bits, as AIFF tells its rate."""
    exponent, mantissa = struct.unpack(">HQ", content)
    shift = (exponent & 0x7FFF) - 16383 - 63
    return mantissa * 2.0**shift if -200 < shift < 200 else 0.0


# ---- FLAC and OGG ----------------------------------------------------------------------------------------------------


def _flac(file: BinaryIO, begin: int, size: int) -> list[Part]:
    """Concatenated FLAC files: each begins with its marker and the block that describes it."""
    starts = [begin]
    markers = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
    for place in range(begin + 4, size, _BLOCK):
        content = _read(file, place, _BLOCK + 7)  # one may lie across the blocks' border
        for marker in markers:
            at = -1
            while (at := content.find(marker, at + 1)) >= 0:
                starts.append(place + at)
    found = []
    for first, last in itertools.pairwise([*sorted(set(starts)), size]):
        # ID3v1, in which libFLAC would look for frames.
        is_tagged = last - first > 128 and _read(file, last - 128, 3) == b"TAG"
        found.append(Part(((first, last - 128 if is_tagged else last),)))
    return found


def _ogg(file: BinaryIO, begin: int, size: int) -> list[Part]:
    """The links of a chained file: each begins with the first pages of its streams."""
    starts, ends = [begin], [(0, 0)]  # the ends in samples, with the samples per second
    place, was_first = begin, True
    while place < size:
        header = _read(file, place, 27)
        if header[:4] != b"OggS" or len(header) < 27:
            place = _find(file, b"OggS", place + 1, size)
            continue
        lengths = _read(file, place + 27, header[26])
        is_first = bool(header[5] & 2)
        if is_first:
            if not was_first:
                starts.append(place)
                ends.append((0, 0))
            content = _read(file, place + 27 + len(lengths), 16)
            is_vorbis = content[:7] == b"\1vorbis"
            ends[-1] = 0, int.from_bytes(content[12:16], "little") if is_vorbis else 0
        position = int.from_bytes(header[6:14], "little", signed=True)
        if position >= 0:
            ends[-1] = position, ends[-1][1]
        was_first = is_first
        place += 27 + len(lengths) + sum(lengths)
    return [
        Part(((first, last),), "ogg", seconds=position / rate if rate and position else None)
        for (first, last), (position, rate) in zip(itertools.pairwise([*starts, size]), ends, strict=True)
    ]


def _find(file: BinaryIO, wanted: bytes, place: int, size: int) -> int:
    """Where some bytes stand next, or the end of the file."""
    while place < size:
        content = _read(file, place, _BLOCK + len(wanted) - 1)
        if not content:
            break
        if (at := content.find(wanted)) >= 0:
            return place + at
        place += _BLOCK
    return size


# ---- MPEG audio ------------------------------------------------------------------------------------------------------

_KBPS = {  # by layer, in MPEG 1 and in MPEG 2
    (1, True): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (2, True): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, True): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (1, False): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, False): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (3, False): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_CHAIN = 3  # consecutive frames that are no accident


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    length: int  # bytes
    samples: int
    rate: int
    form: int  # the bits of the header that are the same in all frames of a recording
    info: int  # where the first frame of a recording may hold a description of it


@functools.lru_cache(maxsize=4096)
def _frame(header: int) -> _Frame | None:
    """What the 4 bytes before a frame tell (ISO/IEC 11172-3, 2.4.2.3), or None where they are no such header."""
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bit_rate, rate, padding, is_mono = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1, header >> 6 & 3 == 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_one = version == 3
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = _KBPS[layer, is_one][bit_rate] * 1000
    if layer == 1:
        samples, length = 384, (12 * bits // hertz + padding) * 4
    else:
        samples = 1152 if is_one or layer == 2 else 576
        length = samples // 8 * bits // hertz + padding
    info = 4 + ((17 if is_mono else 32) if is_one else (9 if is_mono else 17))
    return _Frame(length, samples, hertz, header & 0xFFFE0C00 | is_mono, info)


def _is_sync(head: bytes) -> bool:
    return len(head) >= 2 and head[0] == 0xFF and head[1] >= 0xE0


class _Bytes:
    """Random access to a file's bytes, mostly forwards."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file, self._begin, self._held = file, 0, b""

    def get(self, place: int, count: int) -> bytes:
        offset = place - self._begin
        if offset < 0 or offset + count > len(self._held):
            self._begin = max(0, place - _BACK)
            offset = place - self._begin
            self._held = _read(self._file, self._begin, offset + max(_BLOCK, count))
        return self._held[offset : offset + count]

    def frame(self, place: int) -> _Frame | None:
        header = self.get(place, 4)
        return _frame(int.from_bytes(header, "big")) if len(header) == 4 else None

    def chain(self, place: int, form: int | None = None) -> bool:
        """Whether several frames of one form follow each other here, or as many as there is room for."""
        for _ in range(_CHAIN):
            if place >= self.size or self.get(place, 3) in (b"ID3", b"TAG", b"APE"):
                return form is not None
            frame = self.frame(place)
            if frame is None or (form is not None and frame.form != form):
                return False
            form, place = frame.form, place + frame.length
        return True


@dataclasses.dataclass(slots=True)
class _Run:
    """Frames of one form, perhaps with something else between them."""

    form: int
    rate: int
    ranges: list[Range]
    samples: int = 0
    told: int | None = None  # samples that its description announces, with those that an encoder adds
    promised: float | None = None
    patches: tuple[tuple[int, bytes], ...] = ()
    warnings: list[str] = dataclasses.field(default_factory=list)


def _mp3(file: BinaryIO, begin: int, size: int) -> list[Part]:
    """Runs of frames, without the tags and the rubbish between them; nothing where this is no MPEG audio."""
    content = _Bytes(file, size)
    place = begin if content.chain(begin) else _next_chain(content, begin + 1, min(size, begin + 8 * _BLOCK))
    runs: list[_Run] = []
    seconds = 0.0  # before the last run
    junk = 0  # bytes since the last frame
    while place < size:
        frame = content.frame(place)
        last = runs[-1] if runs else None
        if frame is None or (last and frame.form != last.form and not content.chain(place)):
            skipped = _behind_tags(file, place, size)
            if skipped == place:
                skipped = _next_chain(content, place + 1, size)
                junk += 0 if not content.get(place, min(skipped - place, 64)).strip(b"\0") else skipped - place
            place = skipped
            continue
        if place + frame.length > size:
            break  # cut off
        described = _described(content, place, frame)
        is_over = last is not None and last.told is not None and last.samples >= last.told
        if last is None or frame.form != last.form or described or is_over:
            if last:
                seconds += last.samples / last.rate
            last = _Run(frame.form, frame.rate, [])
            runs.append(last)
            if described:
                last.told, last.promised = described
        if junk and (last.samples or len(runs) > 1):
            at = seconds + last.samples / last.rate
            last.warnings.append(f"it is damaged at {at:.2f} s: {junk} bytes there are no MP3")
        junk = 0
        end = place + frame.length
        if last.ranges and last.ranges[-1][1] == place:
            last.ranges[-1] = last.ranges[-1][0], end
        else:
            last.ranges.append((place, end))
        last.samples += 0 if described else frame.samples
        place = end
    return [
        Part(
            tuple(run.ranges),
            "mp3",
            seconds=min(run.samples / run.rate, run.promised or math.inf),
            promised=run.promised,
            patches=_true_size(content, run),
            warnings=tuple(run.warnings),
        )
        for run in runs
        if run.samples
    ]


def is_mp3(head: bytes) -> bool:
    """Whether frames of MPEG audio follow each other from the first byte on."""
    content = _Bytes(io.BytesIO(head), len(head))
    place, form = 0, None
    for _ in range(_CHAIN):
        frame = content.frame(place)
        if frame is None or (form is not None and frame.form != form):
            return False
        form, place = frame.form, place + frame.length
    return True


def _next_chain(content: _Bytes, place: int, stop: int) -> int:
    """Where frames follow each other next, or `stop`."""
    while place < stop:
        block = content.get(place, min(_BLOCK, stop - place) + 1)
        for sync in re.finditer(rb"\xff[\xe0-\xff]", block):
            if content.chain(place + sync.start()):
                return place + sync.start()
        place += _BLOCK
    return stop


def _behind_id3(file: BinaryIO, place: int) -> int:
    """The first byte behind the ID3v2 tags that begin here (https://id3.org/id3v2.4.0-structure)."""
    while len(header := _read(file, place, 10)) == 10 and header.startswith(b"ID3") and max(header[6:]) < 128:
        length = functools.reduce(lambda total, byte: total << 7 | byte, header[6:], 0)
        place += 10 + length + (10 if header[5] & 0x10 else 0)
    return place


def _behind_tags(file: BinaryIO, place: int, size: int) -> int:
    """The first byte behind tags of any kind that begin here; `place` where there are none."""
    head = _read(file, place, 32)
    if head.startswith(b"ID3"):
        return min(size, _behind_id3(file, place))
    if head.startswith(b"TAG"):
        return min(size, place + 128)
    if head.startswith(b"APETAGEX") and len(head) == 32:
        length, flags = int.from_bytes(head[12:16], "little"), int.from_bytes(head[20:24], "little")
        return min(size, place + 32 + (length if flags & 0x20000000 else 0))
    return place


def _described(content: _Bytes, place: int, frame: _Frame) -> tuple[int | None, float | None] | None:
    """For a frame that describes its recording instead of holding sound: the samples and the seconds that it announces.

    The seconds are without what an encoder has added. None for any other frame.
    """
    if frame.form >> 17 & 3 != 1:  # layer III
        return None
    tag = content.get(place + frame.info, 16)
    if tag[:4] in (b"Xing", b"Info"):
        flags = int.from_bytes(tag[4:8], "big")
        if not flags & 1:
            return None, None
        told = samples = int.from_bytes(tag[8:12], "big") * frame.samples
        lame = place + frame.info + 8 + sum(length for bit, length in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
        if content.get(lame, 4) in (b"LAME", b"Lavc", b"Lavf"):  # how many of these are an encoder's own
            silent = int.from_bytes(content.get(lame + 21, 3), "big")
            samples -= (silent >> 12) + (silent & 0xFFF)
        return told, samples / frame.rate
    if content.get(place + 36, 4) == b"VBRI":
        told = int.from_bytes(content.get(place + 36 + 14, 4), "big") * frame.samples
        return told, told / frame.rate
    return None


def _true_size(content: _Bytes, run: _Run) -> tuple[tuple[int, bytes], ...]:
    """Lets the description of a recording tell its true size: libmpg123 prints a warning about any other one."""
    place = run.ranges[0][0] if run.ranges else 0
    frame = content.frame(place)
    if frame is None or content.get(place + frame.info, 4) not in (b"Xing", b"Info"):
        return ()
    flags = int.from_bytes(content.get(place + frame.info + 4, 4), "big")
    if not flags & 2:
        return ()
    length = sum(end - begin for begin, end in run.ranges)
    return ((place + frame.info + 8 + (4 if flags & 1 else 0), length.to_bytes(4, "big")),)

"""Files of sound in the forms that are found in the world, made with the libraries that read them."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def sndfile(sound: np.ndarray, rate: int, *, format: str = "WAV", subtype: str = "PCM_16") -> bytes:  # noqa: A002
    """A file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=format, subtype=subtype)
    return file.getvalue()


def ffmpeg(
    path: Path,
    sounds: list[np.ndarray],
    rate: int,
    *,
    codec: str = "aac",
    format: str | None = None,  # noqa: A002
    video: float = 0,
    delay: float = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """A file that FFmpeg writes, with a stream for each of the sounds, `[frames, channels]`, and seconds of a picture.

    The sound begins `delay` seconds after the picture.
    """
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        picture = container.add_stream("mpeg4", rate=10) if video else None
        if picture:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        streams = [container.add_stream(codec, rate=rate, layout=LAYOUTS[sound.shape[1]]) for sound in sounds]
        if picture:
            for index in range(round(video * 10)):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index % 256, np.uint8), "rgb24")
                container.mux(picture.encode(frame))
            container.mux(picture.encode())
        for stream, sound in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound.T, np.float32), format="fltp", layout=LAYOUTS[sound.shape[1]]
            )
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(delay * rate)
            context = stream.codec_context
            resampler = av.AudioResampler(context.format, context.layout, rate, frame_size=context.frame_size or 1024)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode())
    return path.read_bytes()


def matroska(times: list[int], sound: bytes = bytes(320), *, rate: int = 8000) -> bytes:
    """A Matroska file of 16-bit samples, mono, without an index: the same sound at each time, in milliseconds."""

    def element(name: int, content: bytes) -> bytes:
        size = (1 << 56 | len(content)).to_bytes(8, "big")
        return name.to_bytes((name.bit_length() + 7) // 8, "big") + size + content

    def number(value: float) -> bytes:
        return struct.pack(">d", value) if isinstance(value, float) else value.to_bytes(8, "big")

    head = element(0x1A45DFA3, element(0x4282, b"matroska") + element(0x4287, b"\4") + element(0x4285, b"\2"))
    form = element(0xB5, number(float(rate))) + element(0x9F, b"\1") + element(0x6264, b"\x10")
    track = element(0xD7, b"\1") + element(0x73C5, b"\1") + element(0x83, b"\2") + element(0x86, b"A_PCM/INT/LIT")
    body = element(0x1549A966, element(0x2AD7B1, number(1_000_000)))
    body += element(0x1654AE6B, element(0xAE, track + element(0xE1, form)))
    for time in times:
        body += element(0x1F43B675, element(0xE7, number(time)) + element(0xA3, b"\x81\0\0\x80" + sound))
    return head + element(0x18538067, body)


def flash_video(seconds: int) -> bytes:
    """A Flash video file of 8-bit samples at 5.5 kHz, in which a picture begins when the sound has ended."""

    def tag(kind: int, time: int, content: bytes) -> bytes:
        head = bytes([kind]) + len(content).to_bytes(3, "big") + time.to_bytes(3, "big") + bytes(4)
        return head + content + (len(head) + len(content)).to_bytes(4, "big")

    sound = b"".join(tag(8, 100 * i, b"\x30" + bytes(range(256)) * 2) for i in range(10 * seconds))
    return b"FLV\1\4\0\0\0\x09" + bytes(4) + sound + tag(9, 1000 * seconds, b"\x22" + bytes(50))

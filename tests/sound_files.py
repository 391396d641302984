"""Files of sound in the forms that are found in the world, made with the libraries that read them."""

from __future__ import annotations

import io
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

"""Audio in any common form, as what the model hears: float32 mono samples at 16 kHz."""

from pycrispasr.audio.reader import (
    CHUNK_SECONDS,
    NOTHING,
    SAMPLE_RATE,
    Audio,
    AudioReader,
    Resampler,
    Samples,
    check_rate,
    listen,
    load,
    open,  # noqa: A004  audio.open, as in wave.open
    to_mono,
)
from pycrispasr.options import Limits

__all__ = [
    "CHUNK_SECONDS",
    "NOTHING",
    "SAMPLE_RATE",
    "Audio",
    "AudioReader",
    "Limits",
    "Resampler",
    "Samples",
    "check_rate",
    "listen",
    "load",
    "open",
    "to_mono",
]

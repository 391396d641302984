"""The shape of the package faster-whisper: `WhisperModel(...).transcribe(...)` gives segments and info."""

from pycrispasr.compat.faster_whisper.audio import decode_audio
from pycrispasr.compat.faster_whisper.transcribe import (
    BatchedInferencePipeline,
    Segment,
    TranscriptionInfo,
    TranscriptionOptions,
    WhisperModel,
    Word,
)
from pycrispasr.compat.faster_whisper.utils import available_models, download_model, format_timestamp

__all__ = [
    "BatchedInferencePipeline",
    "Segment",
    "TranscriptionInfo",
    "TranscriptionOptions",
    "WhisperModel",
    "Word",
    "available_models",
    "decode_audio",
    "download_model",
    "format_timestamp",
]

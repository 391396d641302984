"""The shape of the package openai-whisper: `load_model(...).transcribe(...)["text"]`."""

from __future__ import annotations

import os

from pycrispasr.compat import common
from pycrispasr.compat.whisper.audio import load_audio, log_mel_spectrogram, pad_or_trim
from pycrispasr.compat.whisper.decoding import DecodingOptions, DecodingResult, decode, detect_language
from pycrispasr.compat.whisper.model import ModelDimensions, Whisper
from pycrispasr.compat.whisper.transcribe import transcribe

__all__ = [
    "DecodingOptions",
    "DecodingResult",
    "ModelDimensions",
    "Whisper",
    "available_models",
    "decode",
    "detect_language",
    "load_audio",
    "load_model",
    "log_mel_spectrogram",
    "pad_or_trim",
    "transcribe",
]


def available_models() -> list[str]:
    """Names that `load_model` takes: ours, and Whisper's, which stand for "moss-transcribe"."""
    return common.available_models()


def load_model(
    name: str | os.PathLike[str],
    device: object = None,
    download_root: str | None = None,
    in_memory: bool = False,  # noqa: ARG001
) -> Whisper:
    """Opens a model.

    Args:
        name: A name that `pycrispasr.Model` takes; "pycrispasr/tiny" for its bundled model; or a Whisper model's name,
            such as "turbo" or "tiny", for which "moss-transcribe" is used, with a warning.
        device: "cpu", "cuda", a `torch.device`, or None for the best. Where there is no such device, the CPU is used,
            with a warning.
        download_root: Has no effect: models are in the Hugging Face cache, which HF_HOME moves.
        in_memory: The file is mapped, whatever is asked for.

    Raises:
        PycrispasrError: What `pycrispasr.Model` raises.
    """
    if download_root is not None:
        common.warn(f"download_root={download_root!r} has no effect: HF_HOME says where models are kept")
    return Whisper(name, "auto" if device is None else common.find_device(str(device)))

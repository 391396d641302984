"""Speech to text with MOSS-Transcribe and Qwen3-ASR.

    import pycrispasr

    print(pycrispasr.transcribe("talk.mp3").text)

    with pycrispasr.Model("moss-transcribe") as model:
        for token in model.stream("talk.mp3"):
            print(token.text, end="", flush=True)

The names below are the public ones. They are imported when they are first used, so that `import pycrispasr` is quick.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycrispasr import audio
    from pycrispasr import errors as errors
    from pycrispasr.decoding.job import Job, Progress
    from pycrispasr.errors import (
        AudioError,
        AudioNotFoundError,
        BusyError,
        CancelledError,
        ClosedError,
        DeviceError,
        InstallationError,
        InternalError,
        ModelFormatError,
        ModelNotFoundError,
        OutOfMemoryError,
        OutputError,
        PycrispasrError,
        UnsupportedModelError,
        UnsupportedOperationError,
        UsageError,
    )
    from pycrispasr.live.async_session import AsyncSession
    from pycrispasr.live.session import Session
    from pycrispasr.live.stabilizer import LiveText
    from pycrispasr.model import Backend, Device, Model, ModelInfo, backends, devices, transcribe
    from pycrispasr.models import hub as hub
    from pycrispasr.options import DecodingOptions, LoadingOptions, ReadingOptions
    from pycrispasr.results import files as output  # noqa: F401  a name of the package
    from pycrispasr.results import formats as formats
    from pycrispasr.results.events import Event, Final, Overrun, Partial, Silence, SpeechStarted
    from pycrispasr.results.segment import Segment, Token, Word
    from pycrispasr.results.transcript import Timings, Transcript

__version__ = "0.1.0"

__all__ = [
    "AsyncSession",
    "AudioError",
    "AudioNotFoundError",
    "Backend",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "DecodingOptions",
    "Device",
    "DeviceError",
    "Event",
    "Final",
    "InstallationError",
    "InternalError",
    "Job",
    "LiveText",
    "LoadingOptions",
    "Model",
    "ModelFormatError",
    "ModelInfo",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "OutputError",
    "Overrun",
    "Partial",
    "Progress",
    "PycrispasrError",
    "ReadingOptions",
    "Segment",
    "Session",
    "Silence",
    "SpeechStarted",
    "Timings",
    "Token",
    "Transcript",
    "UnsupportedModelError",
    "UnsupportedOperationError",
    "UsageError",
    "Word",
    "__version__",
    "audio",
    "backends",
    "devices",
    "transcribe",
]

_HOMES = {
    "live.async_session": ("AsyncSession",),
    "options": ("DecodingOptions", "LoadingOptions", "ReadingOptions"),
    "results.events": ("Event", "Final", "Overrun", "Partial", "Silence", "SpeechStarted"),
    "live.session": ("Session",),
    "live.stabilizer": ("LiveText",),
    "decoding.job": ("Job", "Progress"),
    "model": ("Backend", "Device", "Model", "ModelInfo", "backends", "devices", "transcribe"),
    "results.segment": ("Segment", "Token", "Word"),
    "results.transcript": ("Timings", "Transcript"),
}
_MODULES = {
    "audio": "audio",
    "errors": "errors",
    "formats": "results.formats",
    "hub": "models.hub",
    "output": "results.files",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = importlib.import_module(f"pycrispasr.{_MODULES[name]}")
    elif name in __all__:
        home = next((module for module, names in _HOMES.items() if name in names), "errors")
        value = getattr(importlib.import_module(f"pycrispasr.{home}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

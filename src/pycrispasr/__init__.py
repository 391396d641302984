"""Speech to text with MOSS-Transcribe.

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
    from pycrispasr.async_session import AsyncSession
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
    from pycrispasr.events import Event, Final, Overrun, Partial, Silence, SpeechStarted
    from pycrispasr.live_text import LiveText
    from pycrispasr.model import Backend, Device, Model, ModelInfo, backends, devices, transcribe
    from pycrispasr.result import Segment, Timings, Token, Transcript, Word
    from pycrispasr.session import Session

__version__ = "0.1.0"

__all__ = [
    "AsyncSession",
    "AudioError",
    "AudioNotFoundError",
    "Backend",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "Device",
    "DeviceError",
    "Event",
    "Final",
    "InstallationError",
    "InternalError",
    "LiveText",
    "Model",
    "ModelFormatError",
    "ModelInfo",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "OutputError",
    "Overrun",
    "Partial",
    "PycrispasrError",
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
    "async_session": ("AsyncSession",),
    "events": ("Event", "Final", "Overrun", "Partial", "Silence", "SpeechStarted"),
    "live_text": ("LiveText",),
    "model": ("Backend", "Device", "Model", "ModelInfo", "backends", "devices", "transcribe"),
    "result": ("Segment", "Timings", "Token", "Transcript", "Word"),
    "session": ("Session",),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "audio":
        return importlib.import_module("pycrispasr.audio")
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    value = getattr(importlib.import_module(f"pycrispasr.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

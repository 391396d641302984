"""The exceptions. Every message says what is wrong, with which value, and what to do. All of them can be pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycrispasr.results.transcript import Transcript

__all__ = [
    "AudioError",
    "AudioNotFoundError",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "DeviceError",
    "InstallationError",
    "InternalError",
    "ModelFormatError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "OutputError",
    "PycrispasrError",
    "UnsupportedModelError",
    "UnsupportedOperationError",
    "UsageError",
]


class PycrispasrError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(PycrispasrError, ValueError):
    """A call out of order, or an argument out of range."""


class ClosedError(UsageError):
    """A closed model or session was used."""


class ModelNotFoundError(PycrispasrError, FileNotFoundError):
    """There is no model of this name, or its file cannot be fetched or read."""


class ModelFormatError(PycrispasrError, ValueError):
    """The file is no GGUF, or it is truncated or contradicts itself."""


class UnsupportedModelError(PycrispasrError, ValueError):
    """A sound GGUF file, but of another architecture or with tensor types that cannot be computed here."""


class UnsupportedOperationError(PycrispasrError, NotImplementedError):
    """The runtime that the model was opened with cannot do this."""


class AudioError(PycrispasrError, ValueError):
    """Audio that cannot be read or understood, or is too short or not finite."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """There is no such audio file."""


class OutputError(PycrispasrError, OSError):
    """A file of results is already there, or cannot be written."""


class DeviceError(PycrispasrError, RuntimeError):
    """There is no such device, or it failed."""


class BusyError(PycrispasrError, RuntimeError):
    """A session was used by a second thread while a first one was inside it."""


class CancelledError(PycrispasrError):
    """A transcription was stopped by `Session.cancel`.

    Attributes:
        partial: What had been transcribed until then.
    """

    def __init__(self, message: str, partial: Transcript) -> None:
        super().__init__(message)
        self.partial = partial

    def __reduce__(self) -> tuple[type[CancelledError], tuple[str, Transcript], dict[str, object]]:
        """For pickle and copy, which would pass the message alone."""
        return type(self), (str(self), self.partial), self.__dict__


class OutOfMemoryError(PycrispasrError, MemoryError):
    """An allocation failed."""


class InternalError(PycrispasrError, RuntimeError):
    """A bug in this package: please report it with its message."""


class InstallationError(PycrispasrError, ImportError):
    """The compiled library is missing, or does not belong to this version of the package."""

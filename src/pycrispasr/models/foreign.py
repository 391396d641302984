"""Models of other architectures: what a file says it holds, and whether CrispASR's library can take it."""

from __future__ import annotations

import struct
from pathlib import Path

from pycrispasr.errors import InstallationError, UnsupportedModelError, UnsupportedOperationError
from pycrispasr.models import gguf_file
from pycrispasr.runtimes import crispasr, crispasr_process
from pycrispasr.runtimes.crispasr import CrispasrModel
from pycrispasr.runtimes.crispasr_process import IsolatedCrispasrModel

MOSS_VOCABULARY = 151671
"""Tokens that a MOSS-Transcribe file must have: the library's prompt has fixed ids up to 151670."""

_WHISPER_MAGIC = b"lmgg"  # begins the files of whisper.cpp, which are no GGUF
_WHISPER_MULTILINGUAL_VOCABULARY = 51865


def architecture(path: Path) -> str | None:
    """What a model file says it holds; "whisper" for whisper.cpp's own format; None where it is no model file."""
    if _whisper_vocabulary(path):
        return "whisper"
    try:
        return str(gguf_file.read(path)[0].get("general.architecture", ""))
    except Exception:  # noqa: BLE001  a damaged file raises whatever its contents lead to
        return None


def check_vocabulary(path: Path) -> None:
    """Refuses a MOSS-Transcribe file whose vocabulary lacks the ids that are fixed in the library.

    Raises:
        UnsupportedModelError: The library would end the process with it.
    """
    try:
        tokens = gguf_file.read(path)[0].get("moss_transcribe.llm.vocab_size", MOSS_VOCABULARY)
    except Exception:  # noqa: BLE001  a damaged file raises whatever its contents lead to; opening it tells more
        return
    if isinstance(tokens, int) and tokens < MOSS_VOCABULARY:
        raise UnsupportedModelError(
            f"{str(path)!r} has {tokens} tokens: CrispASR's library takes MOSS-Transcribe files with the published "
            f"vocabulary only, of at least {MOSS_VOCABULARY}; use runtime='pycrispasr' for this one"
        )


def open_with_crispasr(
    path: Path, device: str, threads: int, isolate: bool | None
) -> CrispasrModel | IsolatedCrispasrModel:
    """Opens a model in CrispASR's library.

    Args:
        path: The file.
        device: "auto" or "cpu".
        threads: 0 for as many as this process has processors.
        isolate: In a process of its own; None: where this program can start one.

    Raises:
        UnsupportedOperationError: `isolate`, and this program cannot start one.
        PycrispasrError: What `CrispasrModel` and `check_vocabulary` raise.
    """
    if crispasr.find() is None:  # that comes first
        raise InstallationError(crispasr.MISSING)
    check_vocabulary(path)
    multilingual = _whisper_vocabulary(path) >= _WHISPER_MULTILINGUAL_VOCABULARY
    can_isolate = isolate is not False and crispasr_process.can_start()
    if isolate and not can_isolate:
        raise UnsupportedOperationError(
            "this program cannot start another Python for CrispASR's library: name one with "
            "multiprocessing.set_executable(), or pass isolate=False and open only files that you trust"
        )
    kind = IsolatedCrispasrModel if can_isolate else CrispasrModel
    return kind(path, device, threads, architecture=architecture(path), multilingual=multilingual)


def _whisper_vocabulary(path: Path) -> int:
    """The number of tokens that a file of whisper.cpp's own format tells; 0 for any other file."""
    try:
        with path.open("rb") as file:
            magic, size = struct.unpack("<4si", file.read(8))
    except (OSError, struct.error):
        return 0
    return size if magic == _WHISPER_MAGIC else 0

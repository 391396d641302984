"""CrispASR's library as a second runtime: all of its cffi, and its results as ours.

Nothing above this module sees a pointer. The library is loaded at the first use, from the package `crispasr` (whose
Python side is not used) or from where the environment variable `PYCRISPASR_LIBCRISPASR` says. It brings a ggml of its
own, which shares nothing with ours. It tells neither why it failed nor when a text was cut, and where it meets
something impossible it ends the process: `crispasr_process.py` has it in another one.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import functools
import importlib.metadata
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycrispasr.errors import (
    DeviceError,
    InstallationError,
    ModelFormatError,
    UnsupportedModelError,
    UsageError,
)
from pycrispasr.results.segment import Segment, Token
from pycrispasr.runtimes.native import NativeHandle

if TYPE_CHECKING:
    from pycrispasr.audio import Samples

HOW = "install it with `pip install 'pycrispasr[crispasr]'`"
"""How to get the library."""

MISSING = f"CrispASR's library is missing: {HOW}, or name it in PYCRISPASR_LIBCRISPASR"

UNKNOWN_TOKEN = -1
"""The id of every token: the library tells their texts only."""

_DECLARATIONS = """
typedef struct {
    int abi_version, n_threads, use_gpu, verbosity, flash_attn, n_gpu_layers, reserved[6];
} open_params;
void *crispasr_session_open_with_params(const char *path, const char *backend, const open_params *params);
void crispasr_session_close(void *session);
const char *crispasr_session_backend(void *session);
int crispasr_session_set_max_new_tokens(void *session, int limit);
int crispasr_session_detected_language(void *session, char *code, int capacity);
void *crispasr_session_transcribe_lang(void *session, const float *samples, int n_samples, const char *language);
void crispasr_session_result_free(void *result);
int crispasr_session_result_n_segments(void *result);
const char *crispasr_session_result_segment_text(void *result, int segment);
int64_t crispasr_session_result_segment_t0(void *result, int segment);
int64_t crispasr_session_result_segment_t1(void *result, int segment);
int crispasr_session_result_n_words(void *result, int segment);
const char *crispasr_session_result_word_text(void *result, int segment, int word);
int64_t crispasr_session_result_word_t0(void *result, int segment, int word);
int64_t crispasr_session_result_word_t1(void *result, int segment, int word);
float crispasr_session_result_word_p(void *result, int segment, int word);
int crispasr_session_result_n_tokens(void *result, int segment);
const char *crispasr_session_result_token_text(void *result, int segment, int token);
int64_t crispasr_session_result_token_t0(void *result, int segment, int token);
int64_t crispasr_session_result_token_t1(void *result, int segment, int token);
float crispasr_session_result_token_p(void *result, int segment, int token);

typedef void (*log_callback)(int level, const char *text, void *data);
void ggml_log_set(log_callback callback, void *data);
void whisper_log_set(log_callback callback, void *data);
"""

_LIBRARY_NAMES = {"win32": ("crispasr.dll", "libcrispasr.dll"), "darwin": ("libcrispasr.dylib",)}
# Their ggml's level by number. What they call an error is often none: an exception tells what matters.
_LOG_LEVELS = {3: logging.INFO, 4: logging.WARNING}

_logger = logging.getLogger("pycrispasr")
_open_lock = threading.Lock()
_kept: list[Any] = []  # cffi callbacks, which live as long as somebody holds them


def find() -> Path | None:
    """Where the library lies, or None where the extra is not installed.

    Raises:
        InstallationError: `PYCRISPASR_LIBCRISPASR` names a file that does not exist.
    """
    named = os.environ.get("PYCRISPASR_LIBCRISPASR")
    if named:
        if not os.path.isfile(named):
            raise InstallationError(
                f"PYCRISPASR_LIBCRISPASR is {named!r}, but there is no such file: correct or unset it"
            )
        return Path(named).absolute()
    for package in importlib.metadata.Distribution.discover(name="crispasr", path=installed_paths()):
        for name in _LIBRARY_NAMES.get(sys.platform, ("libcrispasr.so",)):
            path = Path(str(package.locate_file(f"crispasr/{name}")))
            if path.is_file():
                return path.absolute()
    return None


def installed_paths() -> list[str]:
    """`sys.path` without the current folder, unless this package itself is installed there.

    `python -m`, `python -c` and a prompt put the current folder first, and nobody who works in a folder of downloads
    has installed what lies there.
    """
    home = Path(__file__).parents[2]
    with contextlib.suppress(OSError):  # the current folder has been removed
        here = Path.cwd()
        return [path for path in sys.path if os.path.isabs(path) and (Path(path) != here or Path(path) == home)]
    return [path for path in sys.path if os.path.isabs(path)]


@functools.cache
def library() -> tuple[Any, Any]:
    """The loaded library, and the `ffi` that belongs to it.

    Raises:
        InstallationError: It is missing, cannot be loaded, or is too old.
    """
    path = find()
    if path is None:
        raise InstallationError(MISSING)
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    try:
        if sys.platform == "win32":
            os.add_dll_directory(str(path.parent))
        lib = ffi.dlopen(str(path), ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))
        lib.crispasr_session_open_with_params, lib.crispasr_session_result_token_p  # noqa: B018  as new as 0.8
    except (AttributeError, OSError) as error:
        raise InstallationError(f"CrispASR's library {str(path)!r} cannot be used ({error}): {HOW}") from error
    _route_log(ffi, lib)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_renew_lock)
    return ffi, lib


def _renew_lock() -> None:
    """For a forked process: another thread may have held the lock, and is not there to let go of it."""
    global _open_lock
    _open_lock = threading.Lock()


def _route_log(ffi: Any, lib: Any) -> None:
    """Has what their ggml would print go to the logger "pycrispasr". Backends that print by themselves still do."""

    def write(level: int, text: Any, _data: Any) -> None:
        _logger.log(_LOG_LEVELS.get(level, logging.DEBUG), "%s", _text(ffi, text).rstrip())

    def route(callback: Any) -> None:
        for name in ("ggml_log_set", "whisper_log_set"):
            with contextlib.suppress(AttributeError):  # not every build exports them
                getattr(lib, name)(callback, ffi.NULL)

    callback = ffi.callback("log_callback", write)
    route(callback)
    _kept.append(callback)
    atexit.register(route, ffi.NULL)  # what the library frees after Python has ended must not call Python


class CrispasrModel:
    """A session of the library with one model. Any thread may use it; they take turns.

    Args:
        path: The model file.
        device: "auto" or "cpu".
        threads: 0 for as many as this process has processors.
        architecture: What the file says it holds, for errors; None where it is no model file.
        multilingual: It is to find out the language; it takes everything for English otherwise.

    Raises:
        InstallationError: The library is missing or cannot be used.
        UnsupportedModelError: It runs no model of this architecture.
        ModelFormatError: It cannot load the file.
        DeviceError: There is no such device.
    """

    interruptible = False

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        threads: int = 0,
        *,
        architecture: str | None = None,
        multilingual: bool = False,
    ) -> None:
        ffi, lib = self._ffi, self._lib = library()
        if device not in ("auto", "cpu"):
            raise DeviceError(f"there is no device {device!r} for CrispASR's library: it takes 'auto' or 'cpu'")
        params = ffi.new("open_params *")
        params.abi_version, params.flash_attn, params.n_gpu_layers = 2, 1, -1
        params.use_gpu = device == "auto"
        params.n_threads = threads or _processors()
        with _open_lock:
            pointer = lib.crispasr_session_open_with_params(os.fsencode(path), ffi.NULL, params)
        if not pointer:
            if architecture is None:
                raise ModelFormatError(f"{str(path)!r} is no model file that CrispASR's library can read")
            raise UnsupportedModelError(
                f"CrispASR's library cannot load {str(path)!r}, a model of architecture {architecture!r}: it does not "
                "know this architecture, or lacks a file that belongs to the model, or the file is damaged"
            )
        self._handle = NativeHandle("model", pointer, lib.crispasr_session_close)
        self.backend = _text(ffi, lib.crispasr_session_backend(pointer))
        self._language = "auto" if multilingual else None
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def decode_segment(
        self,
        samples: Samples,
        language: str | None,
        max_new_tokens: int,
        cancelled: threading.Event | None = None,  # noqa: ARG002  the library cannot be stopped
    ) -> tuple[list[Segment], str | None]:
        """The text of one segment of audio.

        Args:
            samples: Mono at 16 kHz, shape `[n]`, at most 30 seconds.
            language: The language of the segment before, as the library told it, or None.
            max_new_tokens: For models that heed it.
            cancelled: Has no effect.

        Returns:
            Segments with times from its beginning, and the language where the library tells it.

        Raises:
            UnsupportedModelError: The model is not one for recognising speech.
            UsageError: This process was forked from the one that opened the model.
        """
        if self._owner != os.getpid():  # its threads are not here, and the library would wait for them
            raise UsageError("this model belongs to the process that was forked: open it here once more")
        ffi, lib = self._ffi, self._lib
        data, wanted = ffi.from_buffer("float[]", samples), language or self._language
        with self._lock:
            lib.crispasr_session_set_max_new_tokens(self._handle.pointer, max_new_tokens)
            result = lib.crispasr_session_transcribe_lang(
                self._handle.pointer, data, len(samples), ffi.NULL if wanted is None else wanted.encode()
            )
            if not result:
                raise UnsupportedModelError(
                    f"CrispASR's library failed with its backend {self.backend!r} and does not say why: check that the "
                    "model is one for recognising speech"
                )
            try:
                count = lib.crispasr_session_result_n_segments(result)
                segments = [self._segment(result, index) for index in range(count)]
            finally:
                lib.crispasr_session_result_free(result)
            code = ffi.new("char[32]")
            lib.crispasr_session_detected_language(self._handle.pointer, code, len(code))
        told = _text(ffi, code)
        return segments, language if told in ("", "unknown", "auto") else told

    def cancel(self, cancelled: threading.Event) -> None:
        """Sets the event: the library cannot be stopped."""
        cancelled.set()

    def close(self) -> None:
        """Does nothing: memory is given back when nobody needs the model any more."""

    def _segment(self, result: Any, index: int) -> Segment:
        lib = self._lib
        text = _text(self._ffi, lib.crispasr_session_result_segment_text(result, index))
        start, end = self._times(result, "segment", index)
        tokens = tuple(self._tokens(result, index)) or tuple(self._words(result, index, text))
        return Segment(start or 0.0, math.inf if end is None else end, text.strip(), tokens, "ok")

    def _tokens(self, result: Any, segment: int) -> Iterator[Token]:
        """A segment's tokens; their texts may end inside a character, whose rest is in the next one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for index in range(self._lib.crispasr_session_result_n_tokens(result, segment)):
            content = self._lib.crispasr_session_result_token_text(result, segment, index)
            text = decoder.decode(self._ffi.string(content) if content else b"")
            yield self._token(result, "token", segment, index, text)

    def _words(self, result: Any, segment: int, text: str) -> Iterator[Token]:
        """A segment's words, each with what is between it and the one before."""
        done = 0
        for index in range(self._lib.crispasr_session_result_n_words(result, segment)):
            word = _text(self._ffi, self._lib.crispasr_session_result_word_text(result, segment, index))
            place = text.find(word, done)
            if place >= 0:
                place += len(word)
                word, done = text[done:place], place
            yield self._token(result, "word", segment, index, word)

    def _token(self, result: Any, kind: str, segment: int, index: int, text: str) -> Token:
        probability = getattr(self._lib, f"crispasr_session_result_{kind}_p")(result, segment, index)
        start, end = self._times(result, kind, segment, index)
        return Token(UNKNOWN_TOKEN, text, probability if 0 <= probability <= 1 else math.nan, start, end)

    def _times(self, result: Any, kind: str, *place: int) -> tuple[float | None, float | None]:
        """Start and end in seconds, or None where there are no sensible ones."""
        start = getattr(self._lib, f"crispasr_session_result_{kind}_t0")(result, *place)
        end = getattr(self._lib, f"crispasr_session_result_{kind}_t1")(result, *place)
        return (start / 100, end / 100) if 0 <= start <= end and end > 0 else (None, None)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _text(ffi: Any, pointer: Any) -> str:
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""

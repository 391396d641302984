"""All of cffi: the compiled library, its two handles, and its statuses as exceptions.

Nothing above this module sees a pointer. The library is loaded at the first use. A native handle has one owner
(`NativeHandle`), which frees it when the last reference to the Python object is gone, never while a call is inside it.
What still lives when the interpreter ends is left to the operating system, since a daemon thread may be using it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycrispasr import errors
from pycrispasr.options import MAX_NEW_TOKENS
from pycrispasr.text import printable

ABI_VERSION = 11
"""The `pcr_abi_version` this module is written for."""

TRACE = os.environ.get("PYCRISPASR_TRACE", "0") not in ("", "0")
"""The library logs a line for every graph that it has computed, at level DEBUG."""

_logger = logging.getLogger("pycrispasr")
_logger.addHandler(logging.NullHandler())  # or Python prints warnings to stderr on its own

_Floats = npt.NDArray[np.float32]


class Cancelled(Exception):  # noqa: N818  not an error until the session says so
    """The native call was stopped by `NativeSession.cancel`."""


_WINDOWS = 2**30  # as many as the library takes at once
_ROW_OF_EVERY_TYPE = 256  # values: blocks of every type divide it
_EXCEPTIONS: dict[str, type[Exception]] = {
    "PCR_ERROR_ARGUMENT": errors.UsageError,
    "PCR_ERROR_IO": errors.ModelNotFoundError,
    "PCR_ERROR_FORMAT": errors.ModelFormatError,
    "PCR_ERROR_UNSUPPORTED": errors.UnsupportedModelError,
    "PCR_ERROR_AUDIO": errors.AudioError,
    "PCR_ERROR_DEVICE": errors.DeviceError,
    "PCR_ERROR_MEMORY": errors.OutOfMemoryError,
    "PCR_ERROR_BUSY": errors.BusyError,
    "PCR_ERROR_CANCELLED": Cancelled,
    "PCR_ERROR_INTERNAL": errors.InternalError,
}


def library_path() -> Path:
    """Where the compiled library lies: beside the declarations that were generated with it."""
    name = {"win32": "pycrispasr.dll", "darwin": "libpycrispasr.dylib"}.get(sys.platform, "libpycrispasr.so")
    return Path(str(importlib.import_module("pycrispasr._cdefs").__file__)).with_name(name)


@functools.cache
def library() -> tuple[Any, Any]:
    """The loaded library, and the `ffi` that belongs to it.

    Raises:
        InstallationError: It is missing, cannot be loaded, or was built for another version of this package.
    """
    how = "reinstall pycrispasr, e.g. with `pip install --force-reinstall pycrispasr`"
    try:
        path = library_path()
        ffi = importlib.import_module("pycrispasr._cdefs").ffi
        # Never unloaded: at the interpreter's end a daemon thread may still be in there.
        lib = ffi.dlopen(str(path), ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))
    except (ImportError, OSError) as error:
        raise errors.InstallationError(f"the compiled library cannot be loaded ({error}): {how}") from error
    version = lib.pcr_abi_version()
    if version != ABI_VERSION:
        raise errors.InstallationError(f"{path} has ABI {version}, but this package needs {ABI_VERSION}: {how}")
    return ffi, lib


def versions() -> tuple[str, str]:
    """Release of the compiled library, and that of the ggml inside."""
    ffi, lib = library()
    return _text(ffi, lib.pcr_version()), _text(ffi, lib.pcr_ggml_version())


def devices() -> list[dict[str, Any]]:
    """One dictionary of `pcr_device_info`'s fields for each device."""
    ffi, lib = library()
    found = []
    for index in range(lib.pcr_device_count()):
        info = ffi.new("pcr_device_info *")
        _check(lib.pcr_device_get(index, info), f"device {index} cannot be read")
        found.append(_fields(ffi, info))
    drain_log()
    return found


def backends() -> list[dict[str, Any]]:
    """One dictionary of `pcr_backend_info`'s fields for each kind of device beside the CPU."""
    ffi, lib = library()
    found: list[dict[str, Any]] = []
    info = ffi.new("pcr_backend_info *")
    while lib.pcr_backend_get(len(found), info) == lib.PCR_OK:
        found.append(_fields(ffi, info) | {"compiled": bool(info.compiled)})
    drain_log()
    return found


def usable_cores() -> int:
    """Physical cores that this process may use and that are worth waiting for: the default number of threads."""
    return int(library()[1].pcr_usable_cores())


def usable_cores_of(root: Path, allowed: str) -> int:
    """What it would be on a Linux machine with the /proc and /sys of a folder, for a process on the CPUs `allowed`."""
    return int(library()[1].pcr_usable_cores_of(os.fsencode(root), allowed.encode()))


def drain_log() -> None:
    """Hands the library's waiting messages to the logger "pycrispasr"."""
    ffi, lib = library()
    level, text = ffi.new("pcr_log_level *"), ffi.new("char[2048]")
    while lib.pcr_take_log(level, text, len(text)) == lib.PCR_OK:
        _logger.log(10 * (int(level[0]) + 1), "%s", _text(ffi, text))


def row_bytes(kind: str, row_length: int) -> int:
    """Bytes of a row of so many values in one of ggml's types; 0 where its blocks do not divide the row."""
    _, lib = library()
    return int(lib.pcr_row_bytes(kind.encode(), row_length))


def convert_rows(
    source: npt.NDArray[Any], from_type: str, to_type: str, row_length: int, importance: _Floats | None = None
) -> npt.NDArray[np.uint8]:
    """A matrix in another of ggml's types, computed on all cores.

    Args:
        source: Its rows in `from_type`; any shape and item type, contiguous.
        from_type: ggml's name of the type: "f32", "f16", "bf16", "q8_0", "q4_k", ...
        to_type: The same.
        row_length: Values in a row.
        importance: Weights of the columns when rounding, `[row_length]`, or None.

    Returns:
        The rows in `to_type`: bytes, `[rows, row_bytes]`.

    Raises:
        UnsupportedModelError: A type is not known, or its blocks do not divide the row.
    """
    ffi, lib = library()
    from_bytes, to_bytes = row_bytes(from_type, row_length), row_bytes(to_type, row_length)
    rows = source.nbytes // from_bytes if from_bytes else 1
    target = np.empty((rows, to_bytes), np.uint8)
    weights = (
        ffi.NULL if importance is None else ffi.from_buffer("float[]", np.ascontiguousarray(importance, np.float32))
    )
    message = ffi.new("char[512]")
    status = lib.pcr_convert_rows(
        from_type.encode(), ffi.from_buffer(np.ascontiguousarray(source)), to_type.encode(),
        ffi.from_buffer(target) if target.size else message, rows, row_length, weights, 0, message, len(message),
    )  # fmt: skip
    _check(status, _text(ffi, message))
    return target


def kernels() -> list[str]:
    """The kernels that this processor runs, "generic" first and the fastest last."""
    ffi, lib = library()
    names: list[str] = []
    while name := lib.pcr_kernels_name(len(names)):
        names.append(_text(ffi, name))
    return names


def product(
    rows: _Floats,
    matrix: npt.NDArray[np.uint8],
    kind: str,
    n_out: int,
    *,
    kernels: str = "auto",
    precision: str = "auto",
    each: bool = False,
    threads: int = 1,
    repeats: int = 1,
) -> tuple[_Floats, float]:
    """Rows `[n_rows, n_in]` times the transpose of a matrix `[n_out, n_in]`, and the seconds of the fastest run.

    Args:
        rows: `[n_rows, n_in]`.
        matrix: The bytes of its rows.
        kind: Its type, by ggml's name.
        n_out: Its rows.
        kernels: As for `NativeModel`.
        precision: As for `NativeModel`.
        each: Row by row, as for single tokens.
        threads: On which it runs.
        repeats: Runs.
    """
    ffi, lib = library()
    rows = np.ascontiguousarray(rows, np.float32)
    n_rows, n_in = rows.shape
    needed = n_out * row_bytes(kind, n_in)
    if not needed or matrix.nbytes != needed:
        raise errors.UsageError(f"the matrix has {matrix.nbytes} bytes: {n_out} rows of {n_in} {kind} have {needed}")
    out, seconds = np.empty((n_rows, n_out), np.float32), ffi.new("double *")
    message = ffi.new("char[]", 500)
    status = lib.pcr_product(
        kernels.encode(), precision.encode(), each, kind.encode(), ffi.from_buffer(matrix), n_out, n_in,
        ffi.from_buffer("float[]", rows), n_rows, ffi.from_buffer("float[]", out, require_writable=True), threads,
        repeats, seconds, message, len(message),
    )  # fmt: skip
    _check(status, _text(ffi, message))
    return out, seconds[0]


def product_kernels(kind: str, *, kernels: str = "auto", precision: str = "auto", each: bool = False) -> str:
    """What computes a `product` with a matrix of this type: `"avx2, 8-bit integers"`, say, or `"ggml"`.

    Args:
        kind: The matrix's type, by ggml's name.
        kernels: As for `NativeModel`.
        precision: As for `NativeModel`.
        each: Row by row, as for single tokens.
    """
    ffi, lib = library()
    text = ffi.new("char[]", 500)
    status = lib.pcr_product_kernels(
        kernels.encode(), precision.encode(), each, kind.encode(), _ROW_OF_EVERY_TYPE, text, len(text)
    )
    _check(status, _text(ffi, text))
    return _text(ffi, text)


def kernels_by_product(*, kernels: str = "auto", precision: str = "auto") -> dict[str, dict[str, str]]:
    """What computes each kind of product on the CPU, by rows and by the matrix's type.

    `"many rows"` are those of audio and prompts, `"few rows"` those of single tokens.

    Args:
        kernels: As for `NativeModel`.
        precision: As for `NativeModel`.
    """
    return {
        rows: {
            name: product_kernels(kind, kernels=kernels, precision=precision, each=each)
            for name, kind in (("float", "f16"), ("Q4_K, Q5_K, Q6_K, Q8_0", "q4_k"), ("other quantised", "q4_0"))
        }
        for rows, each in (("many rows", False), ("few rows", True))
    }


def kernel_lines(products: dict[str, dict[str, str]]) -> list[str]:
    """What `kernels_by_product` gives, as text: a line for each number of rows."""
    return [
        f"{rows}: " + "; ".join(f"{kind} by {computes}" for kind, computes in by_type.items())
        for rows, by_type in products.items()
    ]


class NativeHandle:
    """The only owner of a native handle: frees it once, and lends its pointer until then.

    In a reference cycle the garbage collector finalizes objects in any order, so a generator may be closed, and use its
    session, after the session has been finalized. The pointer is gone by then, and the call raises an error.

    Args:
        what: Its name in errors.
        pointer: What is owned, or NULL.
        free: Frees it. It is called neither in a forked process, which has none of the library's threads, nor while the
            interpreter ends.
    """

    def __init__(self, what: str, pointer: Any, free: Callable[[Any], None]) -> None:
        self._what, self._pointer, self._free = what, pointer, free
        self._process = os.getpid()

    @property
    def pointer(self) -> Any:
        """What is owned.

        Raises:
            ClosedError: It has been freed.
        """
        if self._pointer is None:
            raise errors.ClosedError(f"this {self._what} has been freed by the garbage collector: make another one")
        return self._pointer

    def use(self, call: Callable[[Any], object]) -> None:
        """Calls something with the pointer, or does nothing once it has been freed."""
        if (pointer := self._pointer) is not None:
            call(pointer)

    def __del__(
        self, is_finalizing: Callable[[], bool] = sys.is_finalizing, getpid: Callable[[], int] = os.getpid
    ) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer and not is_finalizing() and self._process == getpid():
            self._free(pointer)


class NativeModel:
    """A `pcr_model`. Any thread may use it.

    Args:
        path: The GGUF file.
        device: "auto" or a device's name.
        precision: "auto", "f32" or "bf16".
        kernels: "auto", one of `kernels()`, or "ggml": for comparisons.
        mmap: Map the file instead of reading it.
    """

    def __init__(
        self, path: Path, device: str = "auto", precision: str = "auto", kernels: str = "auto", *, mmap: bool = True
    ) -> None:
        ffi, lib = self._ffi, self._lib = library()
        level = logging.DEBUG if TRACE else _logger.getEffectiveLevel()
        lib.pcr_set_log_level(max(lib.PCR_LOG_DEBUG, min(lib.PCR_LOG_ERROR, (level - 1) // 10)))
        params, out = ffi.new("pcr_model_params *"), ffi.new("pcr_model **")
        lib.pcr_model_params_default(params)
        names = [ffi.new("char[]", name.encode()) for name in (device, precision, kernels)]
        params.device, params.precision, params.kernels = names
        params.map = mmap
        status = lib.pcr_model_load(os.fsencode(path), params, out)
        drain_log()
        self._handle = NativeHandle("model", out[0], lib.pcr_model_free)
        if status < 0:
            message = _text(ffi, lib.pcr_model_error(out[0])) if out[0] else ""
            if status in (lib.PCR_ERROR_FORMAT, lib.PCR_ERROR_UNSUPPORTED) and str(path) not in message:
                message = f"{str(path)!r}: {message}"
            _check(status, message)

    @property
    def pointer(self) -> Any:
        """The `pcr_model`."""
        return self._handle.pointer

    def info(self) -> dict[str, Any]:
        """`pcr_model_info`'s fields."""
        info = self._ffi.new("pcr_model_info *")
        self._check(self._lib.pcr_model_get_info(self.pointer, info))
        return _fields(self._ffi, info)

    def token_bytes(self, token: int) -> bytes:
        """The token's bytes; none for a special token."""
        length = self._ffi.new("size_t *")
        content = self._lib.pcr_token_bytes(self.pointer, token, length)
        if not content:
            raise errors.UsageError(f"token {token} is not in the model's vocabulary")
        return bytes(self._ffi.unpack(content, length[0]))

    def tokenize(self, text: bytes) -> list[int]:
        """Tokens of UTF-8 text."""
        capacity = len(text) + 1
        tokens, count = self._ffi.new("int32_t[]", capacity), self._ffi.new("size_t *")
        self._check(self._lib.pcr_tokenize(self.pointer, text, len(text), tokens, capacity, count))
        return list(self._ffi.unpack(tokens, count[0]))

    def prompt(self, n_rows: int, *, language: str | None = None, context: str | None = None) -> list[int]:
        """The prompt around so many audio rows, whose places hold -1. For the others see `NativeSession.begin`."""
        params, held = _clip_params(language, context)
        count, room = self._ffi.new("size_t *"), n_rows + 1024 + len((context or "").encode())
        while True:
            tokens = self._ffi.new("int32_t[]", room)
            status = self._lib.pcr_clip_prompt(self.pointer, params, n_rows, tokens, room, count)
            if count[0] <= room:
                break
            room = count[0]  # with the times among the rows, say
        self._check(status)
        del held
        return list(self._ffi.unpack(tokens, count[0]))

    def frame_count(self, n_samples: int) -> int:
        """Log-mel frames of so many samples."""
        return int(self._lib.pcr_frame_count(self.pointer, n_samples))

    def row_count(self, n_frames: int) -> int:
        """Audio rows of so many log-mel frames."""
        return int(self._lib.pcr_row_count(self.pointer, n_frames))

    def _check(self, status: int) -> None:
        if status < 0:
            _check(status, _text(self._ffi, self._lib.pcr_model_error(self.pointer)))


class NativeSession:
    """A `pcr_session`. One thread at a time; `cancel` may be called from any.

    Args:
        model: The library keeps what the session needs of it.
        threads: 0 for the default.
        max_new_tokens: Where the text is cut.
        sequences: Clips that are held at once.
        importance: Collect what `importance` gives.
        heads: Layer and number of the decoder's heads whose `attention` is kept.
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        threads: int = 0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sequences: int = 1,
        importance: bool = False,
        heads: Sequence[tuple[int, int]] = (),
    ) -> None:
        ffi, lib = self._ffi, self._lib = library()
        self._model = model
        self.sequences = sequences
        self.heads = tuple(heads)
        info = model.info()
        self.window_samples = info["window_rows"] // info["chunk_rows"] * info["chunk_frames"] * info["hop_length"]
        pairs = ffi.new("int32_t[]", [_int32("a head", number) for head in heads for number in head])
        params, out = ffi.new("pcr_session_params *"), ffi.new("pcr_session **")
        lib.pcr_session_params_default(params)
        params.threads = _int32("threads", threads)
        params.max_new_tokens = _int32("max_new_tokens", max_new_tokens)
        params.sequences = _int32("sequences", sequences)
        params.importance = importance
        params.heads, params.n_heads = pairs, len(heads)
        status = lib.pcr_session_new(model.pointer, params, out)
        drain_log()
        self._handle = NativeHandle("session", out[0], lib.pcr_session_free)
        self._most_tokens = max_new_tokens
        self._taken, self._count = ffi.new("pcr_token[]", 64), ffi.new("size_t *")
        if status < 0:
            _check_work(status, _text(ffi, lib.pcr_session_error(out[0])) if out[0] else "")

    @property
    def _pointer(self) -> Any:
        return self._handle.pointer

    def begin(
        self,
        sequence: int,
        *,
        max_new_tokens: int | None = None,
        attention: bool = False,
        language: str | None = None,
        context: str | None = None,
    ) -> None:
        """Begins another clip, and forgets the one before and its text.

        Args:
            sequence: Where.
            max_new_tokens: Where its text is cut. None: as for the session.
            attention: Keep what `attention` gives, for the session's heads.
            language: The English name of the language that is spoken. None: the model finds out.
            context: What the audio may be about.
        """
        params, held = _clip_params(language, context)
        params.max_new_tokens = (
            self._most_tokens if max_new_tokens is None else _int32("max_new_tokens", max_new_tokens)
        )
        params.attention = attention
        self._check(self._lib.pcr_session_begin(self._pointer, sequence, params))
        del held

    def append(self, samples: _Floats, sequence: int = 0) -> None:
        """Appends mono samples at 16 kHz to a clip. They are worked on by `advance`."""
        self._check(self._lib.pcr_session_feed(self._pointer, sequence, self._input(samples), len(samples)))

    def advance(self, sequence: int = 0, max_windows: int = _WINDOWS) -> bool:
        """Works on a block of a clip's audio, of at most so many windows of 8 s. False: nothing is left to do."""
        status = self._lib.pcr_session_advance(self._pointer, sequence, max_windows)
        self._check(status)
        return bool(status != self._lib.PCR_END)

    def feed(self, samples: _Floats, sequence: int = 0) -> None:
        """Appends samples, and works on all that is possible."""
        self.append(samples, sequence)
        while self.advance(sequence):
            pass

    def end(self, sequence: int = 0, n_samples: int = -1) -> None:
        """No more samples of this clip will come; only the first so many count, if that is not negative."""
        self._check(self._lib.pcr_session_end(self._pointer, sequence, n_samples))

    def begin_hypothesis(self, sequence: int = 0) -> None:
        """Until `end_hypothesis` a clip is as if its audio ended here."""
        self._check(self._lib.pcr_session_begin_hypothesis(self._pointer, sequence))

    def end_hypothesis(self, sequence: int = 0) -> list[tuple[int, float]]:
        """The hypothesis' tokens with their probabilities: see `pcr_session_end_hypothesis`."""
        capacity = self._model.info()["llm_max_positions"]  # no text is longer
        tokens, count = self._ffi.new("pcr_token[]", capacity), self._ffi.new("size_t *")
        self._check(self._lib.pcr_session_end_hypothesis(self._pointer, sequence, tokens, capacity, count))
        return [(token.id, token.probability) for token in tokens[0 : count[0]]]

    def hypothesis(self, sequence: int = 0) -> list[tuple[int, float]]:
        """The tokens of what was fed so far, as if the audio ended there, with their probabilities."""
        self.begin_hypothesis(sequence)
        while self.next_of([sequence])[0]:
            pass
        return self.end_hypothesis(sequence)

    def run(self, sequences: list[int], seconds: float) -> None:
        """Decodes clips until the text of one of them is complete, `wake` is called, or so many seconds have passed."""
        self._check(self._lib.pcr_session_run(self._pointer, sequences, len(sequences), seconds))

    def take(self, sequence: int) -> tuple[list[tuple[int, float]], bool]:
        """The tokens of a clip that were not taken yet, with their probabilities; True when its text is complete."""
        tokens, count = self._taken, self._count
        found: list[tuple[int, float]] = []
        while True:
            status = self._lib.pcr_session_take(self._pointer, sequence, tokens, len(tokens), count)
            self._check(status)
            found += [(token.id, token.probability) for token in tokens[0 : count[0]]]
            if status == self._lib.PCR_END or count[0] < len(tokens):
                return found, bool(status == self._lib.PCR_END)

    def next(self) -> tuple[int, float] | None:
        """The first clip's next token and its probability, or None when the text is complete."""
        return self.next_of([0])[0]

    def next_of(self, sequences: list[int]) -> list[tuple[int, float] | None]:
        """The same for several clips, as one batch."""
        tokens = self._ffi.new("pcr_token[]", len(sequences))
        self._check(self._lib.pcr_session_next(self._pointer, sequences, len(sequences), tokens))
        return [(token.id, token.probability) if token.id >= 0 else None for token in tokens]

    def align(self, samples: _Floats, tokens: Sequence[int], sequence: int = 0) -> list[tuple[int, float]]:
        """The bin of time, and its probability, of each place among tokens: see `pcr_session_align`.

        Args:
            samples: All of the audio, mono at 16 kHz, `[n]`.
            tokens: Of the text; -1 for a place.
            sequence: Where. Its clip is forgotten.
        """
        ids, count = self._ffi.new("int32_t[]", tokens), self._ffi.new("size_t *")
        places = self._ffi.new("pcr_place[]", sum(token < 0 for token in tokens))
        status = self._lib.pcr_session_align(
            self._pointer, sequence, self._input(samples), len(samples), ids, len(ids), places, len(places), count
        )
        self._check(status)
        return [(place.bin, place.probability) for place in places]

    def wake(self) -> None:
        """Makes the `run` that is going on, or else the next one, return soon. Any thread."""
        self._handle.use(self._lib.pcr_session_wake)

    def cancel(self) -> None:
        """Makes the running call, or else the next one, raise `Cancelled`. Nothing happens to a freed session."""
        self._handle.use(self._lib.pcr_session_cancel)

    def decode_clip(self, samples: _Floats) -> Iterator[tuple[int, float]]:
        """Forgets all else, and gives the tokens of one segment of audio, with their probabilities, as they come.

        Args:
            samples: Mono at 16 kHz, shape `[n]`.
        """
        self.reset()
        self.feed(samples)
        self.end()
        return iter(self.next, None)

    def reset(self) -> None:
        """Forgets every clip, and a cancellation."""
        self._check(self._lib.pcr_session_reset(self._pointer))

    @property
    def memory(self) -> int:
        """Bytes of its caches and buffers."""
        return int(self._lib.pcr_session_memory(self._pointer))

    def result(self, sequence: int = 0) -> dict[str, Any]:
        """`pcr_result`'s fields: what has been done so far for a clip."""
        result = self._ffi.new("pcr_result *")
        self._check(self._lib.pcr_session_result(self._pointer, sequence, result))
        return _fields(self._ffi, result)

    def attention(self, sequence: int = 0) -> _Floats:
        """How the session's heads attended to a clip's audio, `[steps, heads, rows]`: see `pcr_session_attention`."""
        steps = self._ffi.new("int64_t *")
        self._check(self._lib.pcr_session_attention(self._pointer, sequence, self._ffi.NULL, 0, steps))
        weights = np.empty((steps[0], len(self.heads), self.result(sequence)["n_rows"]), np.float32)
        self._check(
            self._lib.pcr_session_attention(self._pointer, sequence, self._output(weights), weights.size, steps)
        )
        return weights

    # The stages one by one, for comparison with a reference.

    def log_mel(self, samples: _Floats) -> _Floats:
        """Log-mel `[n_frames, n_mels]` of samples `[n]`."""
        frames = self._ffi.new("int64_t *")
        mel = np.empty((self._model.frame_count(len(samples)), self._model.info()["n_mels"]), dtype=np.float32)
        status = self._lib.pcr_log_mel(
            self._pointer, self._input(samples), len(samples), self._output(mel), mel.size, frames
        )
        self._check(status)
        return mel

    def encode(self, mel: _Floats, n_layers: int = -1) -> _Floats:
        """Encoder rows `[rows, encoder_output]` of a log-mel `[n_frames, n_mels]`; see `pcr_encode` for n_layers."""
        info = self._model.info()
        columns = info["encoder_output" if n_layers < 0 else "encoder_d_model"]
        # Rows that are joined to one are no wider, taken together.
        most = self._model.row_count(len(mel)) * max(info["encoder_output"], info["encoder_d_model"])
        values, n_rows = np.empty(most, np.float32), self._ffi.new("int64_t *")
        status = self._lib.pcr_encode(
            self._pointer, self._input(mel), len(mel), n_layers, self._output(values), values.size, n_rows
        )
        self._check(status)
        return values[: n_rows[0] * columns].reshape(n_rows[0], columns)

    def adapt(self, rows: _Floats) -> _Floats:
        """Adapter rows `[rows, llm_hidden]` of encoder rows `[rows, encoder_output]`."""
        out = np.empty((len(rows), self._model.info()["llm_hidden"]), np.float32)
        self._check(self._lib.pcr_adapt(self._pointer, self._input(rows), len(rows), self._output(out), out.size))
        return out

    def embed(self, tokens: list[int]) -> _Floats:
        """Embeddings `[count, llm_hidden]` of tokens."""
        out = np.empty((len(tokens), self._model.info()["llm_hidden"]), np.float32)
        ids = self._ffi.new("int32_t[]", tokens)
        self._check(self._lib.pcr_embed(self._pointer, ids, len(tokens), self._output(out), out.size))
        return out

    def decode(self, embeddings: _Floats, *, sequence: int = 0, n_past: int = 0, n_layers: int = -1) -> _Floats:
        """Logits `[llm_vocab]` after embeddings `[rows, llm_hidden]`; see `pcr_decode` for n_past and n_layers."""
        info = self._model.info()
        out = np.empty(info["llm_vocab" if n_layers < 0 else "llm_hidden"], np.float32)
        rows = self._input(embeddings)
        status = self._lib.pcr_decode(
            self._pointer, sequence, rows, len(embeddings), n_past, n_layers, self._output(out), out.size
        )
        self._check(status)
        return out

    def decode_step(self, sequences: list[int], tokens: list[int]) -> _Floats:
        """Logits `[count, llm_vocab]` after one more token in each of the sequences."""
        out = np.empty((len(tokens), self._model.info()["llm_vocab"]), np.float32)
        where, what = self._ffi.new("int32_t[]", sequences), self._ffi.new("int32_t[]", tokens)
        self._check(self._lib.pcr_decode_step(self._pointer, where, what, len(tokens), self._output(out), out.size))
        return out

    def importance(self) -> dict[str, tuple[npt.NDArray[np.float64], int]]:
        """For each matrix multiplied so far: the energy of its input columns `[columns]`, and how many rows gave it."""
        ffi = self._ffi
        name, energies = ffi.new("const char **"), ffi.new("const double **")
        columns, rows = ffi.new("int64_t *"), ffi.new("int64_t *")
        found: dict[str, tuple[npt.NDArray[np.float64], int]] = {}
        while True:
            status = self._lib.pcr_importance(self._pointer, len(found), name, energies, columns, rows)
            self._check(status)
            if status == self._lib.PCR_END:
                return found
            values = np.frombuffer(ffi.buffer(energies[0], columns[0] * 8), np.float64).copy()
            found[_text(ffi, name[0])] = values, int(rows[0])

    def _input(self, array: _Floats) -> Any:
        return self._ffi.from_buffer("float[]", np.ascontiguousarray(array, dtype=np.float32))

    def _output(self, array: _Floats) -> Any:
        return self._ffi.from_buffer("float[]", array, require_writable=True)

    def _check(self, status: int) -> None:
        drain_log()
        if status == self._lib.PCR_ERROR_BUSY:  # the handle's message belongs to the thread that is inside
            _check(status, "another thread is using this session: give each thread a session of its own")
        if status < 0:
            _check_work(status, _text(self._ffi, self._lib.pcr_session_error(self._pointer)))


def _clip_params(language: str | None, context: str | None) -> tuple[Any, list[Any]]:
    """A `pcr_clip_params`, and what must live as long as it is used."""
    ffi, lib = library()
    params = ffi.new("pcr_clip_params *")
    lib.pcr_clip_params_default(params)
    texts = [ffi.NULL if text is None else ffi.new("char[]", text.encode()) for text in (language, context)]
    params.language, params.context = texts
    return params, texts


def _int32(name: str, value: int) -> int:
    """A whole number that C takes as an int32_t.

    Raises:
        UsageError: It does not fit.
    """
    if not -(2**31) <= value < 2**31:
        raise errors.UsageError(f"{name} cannot be {value}: it is out of range")
    return value


def _check(status: int, message: str) -> None:
    if status >= 0:
        return
    ffi, _ = library()
    name = ffi.string(ffi.cast("pcr_status", status))
    # A message may quote what a file holds.
    raise _EXCEPTIONS.get(name, errors.InternalError)(
        printable(message) or f"the library reported {name} without a message"
    )


def _check_work(status: int, message: str) -> None:
    """As `_check`, for a session: its model is sound, so that what is not supported is the work asked of it."""
    try:
        _check(status, message)
    except errors.UnsupportedModelError as error:
        raise errors.UnsupportedOperationError(str(error)) from None


def _fields(ffi: Any, struct: Any) -> dict[str, Any]:
    """A struct's members but its size, with C strings as str."""
    values = {}
    for name, field in ffi.typeof(struct).item.fields:
        if name != "size":
            value = getattr(struct, name)
            values[name] = _text(ffi, value) if field.type.kind == "pointer" else value
    return values


def _text(ffi: Any, pointer: Any) -> str:
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""

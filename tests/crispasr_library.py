"""libcrispasr, the earlier C++ runtime for the same files: a second opinion on every stage.

Its shared library comes with the PyPI wheel `crispasr` (0.8.45), whose Python side is not used. Stages can be computed
for clips of one second and more; shorter ones it pads to a second.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_void_p
from pathlib import Path
from types import TracebackType

import numpy as np

_Floats = POINTER(c_float)
_Ints = POINTER(c_int)
_OnToken = ctypes.CFUNCTYPE(None, c_int, c_float, c_void_p)


class _Params(ctypes.Structure):
    _fields_ = (("n_threads", c_int), ("verbosity", c_int), ("use_gpu", c_bool), ("flash_attn", c_bool))


_SIGNATURES = {
    "init_from_file": (c_void_p, c_char_p, _Params),
    "free": (None, c_void_p),
    "compute_mel": (_Floats, c_void_p, _Floats, c_int, _Ints, _Ints),
    "run_encoder": (_Floats, c_void_p, _Floats, c_int, c_int, _Ints, _Ints),
    "run_adapter": (_Floats, c_void_p, _Floats, c_int, c_int, _Ints, _Ints),
    "build_prompt": (c_int, c_void_p, c_int, _Ints, c_int),
    "embed_tokens": (_Floats, c_void_p, _Ints, c_int),
    "kv_init": (c_bool, c_void_p, c_int),
    "kv_reset": (None, c_void_p),
    "run_llm_kv": (_Floats, c_void_p, _Floats, c_int, c_int, _Ints, _Ints),
    "token_text": (c_char_p, c_void_p, c_int),
    "transcribe_cb": (c_void_p, c_void_p, _Floats, c_int, _OnToken, c_void_p),
    "set_max_new_tokens": (None, c_void_p, c_int),
}


def find() -> Path | None:
    """The path of `libcrispasr.so`, or None where the wheel is not installed."""
    spec = importlib.util.find_spec("crispasr")  # finds without importing
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in Path(folder).glob("libcrispasr.so*")), None)


class Crispasr:
    """A model file opened by libcrispasr. Close it, or use it in a `with` statement."""

    def __init__(self, model: str | os.PathLike[str], n_threads: int = 2) -> None:
        path = find()
        if path is None:
            raise FileNotFoundError("libcrispasr.so: pip install crispasr==0.8.45")
        self._library = ctypes.CDLL(str(path))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = self._function(name)
            function.restype, function.argtypes = result, arguments
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = (c_void_p,)
        os.environ.setdefault("CRISPASR_MOSS_TRANSCRIBE_NO_LOOPFIX", "1")  # the tokens as they were decoded
        self._context = self._function("init_from_file")(os.fsencode(model), _Params(n_threads, 0, False, False))
        if not self._context:
            raise ValueError(f"libcrispasr cannot load {model}")

    def __enter__(self) -> Crispasr:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._function("free")(self._context)
            self._context = None

    def log_mel(self, samples: np.ndarray) -> np.ndarray:
        """[n] -> [n_mels, T]."""
        samples, n_mels, frames = _float_array(samples), c_int(), c_int()
        data = self._call("compute_mel", _pointer(samples), len(samples), byref(n_mels), byref(frames))
        return self._take(data, n_mels.value, frames.value)

    def encode(self, mel: np.ndarray) -> np.ndarray:
        """[n_mels, T] -> [A, output_dim]."""
        return self._rows("run_encoder", mel)

    def adapt(self, rows: np.ndarray) -> np.ndarray:
        """[A, output_dim] -> [A, hidden]."""
        return self._rows("run_adapter", rows)

    def prompt_ids(self, n_audio: int) -> list[int]:
        """The prompt, with some token id in each audio row's place."""
        ids = (c_int * (n_audio + 32))()
        return list(ids[: self._call("build_prompt", n_audio, ids, len(ids))])

    def embed(self, ids: Sequence[int], hidden_size: int) -> np.ndarray:
        """[P] -> [P, hidden]; the library does not say how wide its rows are."""
        data = self._call("embed_tokens", (c_int * len(ids))(*ids), len(ids))
        return self._take(data, len(ids), hidden_size)

    def start(self, max_rows: int) -> None:
        """Make room for a sequence of `max_rows`, and forget the last one."""
        if not self._call("kv_init", max_rows):
            raise MemoryError(f"libcrispasr: no KV cache of {max_rows} rows")
        self._call("kv_reset")

    def logits(self, rows: np.ndarray, n_past: int) -> np.ndarray:
        """[P, hidden] behind `n_past` rows of the sequence -> [V] of the last row."""
        rows, count, vocab = _float_array(rows), c_int(), c_int()
        data = self._call("run_llm_kv", _pointer(rows), len(rows), n_past, byref(count), byref(vocab))
        return self._take(data, count.value, vocab.value)[-1]

    def transcribe(self, samples: np.ndarray, max_new_tokens: int = 512) -> list[int]:
        """[n] -> token ids, as its own loop decodes them."""
        samples, ids = _float_array(samples), list[int]()
        self._call("set_max_new_tokens", max_new_tokens)
        on_token = _OnToken(lambda token, _probability, _user: ids.append(token))
        self._free(self._call("transcribe_cb", _pointer(samples), len(samples), on_token, None))
        return ids

    def _rows(self, name: str, values: np.ndarray) -> np.ndarray:
        values, rows, columns = _float_array(values), c_int(), c_int()
        data = self._call(name, _pointer(values), *values.shape, byref(rows), byref(columns))
        return self._take(data, rows.value, columns.value)

    def _function(self, name: str):
        return getattr(self._library, f"moss_transcribe_{name}")

    def _call(self, name: str, *arguments):
        return self._function(name)(self._context, *arguments)

    def _take(self, data, rows: int, columns: int) -> np.ndarray:
        if not data:
            raise RuntimeError("libcrispasr: the stage failed")
        values = np.ctypeslib.as_array(data, (rows, columns)).copy()
        self._free(data)
        return values


def _float_array(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _pointer(values: np.ndarray):
    return values.ctypes.data_as(_Floats)

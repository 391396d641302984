"""Our models in libcrispasr, stage by stage: a second opinion on every number.

Its functions `FAMILY_*` give the stages of clips of one second and more; shorter ones it pads to a second. They write
to stderr when a model is loaded.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pycrispasr.errors import InstallationError, UnsupportedModelError
from pycrispasr.options import MAX_NEW_TOKENS
from pycrispasr.runtimes import crispasr

if TYPE_CHECKING:
    from typing_extensions import Self

    from pycrispasr.audio import Samples

_DECLARATIONS = """
typedef struct { int n_threads; int verbosity; bool use_gpu; bool flash_attn; } params;
typedef void (*on_token)(int token, float probability, void *user);
void free(void *pointer);
"""
_OF_EVERY_FAMILY = """
void *FAMILY_init_from_file(const char *path, params params);
void FAMILY_free(void *context);
float *FAMILY_compute_mel(void *context, const float *samples, int n, int *n_mels, int *frames);
float *FAMILY_embed_tokens(void *context, const int *ids, int n);
bool FAMILY_kv_init(void *context, int rows);
void FAMILY_kv_reset(void *context);
float *FAMILY_run_llm_kv(void *context, const float *rows, int n, int n_past, int *count, int *vocab);
"""
_ENCODER = """
float *FAMILY_run_encoder(void *context, const float *mel, int n_mels, int frames, int *rows, int *columns);
"""
_ENCODER_OF_SAMPLES = """
float *FAMILY_run_encoder(void *context, const float *samples, int n, int *rows, int *columns);
"""
_WITH_ENCODERS_OF_SAMPLES = ("moss_diarize",)
# What only some have, by their names: a family without an adapter, say.
_OF_SOME = {
    "run_adapter": "float *FAMILY_run_adapter(void *context, const float *rows, int n, int columns, int *, int *);",
    "run_adaptor": "float *FAMILY_run_adaptor(void *context, const float *rows, int n, int columns, int *, int *);",
    "build_prompt": "int FAMILY_build_prompt(void *context, int n_audio, int *ids, int capacity);",
    "set_max_new_tokens": "void FAMILY_set_max_new_tokens(void *context, int limit);",
    "transcribe_cb": "char *FAMILY_transcribe_cb(void *context, const float *samples, int n, on_token, void *user);",
}


@functools.cache
def _library(family: str) -> tuple[Any, Any, Any]:
    """The `ffi` of cffi, the library, and the C library that frees what it gives."""
    import cffi

    path = crispasr.find()
    if path is None:
        raise InstallationError(crispasr.MISSING)
    ffi = cffi.FFI()
    encoder = _ENCODER_OF_SAMPLES if family in _WITH_ENCODERS_OF_SAMPLES else _ENCODER
    ffi.cdef(_DECLARATIONS + "".join((_OF_EVERY_FAMILY, encoder, *_OF_SOME.values())).replace("FAMILY", family))
    return ffi, ffi.dlopen(str(path), ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0)), ffi.dlopen(None)


class Stages:
    """A model file opened by libcrispasr. A context manager, which closes it.

    Args:
        model: A GGUF file with the published vocabulary: the prompt's ids are fixed in the library.
        family: What the names of its functions begin with.
        threads: How many it computes on.

    Raises:
        InstallationError: The library is missing.
        UnsupportedModelError: It cannot load the file, or would end the process with it.
    """

    def __init__(self, model: str | os.PathLike[str], family: str, threads: int = 2) -> None:
        self._ffi, self._lib, self._c = _library(family)
        self._family = family
        os.environ.setdefault("CRISPASR_MOSS_TRANSCRIBE_NO_LOOPFIX", "1")  # the tokens as they were decoded
        params = self._ffi.new("params *", [threads, 0, False, False])
        self._context = self._function("init_from_file")(os.fsencode(model), params[0])
        if not self._context:
            raise UnsupportedModelError(f"libcrispasr cannot load {str(model)!r}, and does not say why")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model. Closing twice is allowed."""
        if self._context:
            self._function("free")(self._context)
            self._context = None

    def log_mel(self, samples: Samples) -> Samples:
        """Log-mel `[frames, n_mels]` of samples `[n]`."""
        n_mels, frames = self._ints(2)
        data = self._function("compute_mel")(self._context, self._floats(samples), len(samples), n_mels, frames)
        return np.ascontiguousarray(self._take(data, n_mels[0], frames[0]).T)

    @property
    def encodes_samples(self) -> bool:
        """True where its encoder takes samples, and pads them by itself: then `log_mel` is not what it encodes."""
        return self._family in _WITH_ENCODERS_OF_SAMPLES

    def encode(self, sound: Samples) -> Samples:
        """Encoder rows of a log-mel `[frames, n_mels]`, or of samples `[n]` where it `encodes_samples`.

        `[rows, encoder_output]`, or rows of a part of that width, of which several in succession make one.
        """
        rows, columns = self._ints(2)
        if self.encodes_samples:
            data = self._function("run_encoder")(self._context, self._floats(sound), len(sound), rows, columns)
        else:
            frames, n_mels = sound.shape
            data = self._function("run_encoder")(self._context, self._floats(sound.T), n_mels, frames, rows, columns)
        return self._take(data, rows[0], columns[0])

    def adapt(self, rows: Samples) -> Samples:
        """Adapter rows `[rows, llm_hidden]` of what `encode` gave; these, where there is no adapter."""
        name = next((name for name in ("run_adapter", "run_adaptor") if self._has(name)), None)
        if name is None:
            return rows
        count, columns = self._ints(2)
        data = self._function(name)(self._context, self._floats(rows), *rows.shape, count, columns)
        return self._take(data, count[0], columns[0])

    def prompt(self, n_audio: int) -> list[int] | None:
        """The prompt, with some token's id in each audio row's place; None where it does not tell one."""
        if not self._has("build_prompt"):
            return None
        ids = self._ffi.new("int[]", n_audio + 32)
        return list(ids[0 : self._function("build_prompt")(self._context, n_audio, ids, len(ids))])

    def embed(self, ids: Sequence[int], hidden: int) -> Samples:
        """Embeddings `[count, hidden]`; the library does not say how wide they are."""
        data = self._function("embed_tokens")(self._context, self._ffi.new("int[]", list(ids)), len(ids))
        return self._take(data, len(ids), hidden)

    def start(self, capacity: int) -> None:
        """Makes room for a sequence of so many rows, and forgets the last one."""
        if not self._function("kv_init")(self._context, capacity):
            raise MemoryError(f"libcrispasr has no memory for a KV cache of {capacity} rows")
        self._function("kv_reset")(self._context)

    def logits(self, rows: Samples, n_past: int) -> Samples:
        """Logits `[llm_vocab]` after rows `[rows, llm_hidden]` behind `n_past` of the sequence."""
        count, vocab = self._ints(2)
        data = self._function("run_llm_kv")(self._context, self._floats(rows), len(rows), n_past, count, vocab)
        last: Samples = self._take(data, count[0], vocab[0])[-1]
        return last

    def transcribe(self, samples: Samples, max_new_tokens: int = MAX_NEW_TOKENS) -> list[int] | None:
        """Token ids of samples `[n]`, as the library's own loop decodes them; None where that does not tell them."""
        if not self._has("transcribe_cb"):
            return None
        ids: list[int] = []
        self._function("set_max_new_tokens")(self._context, max_new_tokens)
        on_token = self._ffi.callback("on_token", lambda token, _probability, _user: ids.append(token))
        text = self._function("transcribe_cb")(
            self._context, self._floats(samples), len(samples), on_token, self._ffi.NULL
        )
        self._c.free(text)
        return ids

    def greedy(self, prompt: Samples, end: int, max_new_tokens: int = MAX_NEW_TOKENS) -> list[int]:
        """The likeliest token ids behind a prompt with its audio rows, `[rows, llm_hidden]`, until `end`."""
        ids: list[int] = []
        self.start(len(prompt) + max_new_tokens)
        logits = self.logits(prompt, 0)
        while len(ids) < max_new_tokens and (token := int(logits.argmax())) != end:
            ids.append(token)
            logits = self.logits(self.embed([token], prompt.shape[1]), len(prompt) + len(ids) - 1)
        return ids

    def _function(self, name: str) -> Any:
        return getattr(self._lib, f"{self._family}_{name}")

    def _has(self, name: str) -> bool:
        try:
            return bool(self._function(name))
        except AttributeError:
            return False

    def _floats(self, values: Samples) -> Any:
        return self._ffi.from_buffer("float[]", np.ascontiguousarray(values, np.float32))

    def _ints(self, count: int) -> list[Any]:
        return [self._ffi.new("int *") for _ in range(count)]

    def _take(self, data: Any, rows: int, columns: int) -> Samples:
        """A matrix that the library allocated, as an array of ours."""
        if not data:
            raise UnsupportedModelError("a stage of libcrispasr failed, and it does not say why")
        values: Samples = np.frombuffer(self._ffi.buffer(data, 4 * rows * columns), np.float32).copy()
        self._c.free(data)
        return values.reshape(rows, columns)

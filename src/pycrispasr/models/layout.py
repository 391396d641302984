"""What belongs in a model file: metadata, tensors with their shapes, and the types they may have.

Shapes are NumPy's: rows first, so GGUF, which counts from the fastest dimension, lists them the other way round.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from pycrispasr.errors import UsageError
from pycrispasr.models import gguf_file
from pycrispasr.models.families import FLOAT_SIZES, Family, Sizes
from pycrispasr.models.gguf_file import Progress, Tensor, Value
from pycrispasr.runtimes import native

_logger = logging.getLogger("pycrispasr")

FLOAT_TYPES = ("f32", "f16", "bf16")

TYPES = (*FLOAT_TYPES, "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0")

# The decoder's matrices, the only ones that a quantised file quantises unless all matrices are asked for.
_DECODER_MATRICES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")

N_FFT = 400
SAMPLE_RATE = 16000


def known_type(name: str) -> str:
    """A type's name, in lower case.

    Raises:
        UsageError: There is no such type.
    """
    if name.lower() not in TYPES:
        raise UsageError(f"there is no type {name!r}: choose one of {', '.join(TYPES)}")
    return name.lower()


def tensor_shapes(sizes: Mapping[str, int | float | bool]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of these sizes, by its shared name, in the order in which data flows through it."""
    m = {key: int(value) for key, value in sizes.items() if key not in FLOAT_SIZES}
    mels, d, channels = m["enc.num_mel_bins"], m["enc.d_model"], m["enc.downsample_hidden_size"]
    freq = mels  # bins left after three convolutions of stride 2, kernel 3, padding 1
    for _ in range(3):
        freq = (freq - 1) // 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "audio.mel_filters": (N_FFT // 2 + 1, mels),
        "audio.mel_window": (N_FFT,),
    }

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, size: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (size,)
        if bias:
            shapes[f"{name}.bias"] = (size,)

    for i, in_channels in enumerate((1, channels, channels), start=1):
        shapes[f"enc.conv{i}.weight"] = (channels, in_channels, 3, 3)
        shapes[f"enc.conv{i}.bias"] = (channels,)
    linear("enc.conv_out", d, channels * freq, bias=False)
    for i in range(m["enc.encoder_layers"]):
        norm(f"enc.blk.{i}.attn_norm", d)
        for part in "qkvo":
            linear(f"enc.blk.{i}.attn.{part}", d, d)
        norm(f"enc.blk.{i}.ffn_norm", d)
        linear(f"enc.blk.{i}.ffn.fc1", m["enc.encoder_ffn_dim"], d)
        linear(f"enc.blk.{i}.ffn.fc2", d, m["enc.encoder_ffn_dim"])
    norm("enc.ln_post", d)
    linear("enc.proj1", d, d)
    linear("enc.proj2", m["enc.output_dim"], d)

    hidden, inner = m["llm.hidden_size"], m["llm.intermediate_size"]
    if adapter := m.get("adapter.hidden_size"):
        linear("adapter.gate", adapter, m["enc.output_dim"], bias=False)
        linear("adapter.up", adapter, m["enc.output_dim"], bias=False)
        linear("adapter.down", hidden, adapter, bias=False)

    q_size, kv_size = (m[f"llm.{heads}"] * m["llm.head_dim"] for heads in ("num_heads", "num_kv_heads"))
    linear("llm.embed", m["llm.vocab_size"], hidden, bias=False)
    for i in range(m["llm.num_layers"]):
        norm(f"llm.blk.{i}.attn_norm", hidden, bias=False)
        linear(f"llm.blk.{i}.attn.q", q_size, hidden, bias=False)
        linear(f"llm.blk.{i}.attn.k", kv_size, hidden, bias=False)
        linear(f"llm.blk.{i}.attn.v", kv_size, hidden, bias=False)
        linear(f"llm.blk.{i}.attn.o", hidden, q_size, bias=False)
        norm(f"llm.blk.{i}.attn.q_norm", m["llm.head_dim"], bias=False)
        norm(f"llm.blk.{i}.attn.k_norm", m["llm.head_dim"], bias=False)
        norm(f"llm.blk.{i}.ffn_norm", hidden, bias=False)
        linear(f"llm.blk.{i}.ffn.gate", inner, hidden, bias=False)
        linear(f"llm.blk.{i}.ffn.up", inner, hidden, bias=False)
        linear(f"llm.blk.{i}.ffn.down", hidden, inner, bias=False)
    norm("llm.final_norm", hidden, bias=False)
    if not sizes["llm.tied_embeddings"]:
        linear("llm.lm_head", m["llm.vocab_size"], hidden, bias=False)
    if bins := m.get("align.bins"):
        linear("align.classifier", bins, hidden, bias=bool(m.get("align.bias")))
    return shapes


def tensor_type(name: str | None, shape: Sequence[int], file_type: str, *, all_matrices: bool = False) -> str:
    """The name of the type, e.g. "Q4_K", that a tensor has in a file of `file_type`.

    `name` is the shared one; None for a tensor that none of the families knows.

    Vectors are F32. Where the type is quantised, so are the decoder's matrices (`all_matrices`: every matrix) whose
    rows are whole blocks; all the rest, convolutions among them, is F16.
    """
    if len(shape) == 1 or is_table(name):
        return "F32"
    if file_type not in FLOAT_TYPES:
        inside = (name or "").removesuffix(".weight").split(".", 3)
        is_decoder = (name or "").startswith("llm.blk.") and inside[3] in _DECODER_MATRICES
        whole_blocks = len(shape) == 2 and native.row_bytes(file_type, shape[-1]) > 0
        if not (whole_blocks and (is_decoder or all_matrices)):
            return "F16"
    return file_type.upper()


def is_table(name: str | None) -> bool:
    """True for the spectrogram's tables, which are computed with as they stand."""
    return name is not None and name.startswith("audio.mel_")


def tell_undivided(shapes: Mapping[str, Sequence[int]], types: Mapping[str, str], file_type: str) -> None:
    """Logs how many of the decoder's matrices are not of the file's type because of the length of their rows.

    Shapes and types are by shared names.
    """
    block = block_length(file_type)
    lengths = [
        shapes[name][-1]
        for name, kind in types.items()
        if kind == "F16"
        and shapes[name][-1] % block
        and tensor_type(name, (*shapes[name][:-1], block), file_type) == file_type.upper()
    ]
    if lengths:
        _logger.warning(
            "%d matrices of the decoder stay F16: their rows, of %s values, are no multiple of %d",
            len(lengths), " or ".join(map(str, sorted(set(lengths)))), block,
        )  # fmt: skip


def block_length(kind: str) -> int:
    """Values in a block of a type."""
    return next(length for length in (1, 32, 256) if native.row_bytes(kind, length))


def mel_filters(n_mels: int) -> np.ndarray:
    """Slaney's triangular filters from 0 to 8000 Hz, each of unit area: float32 `(201, n_mels)`.

    The formulas are those of Slaney's Auditory Toolbox (1998): the mel scale is linear with 200/3 Hz a mel below
    1000 Hz and logarithmic with ln(6.4)/27 a mel above.
    """
    highest_mel = 15 + np.log(SAMPLE_RATE / 2 / 1000) * 27 / np.log(6.4)
    mel = np.linspace(0, highest_mel, n_mels + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))  # Hz
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]  # Hz
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    filters: np.ndarray = np.maximum(triangles, 0) * 2 / (right - left)
    return filters.astype(np.float32)


def mel_window() -> np.ndarray:
    """The periodic Hann window: float32 `(400,)`."""
    window: np.ndarray = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    return window.astype(np.float32)


def write_gguf(
    path: str | os.PathLike[str],
    family: Family,
    sizes: Mapping[str, int | float | bool],
    tokens: Sequence[str],
    merges: Sequence[str],
    tensors: Sequence[Tensor],
    *,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Writes a model file: see `gguf_file.write`.

    `sizes` and `tensors` have the names that families share; the file gets the family's own. Bool, int and float become
    the GGUF types bool, u32 and f32.
    """
    kinds = {bool: gguf_file.BOOL, int: gguf_file.U32, float: gguf_file.F32}
    metadata: Sizes = {family.keys[size]: value for size, value in sizes.items() if size in family.keys}
    metadata |= family.derived(sizes) | {key: value for key, value in sizes.items() if key in family.specials}
    values = {
        "general.architecture": Value(gguf_file.STRING, family.architecture),
        "general.name": Value(gguf_file.STRING, name),
        **{f"{family.architecture}.{key}": Value(kinds[value.__class__], value) for key, value in metadata.items()},
        "tokenizer.ggml.model": Value(gguf_file.STRING, "gpt2"),
        "tokenizer.ggml.tokens": Value(gguf_file.ARRAY, list(tokens), gguf_file.STRING),
        "tokenizer.ggml.merges": Value(gguf_file.ARRAY, list(merges), gguf_file.STRING),
    }
    stored = [dataclasses.replace(tensor, name=family.stored(tensor.name)) for tensor in tensors]
    gguf_file.write(path, values, stored, progress=progress)

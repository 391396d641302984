"""A Hugging Face checkpoint of MOSS-Transcribe becomes one GGUF file.

`convert` reads `config.json`, the (sharded) safetensors and the tokenizer of a checkpoint. `write_gguf` writes the
file; `tensor_shapes`, `tensor_type` and `mel_filters` say what belongs in it, and `recoded` brings a matrix from one
type to another. Shapes are NumPy's: rows first, so GGUF, which counts from the fastest dimension, lists them the other
way round.

Needs the package `gguf`: `pip install 'pycrispasr[convert]'`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycrispasr.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError, UsageError
from pycrispasr.models import gguf_file, hub
from pycrispasr.models.gguf_file import Progress, Tensor, Value
from pycrispasr.runtimes import native

ARCHITECTURE = "moss_transcribe"
FLOAT_TYPES = ("f32", "f16", "bf16")
TYPES = (*FLOAT_TYPES, "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0")
N_FFT = 400
SAMPLE_RATE = 16000

_FRONT_END = {"n_fft": 400, "win_length": 400, "hop_length": 160, "sampling_rate": 16000}
_logger = logging.getLogger("pycrispasr")

# The decoder's matrices, the only ones that a quantised file quantises unless it is told to quantise them all.
_DECODER_MATRICES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")

# Metadata key: (section of config.json, key there, the transformers library's default, which it leaves out of the file)
_CONFIG_KEYS: dict[str, tuple[str, str, int | float | None]] = {
    "enc.num_mel_bins": ("audio_config", "num_mel_bins", 128),
    "enc.encoder_layers": ("audio_config", "encoder_layers", 32),
    "enc.d_model": ("audio_config", "d_model", 1280),
    "enc.encoder_attention_heads": ("audio_config", "encoder_attention_heads", 20),
    "enc.encoder_ffn_dim": ("audio_config", "encoder_ffn_dim", 5120),
    "enc.downsample_hidden_size": ("audio_config", "downsample_hidden_size", 480),
    "enc.max_source_positions": ("audio_config", "max_source_positions", 1500),
    "enc.n_window": ("audio_config", "n_window", 50),
    "enc.n_window_infer": ("audio_config", "n_window_infer", 800),
    "enc.output_dim": ("audio_config", "output_dim", None),
    "enc.layer_norm_eps": ("audio_config", "layer_norm_eps", 1e-5),
    "adapter.hidden_size": ("", "adapter_hidden_size", None),
    "llm.hidden_size": ("language_config", "hidden_size", None),
    "llm.num_layers": ("language_config", "num_hidden_layers", None),
    "llm.num_heads": ("language_config", "num_attention_heads", None),
    "llm.num_kv_heads": ("language_config", "num_key_value_heads", None),
    "llm.head_dim": ("language_config", "head_dim", 128),
    "llm.intermediate_size": ("language_config", "intermediate_size", None),
    "llm.vocab_size": ("language_config", "vocab_size", 151936),
    "llm.max_position_embeddings": ("language_config", "max_position_embeddings", 32768),
    "llm.rope_theta": ("language_config", "rope_theta", None),
    "llm.rms_norm_eps": ("language_config", "rms_norm_eps", 1e-6),
}
_FLOAT_KEYS = {"enc.layer_norm_eps", "llm.rope_theta", "llm.rms_norm_eps"}

# What the runtime's arithmetic takes for granted; a checkpoint that says otherwise would give wrong text.
_ASSUMED: tuple[tuple[str, str, object], ...] = (
    ("audio_config", "activation_function", "gelu"),
    ("audio_config", "scale_embedding", False),
    ("language_config", "hidden_act", "silu"),
    ("language_config", "attention_bias", False),
    ("language_config", "use_sliding_window", False),
)

# Special tokens: metadata key -> names to look for in the tokenizer where config.json has no id.
_SPECIAL_TOKENS = {
    "bos_token_id": ("<|endoftext|>",),
    "eos_token_id": ("<|im_end|>",),
    "start_token_id": ("<|im_start|>",),
    "audio_start_id": ("<|audio_bos|>", "<|audio_start|>"),
    "audio_end_id": ("<|audio_eos|>", "<|audio_end|>"),
}

_SOURCE_PREFIXES = {"enc": "audio_model", "adapter": "audio_adapter", "llm": "language_model"}
_SOURCE_PARTS = {  # part of a tensor's name in the GGUF file -> in the checkpoint
    "enc": {
        "conv1": "conv2d1",
        "conv2": "conv2d2",
        "conv3": "conv2d3",
        "blk": "layers",
        "attn_norm": "self_attn_layer_norm",
        "ffn_norm": "final_layer_norm",
        "attn": "self_attn",
        "ffn": "",
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "o": "out_proj",
    },
    "adapter": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    "llm": {
        "embed": "embed_tokens",
        "final_norm": "norm",
        "blk": "layers",
        "attn": "self_attn",
        "ffn": "mlp",
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "o": "o_proj",
        "gate": "gate_proj",
        "up": "up_proj",
        "down": "down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    },
}

_DTYPES = {"f": "F32", "e": "F16", "H": "BF16"}  # type of an array's items -> of its values

Metadata = dict[str, int | float | bool]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    type: str = "f16",  # noqa: A002
    all_matrices: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint as a GGUF file, tensor by tensor.

    Args:
        source: The checkpoint's folder, or its repository on the Hugging Face hub, "org/name".
        out: The file. It appears under this name when it is complete.
        type: One of `TYPES`. A quantised type is for the decoder's attention and FFN matrices; the other matrices, and
            those whose rows its blocks do not divide, are F16 then.
        all_matrices: Quantise every matrix.
        name: The file's "general.name"; by default the folder's or the repository's.
        progress: Called with bytes, done and in all, after each piece.

    Raises:
        ModelNotFoundError: There is no such checkpoint, or a file of it is missing.
        ModelFormatError: The checkpoint is incomplete or contradicts itself, or a value is too large for the type.
        UnsupportedModelError: It is of another architecture.
        InstallationError: The package `gguf` is missing.
        UsageError: There is no such type.
        PycrispasrError: `out` cannot be written.
    """
    gguf_file.import_gguf()
    kind = known_type(type)
    folder = hub.checkpoint(source)
    config = _read_json(folder / "config.json", "it is the folder of a Hugging Face checkpoint that is wanted")
    tokens, merges = read_tokenizer(folder)
    metadata = read_metadata(config, tokens)
    check_front_end(folder, int(metadata["enc.num_mel_bins"]))
    vocab_size = int(metadata["llm.vocab_size"])
    if len(tokens) > vocab_size:
        raise ModelFormatError(
            f"the tokenizer in {str(folder)!r} has {len(tokens)} tokens but config.json has vocab_size {vocab_size}: "
            "they belong to different models; take both from one checkpoint"
        )
    tokens = tokens + [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]

    arrays = read_safetensors(folder)
    shapes = tensor_shapes(metadata)
    types = {each: tensor_type(each, shape, kind, all_matrices=all_matrices) for each, shape in shapes.items()}
    tell_undivided(shapes, types, kind)
    tensors = []
    for tensor_name, shape in shapes.items():
        if tensor_name == "audio.mel_filters":
            values = mel_filters(shape[1])
        elif tensor_name == "audio.mel_window":
            values = mel_window()
        else:
            values = _find(arrays, tensor_name, shape, folder)
        tensors.append(from_array(tensor_name, values, types[tensor_name]))
    write_gguf(
        out,
        metadata,
        tokens,
        merges,
        tensors,
        name=name if name is not None else Path(source).resolve().name,
        progress=progress,
    )


def known_type(name: str) -> str:
    """A type's name, in lower case.

    Raises:
        UsageError: There is no such type.
    """
    if name.lower() not in TYPES:
        raise UsageError(f"there is no type {name!r}: choose one of {', '.join(TYPES)}")
    return name.lower()


def tensor_shapes(metadata: Mapping[str, int | float | bool]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file with these hyperparameters, in the order of the data's way through the model."""
    m = {key: int(value) for key, value in metadata.items() if key not in _FLOAT_KEYS}
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
    linear("adapter.gate", m["adapter.hidden_size"], m["enc.output_dim"], bias=False)
    linear("adapter.up", m["adapter.hidden_size"], m["enc.output_dim"], bias=False)
    linear("adapter.down", hidden, m["adapter.hidden_size"], bias=False)

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
    if not metadata["llm.tied_embeddings"]:
        linear("llm.lm_head", m["llm.vocab_size"], hidden, bias=False)
    return shapes


def tensor_type(name: str, shape: Sequence[int], file_type: str, *, all_matrices: bool = False) -> str:
    """The name of the type, e.g. "Q4_K", that a tensor has in a file of `file_type`.

    Vectors are F32. Where the type is quantised, so are the decoder's matrices (`all_matrices`: every matrix) whose
    rows are whole blocks; all the rest, convolutions among them, is F16.
    """
    if len(shape) == 1 or name.startswith("audio."):
        return "F32"
    if file_type not in FLOAT_TYPES:
        is_decoder = name.startswith("llm.blk.") and name.removesuffix(".weight").split(".", 3)[3] in _DECODER_MATRICES
        whole_blocks = len(shape) == 2 and native.row_bytes(file_type, shape[-1]) > 0
        if not (whole_blocks and (is_decoder or all_matrices)):
            return "F16"
    return file_type.upper()


def tell_undivided(shapes: Mapping[str, Sequence[int]], types: Mapping[str, str], file_type: str) -> None:
    """Logs how many of the decoder's matrices are not of the file's type because of the length of their rows."""
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


def from_array(name: str, values: npt.NDArray[Any], kind: str) -> Tensor:
    """A tensor whose rows are converted to `kind`. A `uint16` array holds the bits of bfloat16."""
    return recoded(name, values.shape, values.reshape(-1, values.shape[-1]), _DTYPES[values.dtype.char], kind)


def recoded(
    name: str,
    shape: tuple[int, ...],
    rows: npt.NDArray[Any],
    from_type: str,
    to_type: str,
    importance: npt.NDArray[np.float32] | None = None,
) -> Tensor:
    """A tensor whose rows are converted from one type to another, a piece at a time, on all cores.

    Args:
        name: Its name in the file.
        shape: Its shape in the file.
        rows: Its rows in `from_type`, `[rows, ...]`. Where they are mapped from a file, they are read without the map,
            so that they do not stay in memory.
        from_type: The name of a type, e.g. "BF16".
        to_type: The same.
        importance: Weights of the columns when rounding.

    Returns:
        A tensor whose `blocks` raise a ModelFormatError where a value is not finite, or too large for F16.
    """

    def blocks() -> Iterator[npt.NDArray[Any]]:
        for piece in gguf_file.pieces(rows, shape[-1]):
            if not gguf_file.is_finite(piece, from_type, shape[-1]):
                raise ModelFormatError(
                    f"tensor {name!r} has a value that is not a finite number: its file is damaged; fetch or make it "
                    "again"
                )
            if to_type == from_type:
                yield piece
                continue
            converted = native.convert_rows(piece, from_type, to_type, shape[-1], importance)
            if to_type.lower() in FLOAT_TYPES and not gguf_file.is_finite(converted, to_type, shape[-1]):
                largest = np.abs(native.convert_rows(piece, from_type, "F32", shape[-1]).view(np.float32)).max()
                raise ModelFormatError(
                    f"tensor {name!r} has the value {largest:g}, too large for {to_type}: make it bf16 or f32"
                )
            yield converted

    return Tensor(name, shape, to_type, blocks)


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, int | float | bool],
    tokens: Sequence[str],
    merges: Sequence[str],
    tensors: Sequence[Tensor],
    *,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Writes a model file: see `gguf_file.write`.

    `metadata` has the hyperparameters and special ids without their common prefix; bool, int and float become the
    GGUF types bool, u32 and f32.
    """
    kinds = {bool: gguf_file.BOOL, int: gguf_file.U32, float: gguf_file.F32}
    values = {
        "general.architecture": Value(gguf_file.STRING, ARCHITECTURE),
        "general.name": Value(gguf_file.STRING, name),
        **{f"{ARCHITECTURE}.{key}": Value(kinds[value.__class__], value) for key, value in metadata.items()},
        "tokenizer.ggml.model": Value(gguf_file.STRING, "gpt2"),
        "tokenizer.ggml.tokens": Value(gguf_file.ARRAY, list(tokens), gguf_file.STRING),
        "tokenizer.ggml.merges": Value(gguf_file.ARRAY, list(merges), gguf_file.STRING),
    }
    gguf_file.write(path, values, tensors, progress=progress)


def read_metadata(config: Mapping[str, Any], tokens: Sequence[str]) -> Metadata:
    """The hyperparameters and special ids of `config.json`; an id it lacks is looked up in the tokenizer."""
    architecture = config.get("model_type")
    sections: dict[str, Mapping[str, Any]] = {"": config}
    for section in ("audio_config", "language_config"):
        if not isinstance(config.get(section), Mapping):
            raise ModelFormatError(
                f"config.json has no {section!r} (its model_type is {architecture!r}): only checkpoints of "
                "MOSS-Transcribe can be converted; take it from the model's own repository"
            )
        sections[section] = config[section]
    if architecture != ARCHITECTURE:  # the structure decides: the name that the makers gave is not known here
        _logger.warning(
            "config.json has model_type %r, not %r: it is converted, since its parts are those of MOSS-Transcribe",
            architecture, ARCHITECTURE,
        )  # fmt: skip
    for section, key, assumed in _ASSUMED:
        if sections[section].get(key, assumed) != assumed:
            raise UnsupportedModelError(
                f"config.json has {section}.{key} = {sections[section][key]!r}: only {assumed!r} is supported"
            )
    rope = sections["language_config"].get("rope_parameters") or sections["language_config"].get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UnsupportedModelError(
            f"config.json has the RoPE type {rope.get('rope_type', rope.get('type'))!r}: only 'default' is supported"
        )

    metadata: Metadata = {}
    for name, (section, key, default) in _CONFIG_KEYS.items():
        value = sections[section].get(key)
        if value is None and key == "rope_theta":
            value = rope.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool):
            where = f"{section}.{key}".removeprefix(".")
            raise ModelFormatError(
                f"config.json has {where} = {value!r}, not a number: take it from the model's repository"
            )
        metadata[name] = float(value) if name in _FLOAT_KEYS else int(value)
    tied = sections["language_config"].get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    metadata["llm.tied_embeddings"] = bool(tied)
    for name, candidates in _SPECIAL_TOKENS.items():
        metadata[name] = _special_id(name, candidates, sections, tokens)
    return metadata


def check_front_end(folder: Path, n_mels: int) -> None:
    """Refuses a checkpoint whose spectrograms are others than those that the runtime computes.

    Raises:
        UnsupportedModelError: `preprocessor_config.json`, or the part of `processor_config.json` about it, has another
            value.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if not (folder / name).is_file():
            continue
        document = _read_json(folder / name)
        part = document.get("feature_extractor", document)
        for key, wanted in (*_FRONT_END.items(), ("feature_size", n_mels), ("num_mel_bins", n_mels)):
            value = part.get(key, wanted) if isinstance(part, Mapping) else wanted
            if value != wanted:
                raise UnsupportedModelError(
                    f"{name} has {key} = {value!r}: the runtime computes spectrograms with {wanted!r}"
                )


def _special_id(
    name: str, candidates: Sequence[str], sections: Mapping[str, Mapping[str, Any]], tokens: Sequence[str]
) -> int:
    for section in ("", "language_config"):
        value = sections[section].get(name)
        if isinstance(value, int):
            return value
    for candidate in candidates:
        if candidate in tokens:
            return tokens.index(candidate)
    raise ModelFormatError(
        f"config.json has no {name!r} and the tokenizer no {' or '.join(candidates)}: add the id to config.json"
    )


def read_tokenizer(source: Path) -> tuple[list[str], list[str]]:
    """Tokens by id and merges by rank (`"left right"`), from `tokenizer.json` or `vocab.json` and `merges.txt`."""
    vocabulary: dict[str, int]
    if (source / "tokenizer.json").is_file():
        document = _read_json(source / "tokenizer.json")
        model = document.get("model", {})
        if model.get("type", "BPE") != "BPE" or "vocab" not in model or "merges" not in model:
            raise UnsupportedModelError(
                f"{str(source / 'tokenizer.json')!r} holds a {model.get('type')!r} tokenizer: only byte-level BPE is "
                "supported"
            )
        vocabulary = dict(model["vocab"])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        vocabulary |= {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    elif (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        vocabulary = dict(_read_json(source / "vocab.json"))
        lines = (source / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        if (source / "tokenizer_config.json").is_file():
            added = _read_json(source / "tokenizer_config.json").get("added_tokens_decoder", {})
            vocabulary |= {token["content"]: int(i) for i, token in added.items()}
        if (source / "added_tokens.json").is_file():
            vocabulary |= _read_json(source / "added_tokens.json")
    else:
        raise ModelFormatError(
            f"{str(source)!r} has no tokenizer: download its tokenizer.json, or its vocab.json and merges.txt"
        )
    by_id = {i: token for token, i in vocabulary.items()}
    return [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id, default=-1) + 1)], merges


def read_safetensors(source: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files, mapped from disk; bfloat16 as the `uint16` of its bits.

    Format: <https://github.com/huggingface/safetensors#format>.
    """
    index = source / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        names = sorted(path.name for path in source.glob("*.safetensors"))
    if not names:
        raise ModelNotFoundError(f"{str(source)!r} has no *.safetensors file: download the model's weights too")
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        path = source / name
        if not path.is_file():
            raise ModelNotFoundError(
                f"{str(source)!r} lacks {name!r}, which model.safetensors.index.json names: download that shard too"
            )
        arrays |= _read_shard(path)
    return arrays


def _read_shard(path: Path) -> dict[str, np.ndarray]:
    dtypes = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    size = path.stat().st_size
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(start - 8)) if 8 < start <= size else None
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in dtypes:
                continue
            begin, end = entry["data_offsets"]
            array = np.memmap(path, dtypes[entry["dtype"]], "r", start + begin, tuple(entry["shape"]))
            if array.nbytes != end - begin or start + end > size:
                raise ValueError(name)
            arrays[name] = array
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelFormatError(f"{str(path)!r} is no complete safetensors file: download it again") from None
    return arrays


def _find(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], source: Path) -> np.ndarray:
    wanted = _source_name(name)
    candidates = (f"model.{wanted}", wanted, wanted.removeprefix("language_model."))  # lm_head may stand at the top
    array = next((arrays[candidate] for candidate in candidates if candidate in arrays), None)
    if array is None:
        raise ModelFormatError(
            f"{str(source)!r} has no tensor 'model.{wanted}' in F32, F16 or BF16: the checkpoint is incomplete or of "
            "another model; download all its files again"
        )
    if array.shape != shape:
        raise ModelFormatError(
            f"tensor 'model.{wanted}' in {str(source)!r} has the shape {array.shape}, config.json asks for {shape}: "
            "take both from one checkpoint"
        )
    return array


def _source_name(name: str) -> str:
    """The name that a tensor of the GGUF file has in the checkpoint, less the leading `model.`."""
    part, *rest = name.split(".")
    names = [_SOURCE_PREFIXES[part], *(_SOURCE_PARTS[part].get(word, word) for word in rest)]
    return ".".join(word for word in names if word)


def _read_json(path: Path, hint: str = "download the model's files again") -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no {path.name} in {str(path.parent)!r}: {hint}") from None
    except ValueError as error:
        raise ModelFormatError(f"{str(path)!r} is not JSON ({error}): download it again") from None
    if not isinstance(document, dict):
        raise ModelFormatError(f"{str(path)!r} holds no JSON object: download it again")
    return document

"""A Hugging Face checkpoint: `config.json`, the tokenizer and the (sharded) safetensors."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pycrispasr.errors import ModelFormatError, ModelNotFoundError, PycrispasrError, UnsupportedModelError
from pycrispasr.models.download import stays_inside
from pycrispasr.models.families import ARCHITECTURE, FLOAT_KEYS, Metadata

_logger = logging.getLogger("pycrispasr")

_FRONT_END = {"n_fft": 400, "win_length": 400, "hop_length": 160, "sampling_rate": 16000}


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


_MAX_TOKENS = 1 << 22  # that the runtime reads
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
        metadata[name] = float(value) if name in FLOAT_KEYS else int(value)
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
        document = read_json(folder / name)
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
    """Tokens by id and merges by rank (`"left right"`), from `tokenizer.json` or `vocab.json` and `merges.txt`.

    Raises:
        ModelFormatError: There is no tokenizer, or it is not laid out as one.
        UnsupportedModelError: It is of another kind than byte-level BPE.
    """
    try:
        vocabulary, merges = _vocabulary(source)
        by_id = {int(i): str(token) for token, i in vocabulary.items()}
    except PycrispasrError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ModelFormatError(
            f"the tokenizer in {str(source)!r} is not laid out as one ({error!r}): download it again"
        ) from None
    if by_id and not (min(by_id) >= 0 and max(by_id) < _MAX_TOKENS):
        raise ModelFormatError(
            f"the tokenizer in {str(source)!r} has ids from {min(by_id)} to {max(by_id)}: "
            f"0 to {_MAX_TOKENS - 1} are possible"
        )
    return [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id, default=-1) + 1)], merges


def _vocabulary(source: Path) -> tuple[dict[str, Any], list[str]]:
    vocabulary: dict[str, Any]
    if (source / "tokenizer.json").is_file():
        document = read_json(source / "tokenizer.json")
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
        vocabulary = dict(read_json(source / "vocab.json"))
        lines = (source / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        if (source / "tokenizer_config.json").is_file():
            added = read_json(source / "tokenizer_config.json").get("added_tokens_decoder", {})
            vocabulary |= {token["content"]: int(i) for i, token in added.items()}
        if (source / "added_tokens.json").is_file():
            vocabulary |= read_json(source / "added_tokens.json")
    else:
        raise ModelFormatError(
            f"{str(source)!r} has no tokenizer: download its tokenizer.json, or its vocab.json and merges.txt"
        )
    return vocabulary, merges


def read_safetensors(source: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files, mapped from disk; bfloat16 as the `uint16` of its bits.

    Format: <https://github.com/huggingface/safetensors#format>.
    """
    index = source / "model.safetensors.index.json"
    if index.is_file():
        weights = read_json(index).get("weight_map", {})
        names = sorted({str(name) for name in weights.values()} if isinstance(weights, dict) else ())
        for name in names:
            if "/" in name or not stays_inside(name):
                raise ModelFormatError(f"{str(index)!r} names {name!r}, which is no file beside it: download it again")
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
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise ModelFormatError(f"{str(path)!r} is no complete safetensors file: download it again") from None
    return arrays


def find_tensor(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], source: Path) -> np.ndarray:
    """The checkpoint's array for a tensor of the GGUF file.

    Raises:
        ModelFormatError: It is missing, or has another shape.
    """
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


def read_json(path: Path, hint: str = "download the model's files again") -> dict[str, Any]:
    """A JSON object.

    Args:
        path: Its file.
        hint: What to do where there is no such file.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelFormatError: It holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no {path.name} in {str(path.parent)!r}: {hint}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{str(path)!r} is not JSON ({error}): download it again") from None
    if not isinstance(document, dict):
        raise ModelFormatError(f"{str(path)!r} holds no JSON object: download it again")
    return document

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
from pycrispasr.models.families import CHECKPOINTS, FLOAT_SIZES, Family, Sizes

_logger = logging.getLogger("pycrispasr")

_FRONT_END = {"n_fft": 400, "win_length": 400, "hop_length": 160, "sampling_rate": 16000}


_MAX_TOKENS = 1 << 22  # that the runtime reads


def find_family(config: Mapping[str, Any]) -> Family:
    """The family that `config.json` describes: its structure decides, since makers give other names.

    Raises:
        ModelFormatError: It describes none.
    """
    name = config.get("model_type")
    for family in CHECKPOINTS:
        if family.sections(config) is not None:
            if name not in (family.architecture, family.model_type):
                _logger.warning(
                    "config.json has model_type %r, not %r: it is converted, since its parts are those of %s",
                    name, family.model_type, family.name,
                )  # fmt: skip
            return family
    names = " or ".join(sorted(family.name for family in CHECKPOINTS))
    missing = next(part for part in ("audio_config", "language_config") if not isinstance(config.get(part), Mapping))
    raise ModelFormatError(
        f"config.json has no {missing!r} (its model_type is {name!r}): only checkpoints of {names} can be converted; "
        "take it from the model's own repository"
    )


def read_sizes(family: Family, config: Mapping[str, Any], tokens: Sequence[str]) -> Sizes:
    """The hyperparameters and special ids of `config.json`; an id it lacks is looked up in the tokenizer.

    Raises:
        ModelFormatError: One is missing.
        UnsupportedModelError: One is not what the arithmetic takes for granted.
    """
    sections = family.sections(config) or {}
    for section, key, wanted in family.assumed:
        if sections[section].get(key, wanted) != wanted:
            raise UnsupportedModelError(
                f"config.json has {section}.{key} = {sections[section][key]!r}: only {wanted!r} is supported"
            )
    decoder = sections[family.decoder_section]
    rope = decoder.get("rope_parameters") or decoder.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UnsupportedModelError(
            f"config.json has the RoPE type {rope.get('rope_type', rope.get('type'))!r}: only 'default' is supported"
        )

    sizes: Sizes = {}
    for name, (section, key, default) in family.config.items():
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
        sizes[name] = float(value) if name in FLOAT_SIZES else int(value)
    for name, constant in family.constants.items():
        if sizes[name] != constant:
            raise UnsupportedModelError(f"config.json has {name} = {sizes[name]!r}: only {constant!r} is supported")
    sizes["llm.tied_embeddings"] = bool(decoder.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
    for name, candidates in family.specials.items():
        sizes[name] = _special_id(name, candidates, [sections[""], decoder], tokens)
    return sizes


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


def read_processor(folder: Path) -> dict[str, Any]:
    """What `processor_config.json` says, if there is one, as the part "processor" of a configuration."""
    path = folder / "processor_config.json"
    return {"processor": read_json(path) if path.is_file() else {}}


def _special_id(
    name: str, candidates: Sequence[str], sections: Sequence[Mapping[str, Any]], tokens: Sequence[str]
) -> int:
    for section in sections:
        value = section.get(name)
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


def find_tensor(
    arrays: Mapping[str, np.ndarray], candidates: Sequence[str], shape: tuple[int, ...] | None, source: Path
) -> np.ndarray:
    """The checkpoint's array for a tensor.

    Args:
        arrays: All of the checkpoint.
        candidates: The names that it may have.
        shape: Its shape, or None for any.
        source: The checkpoint's folder.

    Raises:
        ModelFormatError: It is missing, or has another shape.
    """
    found = next((candidate for candidate in candidates if candidate in arrays), None)
    if found is None:
        raise ModelFormatError(
            f"{str(source)!r} has no tensor {candidates[0]!r} in F32, F16 or BF16: the checkpoint is incomplete or of "
            "another model; download all its files again"
        )
    if shape is not None and arrays[found].shape != shape:
        raise ModelFormatError(
            f"tensor {found!r} in {str(source)!r} has the shape {arrays[found].shape}, config.json asks for {shape}: "
            "take both from one checkpoint"
        )
    return arrays[found]


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

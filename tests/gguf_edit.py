"""Damaged copies of model files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

PREFIX = "moss_transcribe."


def rewrite(
    source: Path,
    out: Path,
    *,
    values: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """Writes `source` with other metadata values and other tensors; what is None is left out. A sound GGUF file.

    Values that `source` does not have are added, as text or as numbers.
    """
    values, tensors = values or {}, tensors or {}
    reader = gguf.GGUFReader(source)
    architecture = values.get("general.architecture", "moss_transcribe")
    writer = gguf.GGUFWriter(out, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = values.get(key, field.contents())
        if value is not None:
            kind, of = field.types[0], field.types[-1]
            if key in values and not isinstance(value, list):
                kind = gguf.GGUFValueType.get_type(value) if isinstance(value, (str, float, bool)) else kind
            writer.add_key_value(key, value, kind, of if kind == gguf.GGUFValueType.ARRAY else None)
    for key in values.keys() - reader.fields.keys():
        value = values[key]
        kind = gguf.GGUFValueType.get_type(value) if isinstance(value, (str, float)) else gguf.GGUFValueType.UINT32
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if tensor.name not in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        elif (array := tensors[tensor.name]) is not None:
            writer.add_tensor(tensor.name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def tensor(source: Path, name: str) -> np.ndarray:
    """A tensor's values."""
    return next(np.array(tensor.data) for tensor in gguf.GGUFReader(source).tensors if tensor.name == name)


def patch(source: Path, out: Path, behind: bytes, skip: int, value: bytes) -> Path:
    """Writes `source` with `value` over what stands `skip` bytes behind the first place of `behind`."""
    content = bytearray(source.read_bytes())
    place = content.index(behind) + len(behind) + skip
    content[place : place + len(value)] = value
    out.write_bytes(content)
    return out

"""What a GGUF file says about itself: its metadata and the types of its tensors.

For showing only. The library in C++ is what checks files: read one here after it has been opened there.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from typing import Any, BinaryIO

# ggml's tensor types by number: name, weights per block, bytes per block.
_TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Metadata values by number, as `struct` reads them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True, slots=True)
class TensorGroup:
    """All tensors of one type.

    Attributes:
        type: Its name in ggml, e.g. "Q4_K".
        count: Tensors.
        parameters: Weights.
        bytes: Bytes of the file.
    """

    type: str
    count: int
    parameters: int
    bytes: int


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[TensorGroup]]:
    """The metadata by key, and the tensors by type, the largest group first.

    A long array is given as a text that tells its length.
    """
    with open(path, "rb") as file:
        _, _, n_tensors, n_values = _unpack(file, "4sIQQ")
        metadata = {_string(file): _value(file, *_unpack(file, "I")) for _ in range(n_values)}
        groups: dict[str, list[int]] = {}
        for _ in range(n_tensors):
            _string(file)
            (n_dims,) = _unpack(file, "I")
            *shape, number, _ = _unpack(file, f"{n_dims}QIQ")
            name, weights, size = _TENSOR_TYPES.get(number, (f"type {number}", 1, 0))
            group = groups.setdefault(name, [0, 0, 0])
            for index, amount in enumerate((1, math.prod(shape), math.prod(shape) // weights * size)):
                group[index] += amount
    found = [TensorGroup(name, *amounts) for name, amounts in groups.items()]
    return metadata, sorted(found, key=lambda group: -group.bytes)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return file.read(length).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, _NUMBERS[kind])[0]
    of, count = _unpack(file, "IQ")
    if count <= 16:
        return [_value(file, of) for _ in range(count)]
    if of in _NUMBERS:
        file.seek(count * struct.calcsize(_NUMBERS[of]), os.SEEK_CUR)
        return f"{count} numbers"
    for _ in range(count):
        _value(file, of)
    return f"{count} texts"

"""GGUF files: reading them, and writing them so that no half file is ever seen.

What may be computed from a file is checked by the library in C++; here a file is shown, or made into another one.
Writing needs the package `gguf`: `pip install 'pycrispasr[convert]'`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pycrispasr.atomic import replacing
from pycrispasr.errors import InstallationError, ModelFormatError, ModelNotFoundError, PycrispasrError
from pycrispasr.runtimes import native

# ggml's tensor types by number. Where a file has another one, its tensors are listed, but not read.
_TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}
# Metadata values by number, as `struct` reads them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9

_ALIGNMENT = 32  # bytes, where a file's metadata do not say otherwise
_VALUES_AT_A_TIME = 16 << 20  # enough for 16 cores, in 64 MiB of float32

# How float values are stored, and the smallest magnitude of their bits that is no finite number.
_FLOATS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}

Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int], object]  # (bytes written, bytes in all)


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A metadata value.

    Attributes:
        kind: GGUF's number of its type, such as `U32`.
        content: A number, a text, or a list of these.
        item_kind: The type of an array's items.
    """

    kind: int
    content: Any
    item_kind: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        name: Its name.
        shape: Rows first, as NumPy and PyTorch write it.
        type: Its type's name in ggml, e.g. "Q4_K".
        bytes: Bytes of the file; 0 where the type is not known.
        offset: Its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    offset: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written.

    Attributes:
        name: Its name.
        shape: Rows first.
        type: Its type's name in ggml, e.g. "Q4_K".
        blocks: Gives its rows, already in `type`, in as many pieces as it likes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    blocks: Callable[[], Iterable[npt.NDArray[Any]]]

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return n_bytes(self.type, self.shape)


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
    """The metadata by key, and the tensors by type, the largest group first: for showing.

    A long array is given as a text that tells its length.
    """
    values, tensors = load(path)
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.type, []).append(tensor)
    found = [
        TensorGroup(
            kind,
            len(members),
            sum(math.prod(tensor.shape) for tensor in members),
            sum(tensor.bytes for tensor in members),
        )
        for kind, members in groups.items()
    ]
    return {key: _summary(value) for key, value in values.items()}, sorted(found, key=lambda group: -group.bytes)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Value], list[StoredTensor]]:
    """A file's metadata by key, and its tensors in their order.

    Raises:
        ModelNotFoundError: The file cannot be read.
        ModelFormatError: It is no GGUF file, or it is truncated.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return _load(file, size)
    except OSError as error:
        raise ModelNotFoundError(f"{os.fspath(path)!r} cannot be read ({error.strerror or error})") from error
    except (struct.error, LookupError, MemoryError, ArithmeticError, TypeError, ValueError) as error:
        reason = error.args[0] if type(error) is ValueError else "its header cannot be read"
        raise ModelFormatError(
            f"{os.fspath(path)!r} is no GGUF file, or a broken or truncated one: {reason}; fetch or make it again"
        ) from None


def _load(file: BinaryIO, size: int) -> tuple[dict[str, Value], list[StoredTensor]]:
    magic, version, n_tensors, n_values = _unpack(file, "4sIQQ")
    if magic != b"GGUF":
        raise ValueError(f"it begins with {magic!r}")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, not 3")
    if max(n_tensors, n_values) > size:
        raise ValueError(f"{n_tensors} tensors and {n_values} values cannot be in {size} bytes")
    values = {_string(file, size): _value(file, size, *_unpack(file, "I")) for _ in range(n_values)}
    heads = []
    for _ in range(n_tensors):
        name, (n_dims,) = _string(file, size), _unpack(file, "I")
        *shape, number, offset = _unpack(file, f"{n_dims}QIQ")
        heads.append((name, tuple(shape[::-1]), _TENSOR_TYPES.get(number, f"type {number}"), offset))
    alignment = values["general.alignment"].content if "general.alignment" in values else _ALIGNMENT
    start = file.tell() + -file.tell() % alignment
    tensors = []
    for name, dimensions, kind, offset in heads:
        length = n_bytes(kind, dimensions)
        if start + offset + length > size:
            raise ValueError(f"the tensor {name!r} ends at byte {start + offset + length}, the file at {size}")
        tensors.append(StoredTensor(name, dimensions, kind, length, start + offset))
    return values, tensors


def rows(path: str | os.PathLike[str], tensor: StoredTensor) -> Bytes:
    """A stored tensor's rows, mapped from the file: bytes `[rows, bytes of a row]`."""
    if not tensor.bytes:
        raise ModelFormatError(
            f"tensor {tensor.name!r} of {os.fspath(path)!r} is {tensor.type} with the shape {tensor.shape}: it cannot "
            "be read here; make the file again"
        )
    width = n_bytes(tensor.type, tensor.shape[-1:])
    return np.memmap(path, np.uint8, "r", tensor.offset, (tensor.bytes // width, width))


def pieces(rows: npt.NDArray[Any], row_length: int) -> Iterator[npt.NDArray[Any]]:
    """A tensor's rows, some millions of values at a time.

    Where they are mapped from a file, they are read without the map, so that they do not stay in memory.
    """
    step = max(1, _VALUES_AT_A_TIME // row_length)
    for start in range(0, len(rows), step):
        if isinstance(rows, np.memmap) and rows.filename is not None:
            count, width = min(step, len(rows) - start), rows.shape[1]
            offset = rows.offset + start * width * rows.itemsize
            yield np.fromfile(rows.filename, rows.dtype, count * width, offset=offset).reshape(-1, width)
        else:
            yield rows[start : start + step]


def is_finite(rows: npt.NDArray[Any], kind: str, row_length: int) -> bool:
    """Whether all values of rows in one of ggml's types are finite numbers."""
    if kind not in _FLOATS:
        rows, kind = native.convert_rows(rows, kind, "F32", row_length), "F32"
    dtype, limit = _FLOATS[kind]
    bits = np.ascontiguousarray(rows).view(dtype)
    return bool((bits & np.iinfo(dtype).max >> 1).max(initial=0) < limit)


def check(path: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
    """Reads all of a file's tensors.

    Args:
        path: The file.
        progress: Called with bytes after each piece.

    Raises:
        ModelFormatError: A value is not a finite number.
    """
    _, tensors = load(path)
    done, total = 0, sum(tensor.bytes for tensor in tensors)
    for tensor in tensors:
        for piece in pieces(rows(path, tensor), tensor.shape[-1]):
            if not is_finite(piece, tensor.type, tensor.shape[-1]):
                raise ModelFormatError(
                    f"tensor {tensor.name!r} of {os.fspath(path)!r} has a value that is not a finite number: the file "
                    "is damaged; fetch or make it again"
                )
            done += piece.nbytes
            if progress is not None:
                progress(done, total)


def n_bytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor in one of ggml's types; 0 for an unknown type, or for rows that its blocks do not divide."""
    return math.prod(shape[:-1]) * native.row_bytes(kind, shape[-1])


def import_gguf() -> Any:
    """The package `gguf`.

    Raises:
        InstallationError: It is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise InstallationError(
            "making model files needs the package gguf: pip install 'pycrispasr[convert]'"
        ) from error
    return gguf


_DTYPES = {"f": "F32", "e": "F16", "H": "BF16"}  # type of an array's items -> of its values


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
        for piece in pieces(rows, shape[-1]):
            if not is_finite(piece, from_type, shape[-1]):
                raise ModelFormatError(
                    f"tensor {name!r} has a value that is not a finite number: its file is damaged; fetch or make it "
                    "again"
                )
            if to_type == from_type:
                yield piece
                continue
            converted = native.convert_rows(piece, from_type, to_type, shape[-1], importance)
            if to_type.lower() in ("f32", "f16", "bf16") and not is_finite(converted, to_type, shape[-1]):
                largest = np.abs(native.convert_rows(piece, from_type, "F32", shape[-1]).view(np.float32)).max()
                raise ModelFormatError(
                    f"tensor {name!r} has the value {largest:g}, too large for {to_type}: make it bf16 or f32"
                )
            yield converted

    return Tensor(name, shape, to_type, blocks)


def write(
    path: str | os.PathLike[str],
    values: Mapping[str, Value],
    tensors: Sequence[Tensor],
    *,
    progress: Progress | None = None,
) -> None:
    """Writes a file. It appears under its name when it is complete; until then an older one stays.

    Args:
        path: The file.
        values: The metadata; "general.architecture" is needed.
        tensors: In the file's order.
        progress: Called with bytes after each piece.

    Raises:
        InstallationError: The package `gguf` is missing.
        PycrispasrError: The file cannot be written.
    """
    gguf = import_gguf()
    path = Path(path)
    total = sum(tensor.bytes for tensor in tensors)
    try:
        with replacing(path) as part:
            writer = gguf.GGUFWriter(part, values["general.architecture"].content)
            for key, value in values.items():
                if key != "general.architecture":
                    kinds = (value.kind, value.item_kind if value.item_kind is not None else value.kind)
                    writer.add_key_value(key, _encoded(value.content), *map(gguf.GGUFValueType, kinds))
            if "general.alignment" in values:
                writer.data_alignment = values["general.alignment"].content
            for tensor in tensors:
                kind = gguf.GGMLQuantizationType[tensor.type]
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            # The data go out piece by piece; GGUFWriter would take whole tensors only.
            done = 0
            with part.open("ab") as file:
                for tensor in tensors:
                    file.write(bytes(-file.tell() % writer.data_alignment))
                    before = done
                    for block in tensor.blocks():
                        file.write(np.ascontiguousarray(block).data)
                        done += block.nbytes
                        if progress is not None:
                            progress(done, total)
                    if done - before != tensor.bytes:
                        raise ValueError(f"{tensor.name}: {done - before} bytes for {tensor.bytes}")
                file.write(bytes(-file.tell() % writer.data_alignment))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if isinstance(error, PycrispasrError):
            raise
        raise PycrispasrError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): name a path in a writable folder with "
            f"{total / 1e6:,.0f} MB left"
        ) from error


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _string(file: BinaryIO, size: int) -> str:
    (length,) = _unpack(file, "Q")
    if length > size:
        raise ValueError(f"a text of {length} bytes cannot be in {size} bytes")
    return file.read(length).decode("utf-8", "surrogateescape")


def _value(file: BinaryIO, size: int, kind: int) -> Value:
    if kind == STRING:
        return Value(kind, _string(file, size))
    if kind != ARRAY:
        return Value(kind, _unpack(file, _NUMBERS[kind])[0])
    item_kind, count = _unpack(file, "IQ")
    if count > size:
        raise ValueError(f"an array of {count} values cannot be in {size} bytes")
    if item_kind in _NUMBERS:
        return Value(kind, list(_unpack(file, f"{count}{_NUMBERS[item_kind]}")), item_kind)
    return Value(kind, [_value(file, size, item_kind).content for _ in range(count)], item_kind)


def _encoded(content: Any) -> Any:
    """Texts as the bytes they were read from; numbers as they are."""
    if isinstance(content, list):
        return [_encoded(item) for item in content]
    return content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content


def _summary(value: Value) -> Any:
    if value.kind != ARRAY or len(value.content) <= 16:
        return value.content
    return f"{len(value.content)} {'numbers' if value.item_kind in _NUMBERS else 'texts'}"

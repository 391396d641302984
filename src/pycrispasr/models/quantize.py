"""A model file becomes another one whose matrices have other types.

By default a file gets the types of the published ones: only the decoder's attention and FFN matrices take the wanted
type, the encoder, the adapter, the embedding and the head are F16. The metadata are copied. Equal inputs give equal
bytes, on any number of cores.

Needs the package `gguf`: `pip install 'pycrispasr[convert]'`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pycrispasr.errors import ModelFormatError, UnsupportedModelError, UsageError
from pycrispasr.models import gguf_file, imatrix
from pycrispasr.models.families import FAMILIES, Family, family_of
from pycrispasr.models.gguf_file import Progress, StoredTensor, Tensor, recoded
from pycrispasr.models.layout import FLOAT_TYPES, block_length, is_table, known_type, tell_undivided, tensor_type
from pycrispasr.runtimes import native

_logger = logging.getLogger("pycrispasr")

Importance = Mapping[str, npt.NDArray[np.float32]]


def quantize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    type: str,  # noqa: A002
    overrides: Sequence[tuple[str, str]] = (),
    importance: str | os.PathLike[str] | None = None,
    all_matrices: bool = False,
    requantize: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a model file with other types, tensor by tensor.

    Args:
        source: A GGUF file of one of our families, of any types.
        out: The file to write; it appears under this name when it is complete, and may be `source`.
        type: One of `layout.TYPES`. A quantised type is for the decoder's attention and FFN matrices; the other
            matrices, and those whose rows its blocks do not divide, are F16 then. A float type is for every matrix.
        overrides: Pairs of a regular expression and a type: a matrix in whose name one is found takes that type; the
            first one counts. Vectors and the log-mel tables stay F32.
        importance: A file that `pycrispasr imatrix` wrote: columns that mattered more there are rounded more carefully.
        all_matrices: Quantise every matrix.
        requantize: Allow that a quantised matrix is quantised to another type, which adds a second rounding to the
            first. Without it that is an error; to floats, and to the type that it has, is always allowed.
        progress: Called with bytes, done and in all, after each piece.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelFormatError: It is no GGUF file, or truncated, or has a value that is not finite or too large for F16; or
            `importance` is of another model.
        UnsupportedModelError: It is of another architecture.
        UsageError: There is no such type; an override is no regular expression, matches no matrix, or asks for a type
            whose blocks do not divide the rows; or a matrix is quantised already.
        InstallationError: The package `gguf` is missing.
        PycrispasrError: `out` cannot be written.
    """
    gguf_file.import_gguf()
    values, stored = gguf_file.load(source)
    family = family_of(values)
    if family is None:
        architecture = values["general.architecture"].content if "general.architecture" in values else None
        raise UnsupportedModelError(
            f"{os.fspath(source)!r} has the architecture {architecture!r}: only files of "
            f"{' and '.join(map(repr, FAMILIES))} can be quantised here"
        )
    shapes = {tensor.name: tensor.shape for tensor in stored}
    types = plan_types(family, shapes, type, overrides=overrides, all_matrices=all_matrices)
    shared = {shared: name for name in shapes if (shared := family.shared(name))}
    tell_undivided(
        {name: shapes[stored_name] for name, stored_name in shared.items()},
        {name: types[stored_name] for name, stored_name in shared.items()},
        known_type(type),
    )
    weights = imatrix.read(importance) if importance is not None else {}
    tensors = [_tensor(source, tensor, types[tensor.name], weights, requantize) for tensor in stored]
    quantised = [tensor.name for tensor in tensors if tensor.type.lower() not in FLOAT_TYPES]
    unseen = sum(name not in weights for name in quantised)
    if importance is not None and unseen:
        _logger.warning(
            "%d of %d quantised matrices are not in the importance matrix %s: their columns count alike",
            unseen, len(quantised), os.fspath(importance),
        )  # fmt: skip
    gguf_file.write(out, values, tensors, progress=progress)


def plan_types(
    family: Family,
    shapes: Mapping[str, Sequence[int]],
    type: str,  # noqa: A002
    *,
    overrides: Sequence[tuple[str, str]] = (),
    all_matrices: bool = False,
) -> dict[str, str]:
    """The type of every tensor of a quantised file, by its name there: see `quantize`."""
    kind = known_type(type)
    types = {
        name: tensor_type(name if is_table(name) else family.shared(name), shape, kind, all_matrices=all_matrices)
        for name, shape in shapes.items()
    }
    chosen: set[str] = set()
    for pattern, override in overrides:
        override_kind = known_type(override)
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression ({error}): it selects tensors by name") from None
        found = [name for name in shapes if _is_matrix(name, shapes[name]) and expression.search(name)]
        if not found:
            raise UsageError(f"{pattern!r} matches the name of no matrix: `pycrispasr info --tensors` lists the names")
        for name in found:
            if name in chosen:
                continue
            if not native.row_bytes(override_kind, shapes[name][-1]):
                raise UsageError(
                    f"tensor {name!r} has rows of {shapes[name][-1]} values, which {override_kind.upper()} cannot "
                    f"hold: its blocks are of {block_length(override_kind)}; choose another type for it, or leave it "
                    f"out of {pattern!r}"
                )
            types[name] = override_kind.upper()
            chosen.add(name)
    return types


def _is_matrix(name: str, shape: Sequence[int]) -> bool:
    return len(shape) > 1 and not is_table(name)


def _tensor(
    source: str | os.PathLike[str], stored: StoredTensor, kind: str, weights: Importance, requantize: bool
) -> Tensor:
    """A stored tensor in another type."""
    was_quantised, becomes_quantised = (name.lower() not in FLOAT_TYPES for name in (stored.type, kind))
    if was_quantised and becomes_quantised and kind != stored.type and not requantize:
        raise UsageError(
            f"tensor {stored.name!r} of {os.fspath(source)!r} is {stored.type} already: quantise the F16, BF16 or F32 "
            f"file of this model to {kind}, or allow a second rounding with --requantize"
        )
    columns = weights.get(stored.name)
    if columns is not None and len(columns) != stored.shape[-1]:
        raise ModelFormatError(
            f"the importance matrix has {len(columns)} columns for tensor {stored.name!r}, which has "
            f"{stored.shape[-1]}: it is of another model; collect one with `pycrispasr imatrix`"
        )
    return recoded(stored.name, stored.shape, gguf_file.rows(source, stored), stored.type, kind, columns)

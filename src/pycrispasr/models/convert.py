"""A Hugging Face checkpoint becomes one GGUF file.

Needs the package `gguf`: `pip install 'pycrispasr[convert]'`.
"""

from __future__ import annotations

import os
from pathlib import Path

from pycrispasr.errors import ModelFormatError
from pycrispasr.models import gguf_file, hub
from pycrispasr.models.checkpoint import (
    check_front_end,
    find_family,
    find_tensor,
    read_json,
    read_processor,
    read_safetensors,
    read_sizes,
    read_tokenizer,
)
from pycrispasr.models.gguf_file import Progress, from_array
from pycrispasr.models.layout import (
    known_type,
    mel_filters,
    mel_window,
    tell_undivided,
    tensor_type,
    write_gguf,
)


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
    config = read_json(folder / "config.json", "it is the folder of a Hugging Face checkpoint that is wanted")
    tokens, merges = read_tokenizer(folder)
    family = find_family(config)
    sizes = read_sizes(family, config | read_processor(folder), tokens)
    check_front_end(folder, int(sizes["enc.num_mel_bins"]))
    vocab_size = int(sizes["llm.vocab_size"])
    if len(tokens) > vocab_size:
        raise ModelFormatError(
            f"the tokenizer in {str(folder)!r} has {len(tokens)} tokens but config.json has vocab_size {vocab_size}: "
            "they belong to different models; take both from one checkpoint"
        )
    tokens = tokens + [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]

    arrays = read_safetensors(folder)
    shapes = family.shapes(sizes)
    types = {each: tensor_type(each, shape, kind, all_matrices=all_matrices) for each, shape in shapes.items()}
    tell_undivided(shapes, types, kind)
    tensors = []
    for tensor_name, shape in shapes.items():
        if tensor_name == "audio.mel_filters":
            values = mel_filters(shape[1])
        elif tensor_name == "audio.mel_window":
            values = mel_window()
        else:
            values = find_tensor(arrays, family.in_checkpoint(tensor_name), shape, folder)
        tensors.append(from_array(tensor_name, values, types[tensor_name]))
    write_gguf(
        out,
        family,
        sizes,
        tokens,
        merges,
        tensors,
        texts=family.texts(folder),
        name=name if name is not None else Path(source).resolve().name,
        progress=progress,
    )

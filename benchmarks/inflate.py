"""The bundled model in the published model's shapes: the cost of the 2B, and the words of the small one.

    python benchmarks/inflate.py OUT.gguf [--type q4_k]

For benchmarks that need text which behaves like speech: hypotheses that grow, drafts that are kept. The large model
holds several copies of each value that the small one computes. A matrix repeats its rows; its columns are repeated, and
divided by the number of their copies. So products give the same sums, and norms see the same mean and mean square.
Layers that the small model lacks add nothing: their last matrices are zero. Tokens that it lacks are never likely.

Two values of the file are the bundled model's, not the published one's, and cost the same: RoPE's base, and the ids of
the special tokens. Its log-mel windows of 1 s, on the other hand, become the published 8 s: it hears the same words.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from pycrispasr.models import gguf_file, hub
from pycrispasr.models.families import Sizes
from pycrispasr.models.families.moss_transcribe import FAMILY
from pycrispasr.models.gguf_file import Tensor, from_array
from pycrispasr.models.layout import TYPES, tensor_type, write_gguf
from pycrispasr.models.random_model import PRESETS
from pycrispasr.runtimes import native

PUBLISHED: Sizes = {key: value for key, value in PRESETS["2b"].items() if key != "llm.rope_theta"}

_LAST_MATRICES = ("attn.o", "ffn.down", "ffn.fc2")  # of a layer's two halves: what they give is added to its input
_BYTES = 256  # the vocabulary begins with the single bytes
_PIECE = 1 << 14  # rows written at once


def inflate(
    path: str | os.PathLike[str],
    *,
    sizes: Mapping[str, int | float | bool] = PUBLISHED,
    type: str = "q4_k",  # noqa: A002
) -> None:
    """Writes the bundled model in larger shapes.

    Args:
        path: The file.
        sizes: Hyperparameters other than the bundled model's, as metadata keys without their common prefix. Rows that
            are normed must become a whole number of times as long, and the encoder's heads keep their size.
        type: One of `layout.TYPES`: as for `convert.convert`, a quantised one is for the decoder's matrices.
    """
    source = hub.resolve("tiny")
    values, stored = gguf_file.load(source)
    prefix = f"{FAMILY.architecture}."
    small = {key.removeprefix(prefix): value.content for key, value in values.items() if key.startswith(prefix)}
    large = small | dict(sizes)
    layers = {"enc": small["enc.encoder_layers"], "llm": small["llm.num_layers"]}
    by_name = {tensor.name: tensor for tensor in stored}

    tensors = []
    for name, shape in FAMILY.shapes(large).items():
        model, *rest = name.split(".")
        extra = rest[0] == "blk" and int(rest[1]) >= layers[model]
        if extra:
            rest[1] = str(int(rest[1]) % layers[model])
        tensor = by_name[".".join((model, *rest))]
        weights = native.convert_rows(gguf_file.rows(source, tensor), tensor.type, "F32", tensor.shape[-1])
        weights = weights.view(np.float32).reshape(tensor.shape)
        if extra and ".".join(rest[2:4]) in _LAST_MATRICES:
            weights = np.zeros_like(weights)
        tensors.append(_grown(name, weights, shape, tensor_type(name, shape, type), small, large))
    tokens = values["tokenizer.ggml.tokens"].content
    tokens += [f"[PAD{i}]" for i in range(len(tokens), int(large["llm.vocab_size"]))]
    merges = values["tokenizer.ggml.merges"].content
    write_gguf(path, FAMILY, large, tokens, merges, tensors, name=f"pycrispasr tiny, {type}")


def _grown(name: str, weights: np.ndarray, shape: tuple[int, ...], kind: str, small: Sizes, large: Sizes) -> Tensor:
    """A tensor of the small model in the large model's shape."""
    if name.startswith("audio."):
        return from_array(name, weights, kind)
    # How long the groups of rows and columns are that are copied as a whole: heads, and all that one channel gives.
    rows_group = columns_group = (1, 1)
    if ".attn.o." in name:
        columns_group = _head_sizes(name, small, large)
    elif ".attn." in name and "norm" not in name:
        rows_group = _head_sizes(name, small, large)
    elif ".conv" in name and len(shape) > 1:
        channels = small["enc.downsample_hidden_size"] if not name.startswith("enc.conv1") else 1
        columns_group = (weights[0].size // channels,) * 2
    rows = _copies(len(weights), shape[0], rows_group)

    if len(shape) == 1:
        vector = weights[rows]
        if name == "llm.final_norm.weight":
            vector = vector * (len(weights) / len(vector))  # the head, being the embedding, has undivided columns
        elif ".q_norm." in name:
            # Of the copies of a pair of values, RoPE turns the first one at the pair's own frequency: only that counts.
            copies = len(vector) // len(weights)
            vector = np.where(np.arange(len(vector)) % copies == 0, vector * copies**0.5, 0).astype(np.float32)
        return from_array(name, vector, kind)

    matrix = weights.reshape(len(weights), -1)
    columns = _copies(matrix.shape[1], prod(shape[1:]), columns_group)
    copies_of = np.bincount(columns)[columns].astype(np.float32)
    if name == "llm.embed.weight":
        # Single bytes are never said: three times their mean is so unlikely that 150,000 of it do not count either.
        matrix = np.concatenate([matrix, 3 * matrix[:_BYTES].mean(axis=0, keepdims=True)])
        rows = np.minimum(np.arange(shape[0]), len(weights))
        copies_of[:] = 1  # these rows are values themselves

    def blocks() -> Iterator[np.ndarray]:
        wide = from_array(name, matrix[:, columns] / copies_of, kind)
        different = np.concatenate([piece.view(np.uint8) for piece in wide.blocks()])
        for start in range(0, len(rows), _PIECE):
            yield different[rows[start : start + _PIECE]]  # equal rows are converted once

    return Tensor(name, shape, kind, blocks)


def _head_sizes(name: str, small: Sizes, large: Sizes) -> tuple[int, int]:
    """Values of a head of the small and of the large model."""
    if name.startswith("llm."):
        return int(small["llm.head_dim"]), int(large["llm.head_dim"])
    before, after = (int(sizes["enc.d_model"] // sizes["enc.encoder_attention_heads"]) for sizes in (small, large))
    return before, after


def _copies(before: int, after: int, group: tuple[int, int]) -> np.ndarray:
    """For each of `after` places, which of the `before` ones it copies.

    Copies are neighbours: a quantised block then has few different values, and rounds them less. Groups, of `group[0]`
    places before and `group[1]` after, are copied in the same manner, and so are the places within a group.
    """
    groups, places = np.arange(after // group[1]), np.arange(group[1])
    groups = groups * (before // group[0]) // len(groups)
    places = places * group[0] // group[1]
    return (groups[:, None] * group[0] + places).ravel()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--type", choices=TYPES, default="q4_k", help="default: q4_k")
    options = parser.parse_args()
    inflate(options.out, type=options.type)


if __name__ == "__main__":
    main()

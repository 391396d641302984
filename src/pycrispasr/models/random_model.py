"""Random model files in every size and type, for tests and benchmarks.

    python -m pycrispasr.models.random_model OUT.gguf --preset nano --type q8_0 --set llm.num_layers=3

The weights are random but scaled so that signals keep their size from layer to layer and audio reaches the tokens:
another clip gives other tokens, and the likeliest token leads clearly. Presets:

    nano   everything tiny, rows of 32 and more; 2 MB or less
    small  rows of 256 and more, which K-quants need
    vocab  as small, with the published vocabulary's size and special ids
    2b     the published model's shapes: gigabytes

and for other families, like these: qwen3-asr-nano, -small, -vocab, -0.6b and -1.7b; moss-diarize-nano, -small, -vocab
and -0.9b; qwen3-aligner-nano, -small and -0.6b. Those with a number of weights have the published shapes.

A quantised matrix is made of random blocks, not quantised, so the largest file takes seconds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import gguf
import numpy as np

from pycrispasr.models.families import ALIGNER, FAMILIES, Family, Sizes
from pycrispasr.models.gguf_file import Tensor, from_array
from pycrispasr.models.layout import TYPES, mel_filters, mel_window, tensor_type, write_gguf

_NANO: Sizes = {
    "enc.num_mel_bins": 128,
    "enc.encoder_layers": 2,
    "enc.d_model": 64,
    "enc.encoder_attention_heads": 4,
    "enc.encoder_ffn_dim": 128,
    "enc.downsample_hidden_size": 8,
    "enc.max_source_positions": 1500,
    "enc.n_window": 50,
    "enc.n_window_infer": 800,
    "enc.output_dim": 96,
    "enc.layer_norm_eps": 1e-5,
    "adapter.hidden_size": 128,
    "llm.hidden_size": 64,
    "llm.num_layers": 2,
    "llm.num_heads": 4,
    "llm.num_kv_heads": 2,
    "llm.head_dim": 32,
    "llm.intermediate_size": 160,
    "llm.vocab_size": 384,
    "llm.max_position_embeddings": 4096,
    "llm.rope_theta": 1e6,
    "llm.rms_norm_eps": 1e-6,
    "llm.tied_embeddings": True,
}
_SMALL: Sizes = _NANO | {
    "enc.encoder_layers": 3,
    "enc.d_model": 256,
    "enc.encoder_ffn_dim": 768,
    "enc.downsample_hidden_size": 32,
    "enc.output_dim": 256,
    "adapter.hidden_size": 512,
    "llm.hidden_size": 256,
    "llm.num_layers": 3,
    "llm.head_dim": 64,
    "llm.intermediate_size": 768,
    "llm.vocab_size": 1024,
}
_VOCAB: Sizes = _SMALL | {"llm.vocab_size": 151936}
_2B: Sizes = _NANO | {
    "enc.encoder_layers": 32,
    "enc.d_model": 1280,
    "enc.encoder_attention_heads": 20,
    "enc.encoder_ffn_dim": 5120,
    "enc.downsample_hidden_size": 480,
    "enc.output_dim": 2048,
    "adapter.hidden_size": 8192,
    "llm.hidden_size": 2048,
    "llm.num_layers": 28,
    "llm.num_heads": 16,
    "llm.num_kv_heads": 8,
    "llm.head_dim": 128,
    "llm.intermediate_size": 6144,
    "llm.vocab_size": 151936,
    "llm.max_position_embeddings": 40960,
}


def _without_adapter(sizes: Sizes, **others: int) -> Sizes:
    """Sizes of a model whose encoder's rows go straight into the decoder."""
    rest = {key: value for key, value in sizes.items() if key != "adapter.hidden_size"}
    return rest | {"enc.output_dim": sizes["llm.hidden_size"], **others}


_QWEN_06B = _without_adapter(
    _2B | {
        "enc.encoder_layers": 18,
        "enc.d_model": 896,
        "enc.encoder_attention_heads": 14,
        "enc.encoder_ffn_dim": 3584,
        "llm.hidden_size": 1024,
        "llm.intermediate_size": 3072,
        "llm.max_position_embeddings": 65536,
    }
)  # fmt: skip
_QWEN_17B = _without_adapter(
    _2B | {
        "enc.encoder_layers": 24,
        "enc.d_model": 1024,
        "enc.encoder_attention_heads": 16,
        "enc.encoder_ffn_dim": 4096,
        "llm.max_position_embeddings": 65536,
    }
)  # fmt: skip
_QWEN_ALIGNER = _QWEN_17B | {
    key: size for key, size in _QWEN_06B.items() if key[:4] == "llm." or key[4:] == "output_dim"
}


def _aligner(sizes: Sizes, bins: int) -> Sizes:
    """Sizes of a model with a classifier of so many bins of time."""
    return sizes | {"align.bins": bins, "align.bin_ms": 80, "align.bias": 0}


def _with_whisper(sizes: Sizes, **others: int) -> Sizes:
    """Sizes of a model with Whisper's tower instead."""
    omni = ("adapter.hidden_size", "enc.downsample_hidden_size", "enc.n_window", "enc.n_window_infer", "enc.output_dim")
    rest = {key: value for key, value in sizes.items() if key not in omni}
    whisper: Sizes = {"enc.num_mel_bins": 80, "enc.merge": 4, "enc.rows_per_second": 12.5, "enc.marker_seconds": 5}
    return rest | whisper | others


_DIARIZE_09B = _with_whisper(
    _QWEN_06B | {
        "enc.encoder_layers": 24,
        "enc.d_model": 1024,
        "enc.encoder_attention_heads": 16,
        "enc.encoder_ffn_dim": 4096,
        "llm.max_position_embeddings": 131072,
    }
)  # fmt: skip
_MOSS, _QWEN = FAMILIES["moss_transcribe"], FAMILIES["qwen3asr"]
_DIARIZE = FAMILIES["moss_transcribe_diarize"]
_PRESETS: dict[str, tuple[Family, Sizes]] = {
    "nano": (_MOSS, _NANO),
    "small": (_MOSS, _SMALL),
    "vocab": (_MOSS, _VOCAB),
    "2b": (_MOSS, _2B),
    "qwen3-asr-nano": (_QWEN, _without_adapter(_NANO)),
    "qwen3-asr-small": (_QWEN, _without_adapter(_SMALL)),
    "qwen3-asr-vocab": (_QWEN, _without_adapter(_VOCAB)),
    "qwen3-asr-0.6b": (_QWEN, _QWEN_06B),
    "qwen3-asr-1.7b": (_QWEN, _QWEN_17B),
    "moss-diarize-nano": (_DIARIZE, _with_whisper(_NANO)),
    "moss-diarize-small": (_DIARIZE, _with_whisper(_SMALL)),
    "moss-diarize-vocab": (_DIARIZE, _with_whisper(_VOCAB)),
    "moss-diarize-0.9b": (_DIARIZE, _DIARIZE_09B),
    "qwen3-aligner-nano": (ALIGNER, _aligner(_without_adapter(_NANO), 400)),
    "qwen3-aligner-small": (ALIGNER, _aligner(_without_adapter(_SMALL), 400)),
    "qwen3-aligner-0.6b": (ALIGNER, _aligner(_QWEN_ALIGNER, 5000)),
}
PRESETS: dict[str, Sizes] = {name: sizes for name, (_, sizes) in _PRESETS.items()}

# Standard deviations of the values that a matrix makes of values of deviation 1; 1 where nothing is said.
_GAINS = {
    "enc.conv1": 4.0,  # audio must stand out from the positions added after conv_out
    "enc.conv": 2.0,
    "llm.embed": 4.0,  # the spread of a step's logits
    "llm.lm_head": 4.0,
    "align.classifier": 4.0,
    ".attn.v": 2.0,  # the decoder's layers must drown a token's own embedding, else it would follow itself for ever
    ".ffn.down": 6.0,
}
_SHARPNESS = 2.0  # of the decoder's attention: how strongly a row chooses among the rows before it
_TILE = 4194301  # random values that large matrices repeat; a prime, so that no two rows are alike
_BLOCK_TILE = 262139  # the same for quantised matrices, in blocks
_CHUNK = 1 << 22  # values or blocks written at once

# Where the two half-precision factors of a block lie, in bytes; the second scales a block's minimum.
_SCALE_OFFSETS: dict[str, tuple[int, ...]] = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}

# Ids of the published vocabularies, for files with as many tokens.
_PUBLISHED_WORDS = {"user": 872, "assistant": 77091}
_PUBLISHED_SPECIALS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|audio_bos|>": 151669,
    "<|audio_eos|>": 151670,
    "<|audio_start|>": 151669,
    "<|audio_end|>": 151670,
    "<|audio_pad|>": 151676,
    "<asr_text>": 151704,
    "<timestamp>": 151705,
}


def generate(
    path: str | os.PathLike[str],
    *,
    preset: str = "nano",
    hyperparameters: Mapping[str, int | float | bool] | None = None,
    type: str = "f16",  # noqa: A002
    all_matrices: bool = False,
    mel_tables: bool = True,
    seed: int = 0,
) -> None:
    """Write a random model file. Equal arguments give equal bytes.

    `hyperparameters` are set on top of the preset's (names of `families.Sizes`). `type` is one of
    `TYPES`; a quantised type is for the decoder's matrices, or for every matrix with `all_matrices`. Without
    `mel_tables` the file has no `audio.*` tensors.
    """
    given = dict(hyperparameters or {})
    family, sizes = _PRESETS[preset]
    sizes = sizes | given
    tokens, merges, specials = make_tokenizer(family, int(sizes["llm.vocab_size"]))
    sizes |= specials | {key: value for key, value in given.items() if key in specials}

    rng = np.random.default_rng(seed)
    shapes = family.shapes(sizes)
    weights = _Weights(rng, max(prod(shape) for shape in shapes.values()))
    tensors = []
    for name, shape in shapes.items():
        kind = tensor_type(name, shape, type, all_matrices=all_matrices)
        if not name.startswith("audio."):
            tensors.append(weights.tensor(name, shape, kind))
        elif mel_tables:
            table = mel_filters(shape[1]) if name == "audio.mel_filters" else mel_window()
            tensors.append(from_array(name, table, kind))
    write_gguf(path, family, sizes, tokens, merges, tensors, name=f"random-{preset}-{type}")


def make_tokenizer(family: Family, vocab_size: int) -> tuple[list[str], list[str], dict[str, int]]:
    """Tokens, merges and special ids of a byte-level BPE: all bytes, the prompt's words, filler words, specials."""
    keyed = {key: names[0] for key, names in family.specials.items()}
    names = sorted({*keyed.values(), *family.named}, key=_PUBLISHED_SPECIALS.__getitem__)
    published = vocab_size > max(_PUBLISHED_SPECIALS[name] for name in names)
    ids = _PUBLISHED_SPECIALS if published else {name: vocab_size - len(names) + i for i, name in enumerate(names)}
    # Each word is built from its end: "e r", "s er", "u ser".
    merges = [f"{word[i]} {word[i + 1 :]}" for word in _PUBLISHED_WORDS for i in range(len(word) - 2, -1, -1)]
    merged = [merge.replace(" ", "") for merge in merges]
    fixed = {ids[name]: name for name in names}
    fixed |= dict(enumerate(_byte_alphabet()))
    if published:
        fixed |= {i: word for word, i in _PUBLISHED_WORDS.items()}
        merged = [token for token in merged if token not in _PUBLISHED_WORDS]
    fixed |= {256 + i: token for i, token in enumerate(merged)}
    if vocab_size < 256 + len(merged) + len(names):
        raise ValueError(f"A vocabulary of {vocab_size} is too small: {256 + len(merged) + len(names)} at least.")
    specials = {key: ids[name] for key, name in keyed.items()}
    return [fixed.get(i) or _filler_word(i) for i in range(vocab_size)], merges, specials


def _byte_alphabet() -> list[str]:
    """GPT-2's character for each byte, by token id: the printable bytes first, then the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _filler_word(number: int) -> str:
    """A word of its own for each number: Ġbaka, Ġbake … in syllables; Ġ is a space."""
    word = ""
    while number or not word:
        number, syllable = divmod(number, 80)
        word += "bdfghjklmnprstvz"[syllable // 5] + "aeiou"[syllable % 5]
    return "Ġ" + word


class _Weights:
    """Random tensors, cut out of tiles that are made once."""

    def __init__(self, rng: np.random.Generator, largest: int) -> None:
        self._rng = rng
        self._largest = largest
        self._tile = rng.standard_normal(min(_TILE, largest), np.float32)
        self._block_tiles: dict[str, np.ndarray] = {}

    def tensor(self, name: str, shape: tuple[int, ...], kind: str) -> Tensor:
        mean, deviation = _distribution(name, shape)
        if kind in _SCALE_OFFSETS:
            return self._quantised(name, shape, kind, deviation)
        if prod(shape) <= len(self._tile):
            values = mean + deviation * self._rng.standard_normal(shape, np.float32)
            if name == "enc.conv1.weight":  # a steady spectrum gives nothing, so that what changes is heard
                values -= values.mean(axis=tuple(range(2, len(shape))), keepdims=True)
            return from_array(name, values, kind)

        tile, first = self._tile, int(self._rng.integers(len(self._tile)))

        def blocks() -> Iterator[np.ndarray]:
            for piece in _cut(tile * np.float32(deviation), first, prod(shape)):
                yield from from_array(name, piece, kind).blocks()

        return Tensor(name, shape, kind, blocks)

    def _quantised(self, name: str, shape: tuple[int, ...], kind: str, deviation: float) -> Tensor:
        block_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        if kind not in self._block_tiles:
            self._block_tiles[kind] = _random_blocks(self._rng, kind, min(_BLOCK_TILE, self._largest // block_size + 1))
        tile, first = self._block_tiles[kind], int(self._rng.integers(len(self._block_tiles[kind])))

        def blocks() -> Iterator[np.ndarray]:
            scaled = tile.copy()
            for offset in _SCALE_OFFSETS[kind]:
                _scale(scaled, offset)[:] *= deviation
            yield from _cut(scaled, first, prod(shape) // block_size)

        return Tensor(name, shape, kind, blocks)


def _cut(tile: np.ndarray, first: int, count: int) -> Iterator[np.ndarray]:
    """`count` rows of the endless repetition of `tile` from row `first`, in pieces."""
    while count:
        piece = tile[first : first + min(count, _CHUNK)]
        yield piece
        first, count = (first + len(piece)) % len(tile), count - len(piece)


def _distribution(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values."""
    if name.endswith(".bias"):
        return 0, 0.1
    if len(shape) == 1:
        return (_SHARPNESS, 0.1 * _SHARPNESS) if ".q_norm" in name else (1, 0.1)
    gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
    return 0, gain * prod(shape[1:]) ** -0.5


def _random_blocks(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Random blocks, bytes `[count, block's bytes]`, whose values have mean 0 and standard deviation 1."""
    ggml_type = gguf.GGMLQuantizationType[kind]
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[ggml_type][1]), np.uint8)
    if kind == "Q8_0":
        blocks[blocks == 0x80] = 0x81  # a quantiser never writes -128
    offsets = _SCALE_OFFSETS[kind]
    sample = blocks[:1024].copy()

    def values(*scales: float) -> np.ndarray:
        for offset, scale in zip(offsets, scales, strict=True):
            _scale(sample, offset)[:] = scale
        return gguf.dequantize(sample, ggml_type)

    # Values are linear in the factors: choose the second for mean 0, then both for deviation 1. Half the blocks are
    # negated, for types that have no second factor.
    factors = [1.0]
    if len(offsets) == 2:
        factors.append(-float(values(1, 0).mean() / values(0, 1).mean()))
    deviation = float(np.sqrt((values(*factors).astype(np.float64) ** 2).mean()))
    signs = rng.choice(np.array([-1.0, 1.0], np.float32), count)
    for offset, factor in zip(offsets, factors, strict=True):
        _scale(blocks, offset)[:] = factor / deviation * signs
    return blocks


def _scale(blocks: np.ndarray, offset: int) -> np.ndarray:
    """The half-precision number at a byte offset of each block, as a view that can be written."""
    return blocks[:, offset : offset + 2].view(np.float16)[:, 0]


def _setting(text: str) -> tuple[str, int | float | bool]:
    key, _, value = text.partition("=")
    default = _2B.get(key)
    if default is None:
        raise argparse.ArgumentTypeError(f"no hyperparameter {key!r}: choose one of {', '.join(_2B)}")
    if isinstance(default, bool):
        return key, value.lower() in ("1", "true", "yes")
    return key, default.__class__(value)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument("--type", choices=TYPES, default="f16")
    parser.add_argument("--all-matrices", action="store_true", help="quantise every matrix, not only the decoder's")
    parser.add_argument("--no-mel-tables", action="store_true", help="leave the audio.* tensors out")
    parser.add_argument("--set", metavar="KEY=VALUE", type=_setting, action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generate(
        options.out,
        preset=options.preset,
        hyperparameters=dict(options.set),
        type=options.type,
        all_matrices=options.all_matrices,
        mel_tables=not options.no_mel_tables,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()

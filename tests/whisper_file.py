"""Whisper models in the file format of whisper.cpp: what libcrispasr can run and our runtime cannot.

The weights are random, or come from a CTranslate2 checkpoint, the format of faster-whisper.
Format: https://github.com/ggml-org/whisper.cpp/blob/master/models/README.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_N_FREQUENCIES, _N_MELS = 201, 80


def write_random(
    path: Path,
    *,
    width: int = 64,
    heads: int = 2,
    layers: int = 1,
    text_context: int = 16,
    seed: int = 0,
    word: str = "w",
) -> None:
    """A small English model with random weights and 50256 made-up words. A text takes up to half of its context."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    tensors = {
        "encoder.positional_embedding": matrix(1500, width),
        "encoder.conv1.weight": matrix(width, _N_MELS, 3),
        "encoder.conv1.bias": matrix(width),
        "encoder.conv2.weight": matrix(width, width, 3),
        "encoder.conv2.bias": matrix(width),
        "decoder.positional_embedding": matrix(text_context, width),
        "decoder.token_embedding.weight": 30 * matrix(51864, width),
    }
    norms = ["encoder.ln_post", "decoder.ln"]
    for side in ("encoder", "decoder"):
        for block in (f"{side}.blocks.{layer}" for layer in range(layers)):
            for attention in ("attn", "cross_attn")[: 1 + (side == "decoder")]:
                norms.append(f"{block}.{attention}_ln")
                for part in ("query", "key", "value", "out"):
                    tensors[f"{block}.{attention}.{part}.weight"] = matrix(width, width)
                    if part != "key":
                        tensors[f"{block}.{attention}.{part}.bias"] = matrix(width)
            norms.append(f"{block}.mlp_ln")
            for part, shape in (("0", (4 * width, width)), ("2", (width, 4 * width))):
                tensors[f"{block}.mlp.{part}.weight"] = matrix(*shape)
                tensors[f"{block}.mlp.{part}.bias"] = matrix(shape[0])
    for norm in norms:
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = np.ones(width, np.float32), np.zeros(width, np.float32)
    words = [bytes([byte]) for byte in range(256)] + [f" {word}{index}".encode() for index in range(256, 50256)]
    write(path, tensors, words, heads=heads)


def write_ctranslate2(folder: Path, path: Path, *, heads: int) -> None:
    """A converted checkpoint of faster-whisper, which has `model.bin` and `tokenizer.json`."""
    with (folder / "model.bin").open("rb") as file:
        found = dict(_read_ctranslate2(file))
    tensors = {
        f"{side}.{name}": found[f"{side}/{source}"]
        for side, name, source in (
            ("encoder", "positional_embedding", "position_encodings/encodings"),
            ("encoder", "conv1.weight", "conv1/weight"),
            ("encoder", "conv1.bias", "conv1/bias"),
            ("encoder", "conv2.weight", "conv2/weight"),
            ("encoder", "conv2.bias", "conv2/bias"),
            ("decoder", "positional_embedding", "position_encodings/encodings"),
            ("decoder", "token_embedding.weight", "embeddings/weight"),
        )
    }
    norms = {"encoder.ln_post": "encoder/layer_norm", "decoder.ln": "decoder/layer_norm"}
    linears: dict[str, tuple[str, int, int]] = {}  # to: from, which part of how many
    for side in ("encoder", "decoder"):
        layer = 0
        while f"{side}/layer_{layer}/ffn/linear_0/weight" in found:
            block, source = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            norms |= {
                f"{block}.attn_ln": f"{source}/self_attention/layer_norm",
                f"{block}.mlp_ln": f"{source}/ffn/layer_norm",
            }
            for index, part in enumerate(("query", "key", "value")):
                linears[f"{block}.attn.{part}"] = (f"{source}/self_attention/linear_0", index, 3)
            linears[f"{block}.attn.out"] = (f"{source}/self_attention/linear_1", 0, 1)
            if side == "decoder":
                norms[f"{block}.cross_attn_ln"] = f"{source}/attention/layer_norm"
                linears[f"{block}.cross_attn.query"] = (f"{source}/attention/linear_0", 0, 1)
                linears[f"{block}.cross_attn.key"] = (f"{source}/attention/linear_1", 0, 2)
                linears[f"{block}.cross_attn.value"] = (f"{source}/attention/linear_1", 1, 2)
                linears[f"{block}.cross_attn.out"] = (f"{source}/attention/linear_2", 0, 1)
            linears[f"{block}.mlp.0"] = (f"{source}/ffn/linear_0", 0, 1)
            linears[f"{block}.mlp.2"] = (f"{source}/ffn/linear_1", 0, 1)
            layer += 1
    for name, source in norms.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = found[f"{source}/gamma"], found[f"{source}/beta"]
    for name, (source, index, parts) in linears.items():
        for kind in ("weight", "bias"):
            if not (kind == "bias" and name.endswith("key")):
                tensors[f"{name}.{kind}"] = np.split(found[f"{source}/{kind}"], parts)[index]
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    as_bytes = {character: byte for byte, character in _byte_characters().items()}
    words = [bytes(as_bytes[c] for c in word) for word in sorted(vocabulary, key=vocabulary.__getitem__)[:50256]]
    write(path, tensors, words, heads=heads)


def write(path: Path, tensors: Mapping[str, np.ndarray], words: list[bytes], *, heads: int) -> None:
    """The file. Matrices become F16; vectors, convolution biases and positions stay F32."""
    audio_context, width = tensors["encoder.positional_embedding"].shape
    text_context, _ = tensors["decoder.positional_embedding"].shape
    layers = [
        sum(name.startswith(f"{s}.blocks.") and name.endswith(".mlp_ln.bias") for name in tensors)
        for s in ("encoder", "decoder")
    ]
    vocab = len(tensors["decoder.token_embedding.weight"])
    with path.open("wb") as file:
        audio, text = (audio_context, width, heads, layers[0]), (text_context, width, heads, layers[1])
        file.write(struct.pack("<12i", 0x67676D6C, vocab, *audio, *text, _N_MELS, 1))
        file.write(struct.pack("<2i", _N_MELS, _N_FREQUENCIES) + _mel_filters().astype("<f4").tobytes())
        file.write(struct.pack("<i", len(words)))
        for word in words:
            file.write(struct.pack("<I", len(word)) + word)
        for name, values in tensors.items():
            if name.startswith("encoder.conv") and name.endswith("bias"):
                values = values.reshape(-1, 1)
            is_half = values.ndim > 1 and name.endswith("weight")
            file.write(struct.pack("<3i", values.ndim, len(name), int(is_half)))
            file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode())
            file.write(np.ascontiguousarray(values, "<f2" if is_half else "<f4").tobytes())


def _read_ctranslate2(file: BinaryIO):
    """Name and values of each variable."""

    def unpack(layout: str):
        return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))

    def string() -> str:
        return file.read(*unpack("H")).rstrip(b"\0").decode()

    (version,), _, _, (count,) = unpack("I"), string(), unpack("I"), unpack("I")
    assert version == 6, version
    for _ in range(count):
        name, (rank,) = string(), unpack("B")
        shape, (dtype, size) = unpack(f"{rank}I"), unpack("BI")
        yield name, np.frombuffer(file.read(size), _DTYPES[dtype]).reshape(shape).astype(np.float32)


def _mel_filters() -> np.ndarray:
    """[80, 201] triangles of equal area on Slaney's mel scale, for 16 kHz and a window of 400 samples."""
    step, knee = 200 / 3, 1000.0  # linear below 1 kHz, logarithmic above
    log_step = np.log(6.4) / 27
    mels = np.linspace(0, knee / step + np.log(8000 / knee) / log_step, _N_MELS + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(log_step * (mels - knee / step)))
    frequencies = np.linspace(0, 8000, _N_FREQUENCIES)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}

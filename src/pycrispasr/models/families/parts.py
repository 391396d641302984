"""The parts that families' models are put together of: their tensors, shapes, and places in checkpoints.

Sizes and tensors have the same names here for every family ("enc.d_model", "llm.blk.0.attn.q.weight"): those of
MOSS-Transcribe's files. Shapes are NumPy's: rows first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

Sizes = dict[str, int | float | bool]
"""A model's hyperparameters and special ids."""

FLOAT_SIZES = {"enc.layer_norm_eps", "llm.rope_theta", "llm.rms_norm_eps", "enc.rows_per_second"}

N_FFT = 400


class ConfigKey(NamedTuple):
    """Where `config.json` has a size.

    Attributes:
        section: One of `Family.sections`.
        key: The key in it.
        default: The transformers library's own, which it leaves out of the file; None where there is none.
    """

    section: str
    key: str
    default: int | float | None


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        prefix: What the names of its tensors begin with: "enc", "adapter" or "llm".
        modules: What its tensors are called inside its module of the transformers library; without the prefix,
            ".weight" and ".bias", and with "*" for a layer's number.
        shapes: Its tensors with their shapes, in the order in which data flows through it, from a model's sizes.
    """

    prefix: str
    modules: Mapping[str, str]
    shapes: Callable[[Mapping[str, int]], dict[str, tuple[int, ...]]]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Its tensors' names, without ".weight" and ".bias", "*" for a layer's number."""
        return tuple(f"{self.prefix}.{name}" for name in self.modules)

    def module_name(self, name: str) -> str:
        """What one of its tensors is called inside its module."""
        return rename(name.removeprefix(f"{self.prefix}."), self.modules)


def rename(name: str, names: Mapping[str, str]) -> str:
    """A tensor's other name.

    Args:
        name: Such as "enc.blk.3.attn.q.weight".
        names: Old and new ones, without ".weight" and ".bias", "*" for a layer's number.

    Raises:
        KeyError: It is not there.
    """
    stem, dot, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, dot, kind = name, "", ""
    number = re.search(r"(?<=blk\.)\d+(?=\.)", stem)
    if number is not None:
        return names[stem.replace(f"blk.{number[0]}.", "blk.*.")].replace("*", number[0]) + dot + kind
    return names[stem] + dot + kind


class _Shapes(dict[str, tuple[int, ...]]):
    def linear(self, name: str, rows: int, columns: int, *, bias: bool) -> None:
        self[f"{name}.weight"] = (rows, columns)
        if bias:
            self[f"{name}.bias"] = (rows,)

    def norm(self, name: str, size: int, *, bias: bool) -> None:
        self[f"{name}.weight"] = (size,)
        if bias:
            self[f"{name}.bias"] = (size,)

    def conv(self, name: str, *shape: int) -> None:
        self[f"{name}.weight"] = shape
        self[f"{name}.bias"] = shape[:1]

    def encoder_layers(self, m: Mapping[str, int], *, key_bias: bool) -> None:
        d, ffn = m["enc.d_model"], m["enc.encoder_ffn_dim"]
        for i in range(m["enc.encoder_layers"]):
            self.norm(f"enc.blk.{i}.attn_norm", d, bias=True)
            for part in "qkvo":
                self.linear(f"enc.blk.{i}.attn.{part}", d, d, bias=key_bias or part != "k")
            self.norm(f"enc.blk.{i}.ffn_norm", d, bias=True)
            self.linear(f"enc.blk.{i}.ffn.fc1", ffn, d, bias=True)
            self.linear(f"enc.blk.{i}.ffn.fc2", d, ffn, bias=True)


def _omni_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    d, channels = m["enc.d_model"], m["enc.downsample_hidden_size"]
    freq = m["enc.num_mel_bins"]  # bins left after three convolutions of stride 2, kernel 3, padding 1
    for _ in range(3):
        freq = (freq - 1) // 2 + 1
    shapes = _Shapes()
    for i, in_channels in enumerate((1, channels, channels), start=1):
        shapes.conv(f"enc.conv{i}", channels, in_channels, 3, 3)
    shapes.linear("enc.conv_out", d, channels * freq, bias=False)
    shapes.encoder_layers(m, key_bias=True)
    shapes.norm("enc.ln_post", d, bias=True)
    shapes.linear("enc.proj1", d, d, bias=True)
    shapes.linear("enc.proj2", m["enc.output_dim"], d, bias=True)
    return shapes


def _whisper_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    d = m["enc.d_model"]
    shapes = _Shapes()
    shapes.conv("enc.conv1", d, m["enc.num_mel_bins"], 3)
    shapes.conv("enc.conv2", d, d, 3)
    shapes["enc.pos_embed.weight"] = (m["enc.max_source_positions"], d)
    shapes.encoder_layers(m, key_bias=False)
    shapes.norm("enc.ln_post", d, bias=True)
    return shapes


def _gated_mlp_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes = _Shapes()
    shapes.linear("adapter.gate", m["adapter.hidden_size"], m["enc.output_dim"], bias=False)
    shapes.linear("adapter.up", m["adapter.hidden_size"], m["enc.output_dim"], bias=False)
    shapes.linear("adapter.down", m["llm.hidden_size"], m["adapter.hidden_size"], bias=False)
    return shapes


def _normed_mlp_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    hidden = m["llm.hidden_size"]
    shapes = _Shapes()
    shapes.linear("adapter.fc1", hidden, m["enc.merge"] * m["enc.d_model"], bias=True)
    shapes.linear("adapter.fc2", hidden, hidden, bias=True)
    shapes.norm("adapter.norm", hidden, bias=True)
    return shapes


def _qwen3_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    hidden, inner, head = m["llm.hidden_size"], m["llm.intermediate_size"], m["llm.head_dim"]
    q_size, kv_size = m["llm.num_heads"] * head, m["llm.num_kv_heads"] * head
    shapes = _Shapes()
    shapes.linear("llm.embed", m["llm.vocab_size"], hidden, bias=False)
    for i in range(m["llm.num_layers"]):
        shapes.norm(f"llm.blk.{i}.attn_norm", hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.attn.q", q_size, hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.attn.k", kv_size, hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.attn.v", kv_size, hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.attn.o", hidden, q_size, bias=False)
        shapes.norm(f"llm.blk.{i}.attn.q_norm", head, bias=False)
        shapes.norm(f"llm.blk.{i}.attn.k_norm", head, bias=False)
        shapes.norm(f"llm.blk.{i}.ffn_norm", hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.ffn.gate", inner, hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.ffn.up", inner, hidden, bias=False)
        shapes.linear(f"llm.blk.{i}.ffn.down", hidden, inner, bias=False)
    shapes.norm("llm.final_norm", hidden, bias=False)
    if not m["llm.tied_embeddings"]:
        shapes.linear("llm.lm_head", m["llm.vocab_size"], hidden, bias=False)
    return shapes


_ENCODER_LAYER = {
    "blk.*.attn_norm": "layers.*.self_attn_layer_norm", "blk.*.ffn_norm": "layers.*.final_layer_norm",
    "blk.*.attn.q": "layers.*.self_attn.q_proj", "blk.*.attn.k": "layers.*.self_attn.k_proj",
    "blk.*.attn.v": "layers.*.self_attn.v_proj", "blk.*.attn.o": "layers.*.self_attn.out_proj",
    "blk.*.ffn.fc1": "layers.*.fc1", "blk.*.ffn.fc2": "layers.*.fc2",
}  # fmt: skip

OMNI_TOWER = Part(
    "enc",
    {
        "conv1": "conv2d1", "conv2": "conv2d2", "conv3": "conv2d3", "conv_out": "conv_out", **_ENCODER_LAYER,
        "ln_post": "ln_post", "proj1": "proj1", "proj2": "proj2",
    },
    _omni_shapes,
)  # fmt: skip
"""Qwen3-Omni's audio tower."""

WHISPER_TOWER = Part(
    "enc",
    {
        "conv1": "conv1", "conv2": "conv2", "pos_embed": "embed_positions", **_ENCODER_LAYER, "ln_post": "layer_norm",
    },
    _whisper_shapes,
)  # fmt: skip
"""Whisper's."""

GATED_MLP = Part("adapter", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}, _gated_mlp_shapes)
"""A projector: down(silu(gate x) * up x)."""

NORMED_MLP = Part("adapter", {"fc1": "linear_1", "fc2": "linear_2", "norm": "norm"}, _normed_mlp_shapes)
"""A projector: LayerNorm(fc2 silu(fc1 x)), x being rows of the tower that are joined."""

QWEN3 = Part(
    "llm",
    {
        "embed": "embed_tokens", "final_norm": "norm", "lm_head": "lm_head",
        "blk.*.attn_norm": "layers.*.input_layernorm", "blk.*.ffn_norm": "layers.*.post_attention_layernorm",
        "blk.*.attn.q": "layers.*.self_attn.q_proj", "blk.*.attn.k": "layers.*.self_attn.k_proj",
        "blk.*.attn.v": "layers.*.self_attn.v_proj", "blk.*.attn.o": "layers.*.self_attn.o_proj",
        "blk.*.attn.q_norm": "layers.*.self_attn.q_norm", "blk.*.attn.k_norm": "layers.*.self_attn.k_norm",
        "blk.*.ffn.gate": "layers.*.mlp.gate_proj", "blk.*.ffn.up": "layers.*.mlp.up_proj",
        "blk.*.ffn.down": "layers.*.mlp.down_proj",
    },
    _qwen3_shapes,
)  # fmt: skip
"""The decoder."""


def _bins_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes = _Shapes()
    shapes.linear("align.classifier", m["align.bins"], m["llm.hidden_size"], bias=bool(m["align.bias"]))
    return shapes


TIME_BINS = Part("align", {"classifier": "score"}, _bins_shapes)
"""A classifier of time bins, on top of the decoder."""


def omni_tower_config(section: str) -> dict[str, ConfigKey]:
    """Where `config.json` has the sizes of Qwen3-Omni's audio tower, with that tower's own defaults."""
    return {
        "enc.num_mel_bins": ConfigKey(section, "num_mel_bins", 128),
        "enc.encoder_layers": ConfigKey(section, "encoder_layers", 32),
        "enc.d_model": ConfigKey(section, "d_model", 1280),
        "enc.encoder_attention_heads": ConfigKey(section, "encoder_attention_heads", 20),
        "enc.encoder_ffn_dim": ConfigKey(section, "encoder_ffn_dim", 5120),
        "enc.downsample_hidden_size": ConfigKey(section, "downsample_hidden_size", 480),
        "enc.max_source_positions": ConfigKey(section, "max_source_positions", 1500),
        "enc.n_window": ConfigKey(section, "n_window", 50),
        "enc.n_window_infer": ConfigKey(section, "n_window_infer", 800),
        "enc.output_dim": ConfigKey(section, "output_dim", None),
        "enc.layer_norm_eps": ConfigKey(section, "layer_norm_eps", 1e-5),
    }


def whisper_tower_config(section: str) -> dict[str, ConfigKey]:
    """The same for Whisper's, whose sizes may stand under either of two names."""
    return {
        "enc.num_mel_bins": ConfigKey(section, "num_mel_bins", 80),
        "enc.encoder_layers": ConfigKey(section, "encoder_layers", 24),
        "enc.d_model": ConfigKey(section, "d_model", 1024),
        "enc.encoder_attention_heads": ConfigKey(section, "encoder_attention_heads", 16),
        "enc.encoder_ffn_dim": ConfigKey(section, "encoder_ffn_dim", 4096),
        "enc.max_source_positions": ConfigKey(section, "max_source_positions", 1500),
        "enc.layer_norm_eps": ConfigKey(section, "layer_norm_eps", 1e-5),
    }


def qwen3_config(section: str) -> dict[str, ConfigKey]:
    """Where `config.json` has the sizes of Qwen3."""
    return {
        "llm.hidden_size": ConfigKey(section, "hidden_size", None),
        "llm.num_layers": ConfigKey(section, "num_hidden_layers", None),
        "llm.num_heads": ConfigKey(section, "num_attention_heads", None),
        "llm.num_kv_heads": ConfigKey(section, "num_key_value_heads", None),
        "llm.head_dim": ConfigKey(section, "head_dim", 128),
        "llm.intermediate_size": ConfigKey(section, "intermediate_size", None),
        "llm.vocab_size": ConfigKey(section, "vocab_size", 151936),
        "llm.max_position_embeddings": ConfigKey(section, "max_position_embeddings", 32768),
        "llm.rope_theta": ConfigKey(section, "rope_theta", None),
        "llm.rms_norm_eps": ConfigKey(section, "rms_norm_eps", 1e-6),
    }


def assumed(audio: str, decoder: str) -> tuple[tuple[str, str, object], ...]:
    """What the arithmetic of a tower and the decoder takes for granted: section, key, value."""
    return (
        (audio, "activation_function", "gelu"),
        (audio, "scale_embedding", False),
        (decoder, "hidden_act", "silu"),
        (decoder, "attention_bias", False),
        (decoder, "use_sliding_window", False),
    )


def front_end_shapes(m: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The spectrogram's tables."""
    return {"audio.mel_filters": (N_FFT // 2 + 1, m["enc.num_mel_bins"]), "audio.mel_window": (N_FFT,)}

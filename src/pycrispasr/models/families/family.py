"""What Python needs to know about a family of models, and the names of the parts that families share.

Sizes and tensors have the same names here for every family ("enc.d_model", "llm.blk.0.attn.q.weight"): those of
MOSS-Transcribe's files. A family says what they are called in its own files and in its makers' checkpoints.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pycrispasr.decoding.reader import PlainReader, Reader
from pycrispasr.errors import UnsupportedOperationError

Sizes = dict[str, int | float | bool]
"""A model's hyperparameters and special ids."""

FLOAT_SIZES = {"enc.layer_norm_eps", "llm.rope_theta", "llm.rms_norm_eps"}

# What a tensor is called inside the modules of the transformers library; "*" stands for a layer's number.
_ENCODER = {
    "conv1": "conv2d1", "conv2": "conv2d2", "conv3": "conv2d3", "conv_out": "conv_out",
    "blk.*.attn_norm": "layers.*.self_attn_layer_norm", "blk.*.ffn_norm": "layers.*.final_layer_norm",
    "blk.*.attn.q": "layers.*.self_attn.q_proj", "blk.*.attn.k": "layers.*.self_attn.k_proj",
    "blk.*.attn.v": "layers.*.self_attn.v_proj", "blk.*.attn.o": "layers.*.self_attn.out_proj",
    "blk.*.ffn.fc1": "layers.*.fc1", "blk.*.ffn.fc2": "layers.*.fc2",
    "ln_post": "ln_post", "proj1": "proj1", "proj2": "proj2",
}  # fmt: skip
_ADAPTER = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_DECODER = {
    "embed": "embed_tokens", "final_norm": "norm", "lm_head": "lm_head",
    "blk.*.attn_norm": "layers.*.input_layernorm", "blk.*.ffn_norm": "layers.*.post_attention_layernorm",
    "blk.*.attn.q": "layers.*.self_attn.q_proj", "blk.*.attn.k": "layers.*.self_attn.k_proj",
    "blk.*.attn.v": "layers.*.self_attn.v_proj", "blk.*.attn.o": "layers.*.self_attn.o_proj",
    "blk.*.attn.q_norm": "layers.*.self_attn.q_norm", "blk.*.attn.k_norm": "layers.*.self_attn.k_norm",
    "blk.*.ffn.gate": "layers.*.mlp.gate_proj", "blk.*.ffn.up": "layers.*.mlp.up_proj",
    "blk.*.ffn.down": "layers.*.mlp.down_proj",
}  # fmt: skip
_MODULES = {"enc": _ENCODER, "adapter": _ADAPTER, "llm": _DECODER}

TENSORS = tuple(f"{part}.{name}" for part, names in _MODULES.items() for name in names)
"""Tensors of all parts, without ".weight" and ".bias", "*" for a layer's number."""


def module_name(name: str) -> str:
    """The name of a tensor of the encoder, the adapter or the decoder inside its module of the transformers library."""
    part, _, rest = name.partition(".")
    return rename(rest, _MODULES[part])


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


def tower_config(section: str) -> dict[str, ConfigKey]:
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


def decoder_config(section: str) -> dict[str, ConfigKey]:
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
    """What the arithmetic of these two parts takes for granted: section, key, value."""
    return (
        (audio, "activation_function", "gelu"),
        (audio, "scale_embedding", False),
        (decoder, "hidden_act", "silu"),
        (decoder, "attention_bias", False),
        (decoder, "use_sliding_window", False),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        architecture: "general.architecture" of its files, and what their own metadata keys begin with.
        model_type: Of `config.json`, in checkpoints.
        crispasr: What the names of libcrispasr's functions for it begin with.
        name: For people.
        hears: Its languages, for people.
        keys: What sizes are called in its files, below the architecture.
        constants: Sizes that its files do not tell, where they are these.
        derived: Metadata that its files have besides, from the sizes.
        tensors: What tensors are called in its files, without ".weight" and ".bias", "*" for a layer's number.
        specials: Metadata keys of special tokens, and the names that a vocabulary may have for each.
        named: Special tokens that are found by their names alone.
        sections: The parts of `config.json` that describe the model, "" for the outermost; None where it is of another
            family.
        config: Where the sizes are in these.
        decoder_section: The one that describes the decoder.
        assumed: What the arithmetic takes for granted: section, key, value.
        in_checkpoint: The names that a tensor may have in a checkpoint, the likeliest first.
        languages: What `language` can be: English names, as the model writes them, by code. None: it takes none.
        takes_context: It can be told what the audio is about.
        without_language: What happens where no language is told.
        reader: Makes what reads its text, given the code of the language that was asked for.
    """

    architecture: str
    model_type: str
    crispasr: str
    name: str
    hears: str
    keys: Mapping[str, str]
    tensors: Mapping[str, str]
    specials: Mapping[str, tuple[str, ...]]
    sections: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]] | None]
    config: Mapping[str, ConfigKey]
    decoder_section: str
    in_checkpoint: Callable[[str], tuple[str, ...]]
    assumed: tuple[tuple[str, str, object], ...] = ()
    constants: Mapping[str, int | float | bool] = dataclasses.field(default_factory=dict)
    derived: Callable[[Mapping[str, int | float | bool]], Sizes] = lambda _: {}
    named: tuple[str, ...] = ()
    languages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    takes_context: bool = False
    without_language: str = "it finds out by itself"
    reader: Callable[[str | None], Reader] = PlainReader

    def stored(self, name: str) -> str:
        """A tensor's name in a file of this family."""
        return name if name.startswith("audio.mel_") else rename(name, self.tensors)

    def shared(self, name: str) -> str | None:
        """The name of a stored tensor that all families share; None for one that is not known."""
        try:
            return rename(name, {stored: shared for shared, stored in self.tensors.items()})
        except KeyError:
            return None

    def language(self, wanted: str) -> str:
        """The code of a language that is told by its code or its English name.

        Raises:
            UnsupportedOperationError: The model does not take it.
        """
        if not self.languages:
            raise UnsupportedOperationError(
                f"language={wanted!r}: {self.name} takes no language, it writes what it hears ({self.hears}); leave it "
                "out, or use a model that takes one, such as qwen3-asr:0.6b"
            )
        plain = wanted.strip().casefold()
        for code, name in self.languages.items():
            if plain in (code, name.casefold()):
                return code
        raise UnsupportedOperationError(
            f"language={wanted!r}: {self.name} takes {', '.join(sorted(self.languages))}, or their English names; "
            f"leave it out, and {self.without_language}"
        )

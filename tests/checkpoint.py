"""Checkpoints in Hugging Face's layout, made from model files: what `convert` must turn back into the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycrispasr.models import gguf_file

PREFIX = "moss_transcribe."
NAMES = {"enc": "audio_model", "adapter": "audio_adapter", "llm": "language_model"}


def write_checkpoint(folder: Path, model: Path, n_shards: int = 2) -> None:
    """Writes the checkpoint of a model file whose matrices are BF16, its weights in BF16 in so many shards."""
    folder.mkdir(parents=True)
    values, tensors = gguf_file.load(model)
    metadata = {key.removeprefix(PREFIX): value.content for key, value in values.items()}
    write_json(folder / "config.json", config(metadata))
    special = {id_ for key, id_ in metadata.items() if key.endswith("_id")}
    tokens = dict(enumerate(metadata["tokenizer.ggml.tokens"]))
    write_json(
        folder / "tokenizer.json",
        {
            "model": {
                "type": "BPE",
                "vocab": {token: id_ for id_, token in tokens.items() if id_ not in special},
                "merges": metadata["tokenizer.ggml.merges"],
            },
            "added_tokens": [{"id": id_, "content": tokens[id_], "special": True} for id_ in sorted(special)],
        },
    )
    weights = [tensor for tensor in tensors if not tensor.name.startswith("audio.")]
    shards = {f"model-{i + 1:05}-of-{n_shards:05}.safetensors": weights[i::n_shards] for i in range(n_shards)}
    for shard, members in shards.items():
        write_shard(folder / shard, model, members)
    weight_map = {moss_name(tensor.name): shard for shard, members in shards.items() for tensor in members}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_shard(
    path: Path, model: Path, tensors: list[gguf_file.StoredTensor], source_name: Callable[[str], str] | None = None
) -> None:
    """A safetensors file of BF16; vectors lose what BF16 cannot hold."""
    named = source_name or moss_name
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + gguf_file.n_bytes("BF16", tensor.shape)
        header[named(tensor.name)] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for piece in gguf_file.pieces(gguf_file.rows(model, tensor), tensor.shape[-1]):
                bits = piece if tensor.type == "BF16" else (piece.view("<u4") >> 16).astype("<u2")
                file.write(bits.tobytes())


def config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, from a file's hyperparameters."""

    def section(prefix: str, **keys: str) -> dict[str, Any]:
        found = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        return {keys.get(key, key): value for key, value in found.items()}

    audio = section("enc.")
    del audio["layer_norm_eps"]  # the library's own default
    language = section(
        "llm.",
        num_layers="num_hidden_layers",
        num_heads="num_attention_heads",
        num_kv_heads="num_key_value_heads",
        tied_embeddings="tie_word_embeddings",
    )
    language["rope_parameters"] = {"rope_type": "default", "rope_theta": language.pop("rope_theta")}
    return {
        "model_type": "moss_transcribe",
        "adapter_hidden_size": metadata["adapter.hidden_size"],
        "audio_config": audio,
        "language_config": language,
        **{key: value for key, value in metadata.items() if key.endswith("_id")},
    }


def moss_name(name: str) -> str:
    """The name of a tensor of MOSS-Transcribe in its checkpoint."""
    part, _, rest = name.partition(".")
    if part == "adapter":
        return f"model.{NAMES[part]}.{rest.replace('.weight', '_proj.weight')}"
    return f"model.{NAMES[part]}.{pytorch_name(name)}"


def pytorch_name(name: str) -> str:
    """The name of a tensor of the encoder or the decoder in the transformers library's module."""
    prefix, _, rest = name.partition(".")
    in_encoder = prefix == "enc"
    for ours, theirs in {
        "conv1.": "conv2d1.",
        "conv2.": "conv2d2.",
        "conv3.": "conv2d3.",
        "blk.": "layers.",
        "embed.": "embed_tokens.",
        "final_norm.": "norm.",
        ".attn_norm.": ".self_attn_layer_norm." if in_encoder else ".input_layernorm.",
        ".ffn_norm.": ".final_layer_norm." if in_encoder else ".post_attention_layernorm.",
        ".attn.": ".self_attn.",
        ".q.": ".q_proj.",
        ".k.": ".k_proj.",
        ".v.": ".v_proj.",
        ".o.": ".out_proj." if in_encoder else ".o_proj.",
        ".ffn.": "." if in_encoder else ".mlp.",
        ".gate.": ".gate_proj.",
        ".up.": ".up_proj.",
        ".down.": ".down_proj.",
    }.items():
        rest = rest.replace(ours, theirs)
    return rest


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")

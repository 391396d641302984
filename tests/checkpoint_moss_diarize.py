"""Checkpoints of MOSS-Transcribe-Diarize in both forms, made from model files: its makers' and the library's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pycrispasr.models import gguf_file

from .checkpoint import pytorch_name, write_json, write_shard
from .reference.gguf_model import DIARIZE, shared_name

Form = Literal["makers", "hf"]

_TOWER = {"conv2d": "conv", "pos_embed_tokens": "embed_positions", "ln_post": "layer_norm"}
_PROJECTOR = {
    "makers": {"fc1": "model.vq_adaptor.layers.0", "fc2": "model.vq_adaptor.layers.2",
               "norm": "model.vq_adaptor.layers.3"},
    "hf": {"fc1": "model.multi_modal_projector.linear_1", "fc2": "model.multi_modal_projector.linear_2",
           "norm": "model.multi_modal_projector.norm"},
}  # fmt: skip


def write_checkpoint(folder: Path, model: Path, form: Form) -> None:
    """Writes the checkpoint of a model file whose matrices are BF16."""
    folder.mkdir(parents=True)
    values, tensors = gguf_file.load(model)
    metadata = {key.removeprefix("moss_diarize."): value.content for key, value in values.items()}
    own_head = any(tensor.name == "output.weight" for tensor in tensors)
    write_json(folder / "config.json", config(metadata, form, tied=not own_head))
    processor = {
        "processor_class": "MossTranscribeDiarizeProcessor",
        "time_marker_every_seconds": metadata["time_marker_every_seconds"],
        "audio_tokens_per_second": metadata["audio_tokens_per_second"],
        "audio_merge_size": metadata["audio_merge_size"],
    }
    if form == "hf":
        processor["feature_extractor"] = {"feature_size": metadata["enc.n_mels"], "hop_length": 160, "n_fft": 400}
    write_json(folder / "processor_config.json", processor)
    tokens = dict(enumerate(metadata["tokenizer.ggml.tokens"]))
    special = [id_ for id_, token in tokens.items() if token.startswith("<|")]
    vocab = {token: id_ for id_, token in tokens.items() if id_ not in special}
    merges = metadata["tokenizer.ggml.merges"]
    if form == "hf":
        added = [{"id": id_, "content": tokens[id_], "special": True} for id_ in special]
        model_part = {"type": "BPE", "vocab": vocab, "merges": merges}
        write_json(folder / "tokenizer.json", {"model": model_part, "added_tokens": added})
    else:
        write_json(folder / "vocab.json", vocab)
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        decoder = {str(id_): {"content": tokens[id_], "special": True} for id_ in special}
        write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    weights = [tensor for tensor in tensors if not tensor.name.startswith("audio.mel_")]
    write_shard(folder / "model.safetensors", model, weights, lambda name: source_name(name, form))


def config(metadata: Mapping[str, Any], form: Form, *, tied: bool) -> dict[str, Any]:
    """config.json."""
    d_model, merge = metadata["enc.d_model"], metadata["audio_merge_size"]
    text = {
        "model_type": "qwen3",
        "hidden_size": metadata["llm.dim"],
        "num_hidden_layers": metadata["llm.n_layers"],
        "num_attention_heads": metadata["llm.n_heads"],
        "num_key_value_heads": metadata["llm.n_kv_heads"],
        "head_dim": metadata["llm.head_dim"],
        "intermediate_size": metadata["llm.ff_dim"],
        "vocab_size": metadata["llm.vocab_size"],
        "max_position_embeddings": metadata["llm.max_pos"],
        "rms_norm_eps": metadata["llm.rms_eps"],
    }
    if form == "hf":
        audio = {
            "model_type": "moss_transcribe_diarize_audio",
            "num_mel_bins": metadata["enc.n_mels"],
            "num_hidden_layers": metadata["enc.n_layers"],
            "hidden_size": d_model,
            "num_attention_heads": metadata["enc.n_heads"],
            "intermediate_size": metadata["enc.ffn_dim"],
            "max_source_positions": metadata["enc.max_pos"],
        }
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": metadata["llm.rope_theta"]}
        return {
            "architectures": ["MossTranscribeDiarizeForConditionalGeneration"],
            "model_type": "moss_transcribe_diarize",
            "audio_config": audio,
            "text_config": text,
            "audio_token_id": metadata["audio_token_id"],
            "audio_merge_size": merge,
            "audio_chunk_size": metadata["enc.max_pos"] * 320,
            "tie_word_embeddings": tied,
        }
    audio = {
        "model_type": "whisper",
        "num_mel_bins": metadata["enc.n_mels"],
        "encoder_layers": metadata["enc.n_layers"],
        "d_model": d_model,
        "encoder_attention_heads": metadata["enc.n_heads"],
        "encoder_ffn_dim": metadata["enc.ffn_dim"],
        "max_source_positions": metadata["enc.max_pos"],
        "decoder_layers": 12,
    }
    text |= {"rope_theta": metadata["llm.rope_theta"], "tie_word_embeddings": tied}
    return {
        "model_type": "moss_transcribe_diarize",
        "audio_config": audio,
        "text_config": text,
        "adaptor_input_dim": merge * d_model,
        "audio_token_id": metadata["audio_token_id"],
    }


def source_name(name: str, form: Form) -> str:
    """A tensor's name in the checkpoint."""
    shared = shared_name(DIARIZE, name)
    part, inside = shared.partition(".")[0], pytorch_name(shared)
    if part == "adapter":
        stem, _, kind = inside.partition(".")
        return f"{_PROJECTOR[form][stem]}.{kind}"
    if part == "llm":
        return inside if inside.startswith("lm_head") else f"model.language_model.{inside}"
    for old, new in _TOWER.items():
        inside = inside.replace(old, new)
    return f"model.{'audio_tower' if form == 'hf' else 'whisper_encoder'}.{inside}"

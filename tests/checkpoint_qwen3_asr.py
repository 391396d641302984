"""Checkpoints of Qwen3-ASR and its aligner in both forms, made from model files: its makers', and transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pycrispasr.models import gguf_file

from .checkpoint import pytorch_name, write_json, write_shard
from .reference.gguf_model import QWEN, shared_name

Form = Literal["thinker", "hf"]


def write_checkpoint(folder: Path, model: Path, form: Form) -> None:
    """Writes the checkpoint of a model file whose matrices are BF16."""
    folder.mkdir(parents=True)
    values, tensors = gguf_file.load(model)
    metadata = {key.removeprefix("qwen3asr."): value.content for key, value in values.items()}
    own_head = any(tensor.name == "output.weight" for tensor in tensors)
    write_json(folder / "config.json", config(metadata, form, tied=not own_head))
    tokens = dict(enumerate(metadata["tokenizer.ggml.tokens"]))
    special = [id_ for id_, token in tokens.items() if token.startswith("<|") or token in ("<asr_text>", "<timestamp>")]
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
    write_shard(
        folder / "model.safetensors",
        model,
        weights,
        lambda name: source_name(name, form, aligner="classify_num" in metadata),
    )


def config(metadata: Mapping[str, Any], form: Form, *, tied: bool) -> dict[str, Any]:
    """config.json."""
    audio = {
        "num_mel_bins": metadata["n_mels"],
        "encoder_layers": metadata["audio.n_layers"],
        "d_model": metadata["audio.d_model"],
        "encoder_attention_heads": metadata["audio.n_heads"],
        "encoder_ffn_dim": metadata["audio.ff_dim"],
        "downsample_hidden_size": metadata["audio.conv_channels"],
        "output_dim": metadata["audio.proj_dim"],
        "n_window": metadata["audio.n_window"],
        "n_window_infer": metadata["audio.n_window_infer"],
    }
    text = {
        "hidden_size": metadata["llm.d_model"],
        "num_hidden_layers": metadata["llm.n_layers"],
        "num_attention_heads": metadata["llm.n_heads"],
        "num_key_value_heads": metadata["llm.n_kv_heads"],
        "head_dim": metadata["llm.head_dim"],
        "intermediate_size": metadata["llm.ff_dim"],
        "vocab_size": metadata["llm.vocab_size"],
        "max_position_embeddings": metadata["llm.max_pos"],
        "rms_norm_eps": metadata["llm.rms_norm_eps"],
    }
    aligner = "classify_num" in metadata
    times = {"timestamp_token_id": metadata["timestamp_token_id"]} if aligner else {}
    if form == "hf":
        labels = {"id2label": {str(i): f"LABEL_{i}" for i in range(metadata["classify_num"])}} if aligner else {}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": metadata["llm.rope_theta"]}
        return {
            "architectures": [f"Qwen3ASRFor{'TokenClassification' if aligner else 'ConditionalGeneration'}"],
            "model_type": "qwen3_asr",
            **times,
            **labels,
            "audio_config": {"model_type": "qwen3_asr_encoder", "max_position_embeddings": 13, **audio},
            "text_config": {"model_type": "qwen3", "tie_word_embeddings": False, **text},
            "audio_token_id": metadata["audio_pad_token_id"],
            "eos_token_id": [metadata["pad_token_id"], metadata["eos_token_id"]],
            "pad_token_id": metadata["eos_token_id"],
            "tie_word_embeddings": tied,
        }
    text |= {
        "rope_theta": metadata["llm.rope_theta"],
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        "tie_word_embeddings": tied,
    }
    thinker = {
        "model_type": "qwen3_asr",
        "audio_config": {"max_source_positions": metadata["audio.max_source_pos"], **audio},
        "text_config": text,
        "audio_token_id": metadata["audio_pad_token_id"],
        "audio_start_token_id": metadata["audio_start_token_id"],
        "audio_end_token_id": metadata["audio_end_token_id"],
    }
    if aligner:
        thinker |= {"model_type": "qwen3_forced_aligner", "classify_num": metadata["classify_num"]}
        times["timestamp_segment_time"] = metadata["timestamp_segment_time"]
    return {"model_type": "qwen3_asr", "thinker_config": thinker, **times}


def source_name(name: str, form: Form, *, aligner: bool) -> str:
    """A tensor's name in the checkpoint."""
    shared = shared_name(QWEN, name)
    part, inside = shared.partition(".")[0], pytorch_name(shared)
    if inside.startswith("lm_head"):
        if aligner and form == "hf":
            return inside.replace("lm_head", "score")
        return f"thinker.{inside}" if form == "thinker" else inside
    if form == "thinker":
        return f"thinker.{'audio_tower' if part == 'enc' else 'model'}.{inside}"
    if inside.startswith("proj"):
        return f"model.multi_modal_projector.linear_{inside.removeprefix('proj')}"
    return f"model.{'audio_tower' if part == 'enc' else 'language_model'}.{inside}"

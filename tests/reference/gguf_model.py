"""A model file as NumPy arrays."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields

import gguf
import numpy as np

MOSS, QWEN = "moss_transcribe", "qwen3asr"


# Qwen3-ASR's names for what is described here in MOSS-Transcribe's.
QWEN_KEYS = {
    "enc_num_mel_bins": "n_mels",
    "enc_encoder_layers": "audio.n_layers",
    "enc_d_model": "audio.d_model",
    "enc_encoder_attention_heads": "audio.n_heads",
    "enc_encoder_ffn_dim": "audio.ff_dim",
    "enc_downsample_hidden_size": "audio.conv_channels",
    "enc_max_source_positions": "audio.max_source_pos",
    "enc_output_dim": "audio.proj_dim",
    "llm_hidden_size": "llm.d_model",
    "llm_num_layers": "llm.n_layers",
    "llm_num_heads": "llm.n_heads",
    "llm_num_kv_heads": "llm.n_kv_heads",
    "llm_head_dim": "llm.head_dim",
    "llm_intermediate_size": "llm.ff_dim",
    "llm_vocab_size": "llm.vocab_size",
    "llm_max_position_embeddings": "llm.max_pos",
    "llm_rope_theta": "llm.rope_theta",
    "llm_rms_norm_eps": "llm.rms_norm_eps",
    "eos_token_id": "eos_token_id",
    "audio_start_id": "audio_start_token_id",
    "audio_end_id": "audio_end_token_id",
}
QWEN_TENSORS = [  # read from the top: the first that fits
    (r"audio\.conv\.(\d)", r"enc.conv\1"),
    (r"audio\.blk\.(\d+)\.attn_out", r"enc.blk.\1.attn.o"),
    (r"audio\.blk\.(\d+)\.attn_([qkv])\b", r"enc.blk.\1.attn.\2"),
    (r"audio\.blk\.(\d+)\.ffn_up", r"enc.blk.\1.ffn.fc1"),
    (r"audio\.blk\.(\d+)\.ffn_down", r"enc.blk.\1.ffn.fc2"),
    (r"audio\.(?!mel_)", "enc."),
    (r"token_embd", "llm.embed"),
    (r"output_norm", "llm.final_norm"),
    (r"output\b", "llm.lm_head"),
    (r"blk\.(\d+)\.attn_output", r"llm.blk.\1.attn.o"),
    (r"blk\.(\d+)\.attn_(q|k|v|q_norm|k_norm)\b", r"llm.blk.\1.attn.\2"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\b", r"llm.blk.\1.ffn.\2"),
    (r"blk\.", "llm.blk."),
]


@dataclass(frozen=True)
class Hyperparameters:
    """The file's sizes and special ids; each field is a metadata key with `_` for its first `.`."""

    enc_num_mel_bins: int
    enc_encoder_layers: int
    enc_d_model: int
    enc_encoder_attention_heads: int
    enc_encoder_ffn_dim: int
    enc_downsample_hidden_size: int
    enc_max_source_positions: int
    enc_n_window: int  # half a chunk, mel frames
    enc_n_window_infer: int  # an attention window, mel frames
    enc_output_dim: int
    enc_layer_norm_eps: float
    adapter_hidden_size: int
    llm_hidden_size: int
    llm_num_layers: int
    llm_num_heads: int
    llm_num_kv_heads: int
    llm_head_dim: int
    llm_intermediate_size: int
    llm_vocab_size: int
    llm_max_position_embeddings: int
    llm_rope_theta: float
    llm_rms_norm_eps: float
    llm_tied_embeddings: bool
    bos_token_id: int
    eos_token_id: int
    start_token_id: int
    audio_start_id: int
    audio_end_id: int

    @staticmethod
    def key(field: str) -> str:
        """The metadata key of a field, without the file's prefix."""
        return field if field.endswith("_id") else field.replace("_", ".", 1)


@dataclass(frozen=True)
class Model:
    """A model in memory: every tensor by its name, shaped as PyTorch writes it, in one float type."""

    hparams: Hyperparameters
    weights: dict[str, np.ndarray]
    tokens: list[str]
    merges: list[str]
    architecture: str = MOSS

    def __getitem__(self, name: str) -> np.ndarray:
        return self.weights[name]

    @property
    def dtype(self) -> np.dtype:
        """The type that everything but the log-mel is computed in."""
        return self.weights["llm.embed.weight"].dtype

    @property
    def is_qwen(self) -> bool:
        """It is Qwen3-ASR."""
        return self.architecture == QWEN

    @property
    def end_tokens(self) -> list[int]:
        """Each of which ends a text."""
        hp = self.hparams
        return [hp.eos_token_id, hp.bos_token_id] if self.is_qwen else [hp.eos_token_id]


def load(path: str | os.PathLike[str], dtype: type[np.floating] = np.float64) -> Model:
    """Read a model file; quantised tensors are dequantised."""
    reader = gguf.GGUFReader(path)

    def value(key: str):
        return reader.fields[key].contents()

    architecture, tokens = value("general.architecture"), value("tokenizer.ggml.tokens")
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = tensor.name if architecture == MOSS else qwen_name(tensor.name)
        weights[name] = values.reshape(tuple(int(n) for n in tensor.shape[::-1])).astype(dtype)
    if architecture == MOSS:
        hparams = {field.name: value(f"{MOSS}.{Hyperparameters.key(field.name)}") for field in fields(Hyperparameters)}
    else:
        hparams = {field: value(f"{QWEN}.{key}") for field, key in QWEN_KEYS.items()} | {
            "enc_n_window": value(f"{QWEN}.audio.n_window") if f"{QWEN}.audio.n_window" in reader.fields else 50,
            "enc_n_window_infer": value(f"{QWEN}.audio.n_window_infer")
            if f"{QWEN}.audio.n_window_infer" in reader.fields
            else 800,
            "enc_layer_norm_eps": 1e-5,
            "adapter_hidden_size": 0,
            "llm_tied_embeddings": "llm.lm_head.weight" not in weights,
            "bos_token_id": tokens.index("<|endoftext|>"),
            "start_token_id": tokens.index("<|im_start|>"),
        }
    merges = value("tokenizer.ggml.merges") if "tokenizer.ggml.merges" in reader.fields else []
    return Model(Hyperparameters(**hparams), weights, tokens, merges, architecture)


def qwen_name(name: str) -> str:
    """MOSS-Transcribe's name of a tensor."""
    for pattern, replacement in QWEN_TENSORS:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name

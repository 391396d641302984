"""A model file as NumPy arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

import gguf
import numpy as np

PREFIX = "moss_transcribe."


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

    def __getitem__(self, name: str) -> np.ndarray:
        return self.weights[name]

    @property
    def dtype(self) -> np.dtype:
        """The type that everything but the log-mel is computed in."""
        return self.weights["llm.embed.weight"].dtype


def load(path: str | os.PathLike[str], dtype: type[np.floating] = np.float64) -> Model:
    """Read a model file; quantised tensors are dequantised."""
    reader = gguf.GGUFReader(path)

    def value(key: str):
        return reader.fields[key].contents()

    hparams = {field.name: value(PREFIX + Hyperparameters.key(field.name)) for field in fields(Hyperparameters)}
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        weights[tensor.name] = values.reshape(tuple(int(n) for n in tensor.shape[::-1])).astype(dtype)
    merges = value("tokenizer.ggml.merges") if "tokenizer.ggml.merges" in reader.fields else []
    return Model(Hyperparameters(**hparams), weights, value("tokenizer.ggml.tokens"), merges)

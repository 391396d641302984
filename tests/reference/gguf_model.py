"""A model file as NumPy arrays."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields

import gguf
import numpy as np

MOSS, QWEN, DIARIZE = "moss_transcribe", "qwen3asr", "moss_transcribe_diarize"


@dataclass(frozen=True)
class Layout:
    """How a family's files name what is described here in MOSS-Transcribe's names.

    Attributes:
        prefix: What their own metadata keys begin with.
        keys: Fields of `Hyperparameters` and the keys of their values, below the prefix.
        tensors: Patterns at the beginning of tensors' names, and what takes their place: the first that fits.
        defaults: Fields that a file may leave out.
        named: Fields that are the ids of tokens of these names.
    """

    prefix: str
    keys: dict[str, str]
    tensors: list[tuple[str, str]]
    defaults: dict[str, int | float]
    named: dict[str, str]


@dataclass(frozen=True)
class Hyperparameters:
    """The file's sizes and special ids; each field is a metadata key with `_` for its first `.`."""

    enc_num_mel_bins: int
    enc_encoder_layers: int
    enc_d_model: int
    enc_encoder_attention_heads: int
    enc_encoder_ffn_dim: int
    enc_max_source_positions: int
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
    enc_layer_norm_eps: float = 1e-5
    # Qwen3-Omni's tower alone.
    enc_downsample_hidden_size: int = 0
    enc_n_window: int = 0  # half a chunk, mel frames
    enc_n_window_infer: int = 0  # an attention window, mel frames
    enc_output_dim: int = 0
    adapter_hidden_size: int = 0
    # Whisper's tower alone.
    enc_merge: int = 0  # rows that are joined to one
    enc_rows_per_second: float = 0
    enc_marker_seconds: int = 0  # between the times among the audio rows; 0: none

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
    texts: dict[str, str] = field(default_factory=dict)  # of the metadata below the prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self.weights[name]

    @property
    def dtype(self) -> np.dtype:
        """The type that everything but the log-mel is computed in."""
        return self.weights["llm.embed.weight"].dtype

    @property
    def end_tokens(self) -> list[int]:
        """Each of which ends a text."""
        hp = self.hparams
        return [hp.eos_token_id] if self.architecture == MOSS else [hp.eos_token_id, hp.bos_token_id]


LAYOUTS = {
    MOSS: Layout(MOSS, {}, [], {}, {}),
    QWEN: Layout(
        QWEN,
        {
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
            "enc_n_window": "audio.n_window",
            "enc_n_window_infer": "audio.n_window_infer",
        },
        [
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
        ],
        {"enc_n_window": 50, "enc_n_window_infer": 800},
        {"bos_token_id": "<|endoftext|>", "start_token_id": "<|im_start|>"},
    ),
    DIARIZE: Layout(
        "moss_diarize",
        {
            "enc_num_mel_bins": "enc.n_mels",
            "enc_encoder_layers": "enc.n_layers",
            "enc_d_model": "enc.d_model",
            "enc_encoder_attention_heads": "enc.n_heads",
            "enc_encoder_ffn_dim": "enc.ffn_dim",
            "enc_max_source_positions": "enc.max_pos",
            "enc_merge": "audio_merge_size",
            "enc_rows_per_second": "audio_tokens_per_second",
            "enc_marker_seconds": "time_marker_every_seconds",
            "llm_hidden_size": "llm.dim",
            "llm_num_layers": "llm.n_layers",
            "llm_num_heads": "llm.n_heads",
            "llm_num_kv_heads": "llm.n_kv_heads",
            "llm_head_dim": "llm.head_dim",
            "llm_intermediate_size": "llm.ff_dim",
            "llm_vocab_size": "llm.vocab_size",
            "llm_max_position_embeddings": "llm.max_pos",
            "llm_rope_theta": "llm.rope_theta",
            "llm_rms_norm_eps": "llm.rms_eps",
        },
        [
            (r"enc\.blk\.(\d+)\.attn_out", r"enc.blk.\1.attn.o"),
            (r"enc\.blk\.(\d+)\.attn_([qkv])\b", r"enc.blk.\1.attn.\2"),
            (r"enc\.blk\.(\d+)\.ffn_up", r"enc.blk.\1.ffn.fc1"),
            (r"enc\.blk\.(\d+)\.ffn_down", r"enc.blk.\1.ffn.fc2"),
            (r"adaptor\.", "adapter."),
            (r"token_embd", "llm.embed"),
            (r"output_norm", "llm.final_norm"),
            (r"output\b", "llm.lm_head"),
            (r"blk\.(\d+)\.([qk]_norm)", r"llm.blk.\1.attn.\2"),
            (r"blk\.(\d+)\.attn_([qkvo])\b", r"llm.blk.\1.attn.\2"),
            (r"blk\.(\d+)\.ffn_(gate|up|down)\b", r"llm.blk.\1.ffn.\2"),
            (r"blk\.", "llm.blk."),
        ],
        {"enc_merge": 4, "enc_rows_per_second": 12.5, "enc_marker_seconds": 5, "llm_max_position_embeddings": 131072},
        {
            "bos_token_id": "<|endoftext|>",
            "eos_token_id": "<|im_end|>",
            "start_token_id": "<|im_start|>",
            "audio_start_id": "<|audio_start|>",
            "audio_end_id": "<|audio_end|>",
        },
    ),
}


def load(path: str | os.PathLike[str], dtype: type[np.floating] = np.float64) -> Model:
    """Read a model file; quantised tensors are dequantised."""
    reader = gguf.GGUFReader(path)
    metadata = {key: entry.contents() for key, entry in reader.fields.items()}
    architecture, tokens = metadata["general.architecture"], metadata["tokenizer.ggml.tokens"]
    layout = LAYOUTS[architecture]
    own = {key.removeprefix(f"{layout.prefix}."): value for key, value in metadata.items()}

    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = shared_name(architecture, tensor.name)
        weights[name] = values.reshape(tuple(int(n) for n in tensor.shape[::-1])).astype(dtype)
    keys = {one.name: Hyperparameters.key(one.name) for one in fields(Hyperparameters)} | layout.keys
    sizes = layout.defaults | {name: own[key] for name, key in keys.items() if key in own}
    sizes |= {name: tokens.index(token) for name, token in layout.named.items()}
    sizes.setdefault("llm_tied_embeddings", "llm.lm_head.weight" not in weights)
    texts = {key: value for key, value in own.items() if isinstance(value, str)}
    return Model(
        Hyperparameters(**sizes), weights, tokens, metadata.get("tokenizer.ggml.merges", []), architecture, texts
    )


def shared_name(architecture: str, name: str) -> str:
    """MOSS-Transcribe's name of a tensor."""
    for pattern, replacement in LAYOUTS[architecture].tensors:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name

"""MOSS-Transcribe in plain PyTorch, small: the arithmetic of the runtime, with the tensor names of the checkpoint.

Log-mel frames -> convolutions -> encoder -> adapter -> decoder. Sizes are those of `config.json`. Training runs whole
batches through `forward`; `transcribe` decodes one clip greedily.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

AUDIO = {
    "num_mel_bins": 128,
    "d_model": 256,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 768,
    "downsample_hidden_size": 32,
    "max_source_positions": 1500,
    "n_window": 50,
    "n_window_infer": 100,
    "output_dim": 256,
    "conv_chunksize": 500,
    "scale_embedding": False,
    "activation_function": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
LANGUAGE = {
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
}
ADAPTER_HIDDEN = 512

CHUNK = 2 * AUDIO["n_window"]
CHUNK_ROWS = 13
GUIDED_HEADS = 2


def conv_length(frames: int) -> int:
    """Rows that come out of the three convolutions for one chunk of `frames` frames."""
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


def audio_rows(frames: int) -> int:
    """Rows that the encoder makes of a clip of `frames` frames."""
    whole, rest = divmod(frames, CHUNK)
    return whole * CHUNK_ROWS + (conv_length(rest) if rest else 0)


def sinusoids(length: int, width: int) -> Tensor:
    """The position table: sines in the first half of each row, cosines in the second."""
    scales = torch.exp(-math.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * scales
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class EncoderAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~mask, -1e4)
        return self.out_proj((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, hidden = AUDIO["d_model"], AUDIO["encoder_ffn_dim"]
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = EncoderAttention(width, AUDIO["encoder_attention_heads"])
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class AudioModel(nn.Module):
    """Convolutions and encoder; attention stays inside one chunk (`n_window_infer` = one second)."""

    def __init__(self) -> None:
        super().__init__()
        width, channels = AUDIO["d_model"], AUDIO["downsample_hidden_size"]
        self.conv2d1, self.conv2d2, self.conv2d3 = (nn.Conv2d(c, channels, 3, 2, 1) for c in (1, channels, channels))
        self.conv_out = nn.Linear(channels * AUDIO["num_mel_bins"] // 8, width, bias=False)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(AUDIO["encoder_layers"]))
        self.ln_post = nn.LayerNorm(width)
        self.proj1, self.proj2 = nn.Linear(width, width), nn.Linear(width, AUDIO["output_dim"])
        self.register_buffer("positions", sinusoids(CHUNK_ROWS, width), persistent=False)

    def stem(self, features: Tensor) -> Tensor:
        """Frames [clips, 128, T], T < 100 or a multiple of 100, to rows [clips, chunks, rows, width]."""
        clips, bins, frames = features.shape
        width = min(CHUNK, frames)
        x = features.view(clips, bins, -1, width).transpose(1, 2).reshape(-1, 1, bins, width)
        x = x.contiguous(memory_format=torch.channels_last)
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = F.gelu(conv(x))
        return self.conv_out(x.permute(0, 3, 1, 2).flatten(2)).unflatten(0, (clips, -1))

    def forward(self, stem_rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows of the stem to [clips, rows, output_dim]; of each clip the first `lengths` rows count."""
        clips, chunks, rows, _ = stem_rows.shape
        x = stem_rows.flatten(0, 1) + self.positions[:rows]
        # A chunk past the end of its clip has no valid row; its first row is let in so that softmax stays finite.
        valid = torch.arange(chunks * rows) < lengths[:, None]
        mask = valid.view(-1, 1, 1, rows).clone()
        mask[..., 0] = True
        for layer in self.layers:
            x = layer(x, mask)
        x = self.proj2(F.gelu(self.proj1(self.ln_post(x))))
        return x.view(clips, chunks * rows, -1)


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(AUDIO["output_dim"], ADAPTER_HIDDEN, bias=False)
        self.up_proj = nn.Linear(AUDIO["output_dim"], ADAPTER_HIDDEN, bias=False)
        self.down_proj = nn.Linear(ADAPTER_HIDDEN, LANGUAGE["hidden_size"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def norm_heads(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMSNorm in the type of `x`, which autocast leaves alone: only so is there a fused kernel."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; on short inputs plain products are faster than the fused kernel's backward pass."""
    rows = q.shape[2]
    if not 1 < rows <= 256:
        return F.scaled_dot_product_attention(q, k, v, is_causal=rows > 1)
    future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(future, -1e4)
    return scores.softmax(-1).to(v.dtype) @ v


class DecoderAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, head = LANGUAGE["hidden_size"], LANGUAGE["head_dim"]
        heads, groups = LANGUAGE["num_attention_heads"], LANGUAGE["num_key_value_heads"]
        self.q_proj = nn.Linear(width, heads * head, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, groups * head, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * head, width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(head, LANGUAGE["rms_norm_eps"]) for _ in range(2))

    def forward(
        self, x: Tensor, rope: Rope, cache: dict[int, tuple[Tensor, Tensor]] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention's output, and the rotated queries and keys, on which guided attention is trained."""
        head = LANGUAGE["head_dim"]
        q, k, v = (p(x).unflatten(-1, (-1, head)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rope.rotate(norm_heads(x, norm)).transpose(1, 2) for x, norm in ((q, self.q_norm), (k, self.k_norm)))
        v = v.transpose(1, 2)
        if cache is not None:
            if id(self) in cache:
                k, v = (torch.cat(pair, 2) for pair in zip(cache[id(self)], (k, v), strict=True))
            cache[id(self)] = (k, v)
        repeat = q.shape[1] // k.shape[1]
        wide_k, wide_v = (t.repeat_interleave(repeat, 1) for t in (k, v))
        y = attend(q, wide_k, wide_v.to(q.dtype))
        return self.o_proj(y.transpose(1, 2).flatten(2)), q, k


class Rope(NamedTuple):
    """Cosines and sines of the positions of one run of the decoder, [positions, 1, head_dim]."""

    cosine: Tensor
    sine: Tensor

    @classmethod
    def at(cls, start: int, stop: int) -> Rope:
        half = LANGUAGE["head_dim"] // 2
        angles = torch.arange(start, stop)[:, None] * LANGUAGE["rope_theta"] ** (-torch.arange(half) / half)
        angles = torch.cat([angles, angles], 1)[:, None]
        return cls(angles.cos(), angles.sin())

    def rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cosine.to(x.dtype) + torch.cat([-second, first], -1) * self.sine.to(x.dtype)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, hidden = LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, eps = LANGUAGE["hidden_size"], LANGUAGE["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.self_attn, self.mlp = DecoderAttention(), MLP()

    def forward(self, x: Tensor, rope: Rope, cache: dict | None = None) -> tuple[Tensor, Tensor, Tensor]:
        y, q, k = self.self_attn(self.input_layernorm(x), rope, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), q, k


class Decoded(NamedTuple):
    """What the decoder computed: the residual stream after every layer, and each layer's queries and keys."""

    states: list[Tensor]
    queries: list[Tensor]
    keys: list[Tensor]
    output: Tensor


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        width = LANGUAGE["hidden_size"]
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LANGUAGE["num_hidden_layers"]))
        self.norm = nn.RMSNorm(width, LANGUAGE["rms_norm_eps"])

    def forward(self, x: Tensor, start: int = 0, cache: dict | None = None) -> Decoded:
        rope = Rope.at(start, start + x.shape[1])
        states, queries, keys = [], [], []
        for layer in self.layers:
            x, q, k = layer(x, rope, cache)
            states.append(x)
            queries.append(q)
            keys.append(k)
        return Decoded(states, queries, keys, self.norm(x))


@dataclass
class Batch:
    """Clips of about one length. `features` is [clips, 128, frames], zero past the end of each clip."""

    features: Tensor
    rows: Tensor
    tokens: list[list[int]]


class Output(NamedTuple):
    stem: Tensor
    """[clips, rows, width] of the convolutions."""
    adapter: Tensor
    """[clips, rows, width] of the adapter."""
    decoded: Decoded
    audio_start: int
    text_start: Tensor
    """Column of the decoder's input that predicts the first text token, per clip."""


class Transcriber(nn.Module):
    def __init__(self, tokenizer: Path) -> None:
        super().__init__()
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.audio_model, self.audio_adapter = AudioModel(), Adapter()
        self.language_model = LanguageModel(self.tokenizer.get_vocab_size())
        token = self.tokenizer.token_to_id
        self.end, start, newline = token("<|im_end|>"), token("<|im_start|>"), token("Ċ")
        self.before = [start, token("user"), newline, token("<|audio_bos|>")]
        self.after = [token("<|audio_eos|>"), self.end, newline, start, token("assistant"), newline]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.language_model.embed_tokens.weight.T.to(hidden.dtype)

    def forward(self, batch: Batch) -> Output:
        """Teacher forcing: the decoder reads prompt, audio and text of every clip at once."""
        stem = self.audio_model.stem(batch.features)
        rows = self.audio_adapter(self.audio_model(stem, batch.rows))
        lengths = batch.rows.tolist()
        before, after = len(self.before), len(self.after)
        columns = max(n + len(t) for n, t in zip(lengths, batch.tokens, strict=True)) + before + after
        ids = torch.zeros(len(lengths), columns, dtype=torch.long)
        ids[:, :before] = torch.tensor(self.before)
        for clip, (n, tokens) in enumerate(zip(lengths, batch.tokens, strict=True)):
            tail = [*self.after, *tokens]
            ids[clip, before + n : before + n + len(tail)] = torch.tensor(tail)
        x = self.language_model.embed_tokens(ids)
        width = min(rows.shape[1], columns - before)
        heard = (torch.arange(width) < batch.rows[:, None])[..., None]
        middle = torch.where(heard, rows[:, :width].to(x.dtype), x[:, before : before + width])
        x = torch.cat([x[:, :before], middle, x[:, before + width :]], 1)
        text_start = batch.rows + before + after - 1
        return Output(stem.flatten(1, 2), rows, self.language_model(x), before, text_start)

    @torch.no_grad()
    def transcribe(self, features: Tensor, limit: int = 64) -> str:
        """Greedy text of one clip of log-mel frames [128, T]."""
        frames = features.shape[1]
        if frames > CHUNK:
            features = F.pad(features, (0, -frames % CHUNK))
        rows = torch.tensor([audio_rows(frames)])
        heard = self.audio_adapter(self.audio_model(self.audio_model.stem(features[None]), rows))[:, : int(rows)]
        embed = self.language_model.embed_tokens
        x = torch.cat([embed(torch.tensor([self.before])), heard, embed(torch.tensor([self.after]))], 1)
        tokens: list[int] = []
        cache: dict = {}
        start = 0
        while len(tokens) < limit:
            hidden = self.language_model(x, start, cache).output[0, -1]
            token = int(self.logits(hidden).argmax())
            if token == self.end:
                break
            tokens.append(token)
            start += x.shape[1]
            x = embed(torch.tensor([[token]]))
        return self.tokenizer.decode(tokens).strip()


def initialise(model: Transcriber) -> None:
    """Weights with the standard deviation that their fan-in asks for.

    transformers' default (0.02 everywhere) makes the convolutions' output a thousand times smaller than the position
    table, and the decoder then never hears the audio.
    """
    for name, parameter in model.named_parameters():
        if "conv2d" in name and parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        elif name.endswith("embed_tokens.weight"):
            nn.init.normal_(parameter, std=0.06)
        elif parameter.ndim == 2:
            deviation = parameter.shape[1] ** -0.5
            if "layers" in name and name.endswith(
                ("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")
            ):
                deviation *= 0.5
            nn.init.normal_(parameter, std=deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def whiten(model: Transcriber, features: Tensor, floor: float = 0.02) -> None:
    """Fit the convolutional stem to data [clips, 128, k·100].

    Every channel is standardised before its GELU, and `conv_out` becomes the whitened principal components of what the
    convolutions make, turned at random, without their mean.
    """
    audio = model.audio_model
    x = features.unflatten(-1, (-1, CHUNK)).transpose(1, 2).reshape(-1, 1, features.shape[1], CHUNK)
    for conv in (audio.conv2d1, audio.conv2d2, audio.conv2d3):
        y = conv(x)
        mean, deviation = y.mean((0, 2, 3)), y.std((0, 2, 3))
        conv.weight /= deviation[:, None, None, None]
        conv.bias.copy_((conv.bias - mean) / deviation)
        x = F.gelu(conv(x))
    rows = x.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    size = audio.conv_out.out_features
    values, vectors = values.flip(0)[:size].clamp(min=0), vectors.flip(1)[:, :size]
    turn = torch.linalg.qr(torch.randn(size, size))[0]
    weight = (vectors / (values + floor * values.mean()).sqrt() @ turn).T
    direction = mean / mean.norm()
    weight -= torch.outer(weight @ direction, direction)
    audio.conv_out.weight.copy_(weight / (centred @ weight.T).std())


def export(weights: dict[str, Tensor], tokenizer_file: Path, folder: Path) -> None:
    """Write the Hugging Face layout: BF16 safetensors, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    names = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "start_token_id": "<|im_start|>",
        "audio_start_id": "<|audio_bos|>",
        "audio_end_id": "<|audio_eos|>",
    }
    ids = {key: tokenizer.token_to_id(name) for key, name in names.items()}
    size = {"vocab_size": tokenizer.get_vocab_size()}
    config = {
        "architectures": ["MossTranscribeForConditionalGeneration"],
        "model_type": "moss_transcribe",
        "adapter_hidden_size": ADAPTER_HIDDEN,
        "audio_config": AUDIO,
        "language_config": LANGUAGE | size | {key: ids[key] for key in ("bos_token_id", "eos_token_id")},
        **ids,
        **size,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
    }
    generation = {key: ids[key] for key in ("bos_token_id", "eos_token_id")} | {
        "do_sample": False,
        "max_new_tokens": 512,
    }
    frontend = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
    }
    files = {"config.json": config, "generation_config.json": generation, "preprocessor_config.json": frontend}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())


def load(folder: Path) -> Transcriber:
    """The model of an exported checkpoint."""
    model = Transcriber(folder / "tokenizer.json")
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    return model.eval()

"""Speech models from samples to token ids, a function for each step, in the order in which data flows.

A model is put together of parts, of which `Parts` has those that differ: MOSS-Transcribe and Qwen3-ASR have the audio
tower of Qwen3-Omni, MOSS-Transcribe-Diarize has Whisper's.

Arrays are rows first; shapes stand in comments as [rows, columns] with
    n  samples at 16 kHz          T  mel frames, 100 a second        B, L  chunks and frames in each
    A  audio rows, 12 or 13 a s.  P  rows of the decoder             V     vocabulary
The arithmetic is that of the transformers library (5.x), whose functions each step names; it runs in the float type of
the model's weights, the log-mel in float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .gguf_model import DIARIZE, MOSS, QWEN, Model

N_FFT, HOP = 400, 160  # samples: 25 ms frames every 10 ms
AUDIO = -1  # stands in the prompt where an audio row goes
Cache = list[tuple[np.ndarray, np.ndarray]]  # keys and values of each layer, both [kv heads, P, head dim]


# ---- Log-mel: WhisperFeatureExtractor --------------------------------------------------------------------------------


def slaney_filters(n_mels: int) -> np.ndarray:
    """The mel filterbank, [201, n_mels]: `mel_filter_bank(201, n_mels, 0, 8000, 16000, "slaney", "slaney")`."""

    def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, 200 / 3 * mel, 1000 * 6.4 ** ((mel - 15) / 27))

    top = 15 + 27 * math.log(8) / math.log(6.4)  # 8000 Hz in mel
    edges = mel_to_hertz(np.linspace(0, top, n_mels + 2))
    frequencies = np.linspace(0, 8000, N_FFT // 2 + 1)[:, None]
    up = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(up, down)) * 2 / (edges[2:] - edges[:-2])


def log_mel(samples: np.ndarray, n_mels: int, filters: np.ndarray | None = None) -> np.ndarray:
    """[n] in [-1, 1] -> [n_mels, T], T = n // 160."""
    filters = slaney_filters(n_mels) if filters is None else filters.astype(np.float64)
    padded = np.pad(samples.astype(np.float64), N_FFT // 2, mode="reflect")
    frames = sliding_window_view(padded, N_FFT)[::HOP][:-1]  # [T, 400]; the frame past the end is dropped
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)  # periodic Hann
    power = np.abs(np.fft.rfft(frames * window)) ** 2  # [T, 201]
    log = np.log10(np.maximum(power @ filters, 1e-10))
    return ((np.maximum(log, log.max() - 8) + 4) / 4).T


def heard(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> the samples with the silence that the makers pad them with."""
    return PARTS[model.architecture].pad(model, samples)


def half_a_second(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> [max(n, 8000)]: Qwen3ASRFeatureExtractor."""
    return np.pad(samples, (0, max(0, 8000 - len(samples))))


def whole_windows(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> [whole windows]: MossTranscribeDiarizeFeatureExtractor."""
    return np.pad(samples, (0, -len(samples) % (window_frames(model) * HOP)))


def listen(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> [n_mels, T]: what the encoder reads."""
    return PARTS[model.architecture].listen(model, heard(model, samples))


def one_spectrogram(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> [n_mels, T]"""
    return log_mel(samples, model.hparams.enc_num_mel_bins, model.weights.get("audio.mel_filters"))


def spectrogram_of_each_window(model: Model, samples: np.ndarray) -> np.ndarray:
    """[whole windows] -> [n_mels, T]: each window reflects at its own ends, and is raised to its own floor."""
    windows = samples.reshape(-1, window_frames(model) * HOP)
    return np.concatenate([one_spectrogram(model, window) for window in windows], axis=1)


# ---- Encoder: Qwen3OmniMoeAudioEncoder -------------------------------------------------------------------------------


def conv_length(frames: int) -> int:
    """Rows that the three convolutions of stride 2 make from a chunk."""
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


def positions(count: int, d_model: int, dtype: np.dtype) -> np.ndarray:
    """Sinusoids, [count, d_model]: sines, then cosines (SinusoidsPositionEmbedding, a float32 table)."""
    half = d_model // 2
    angles = np.arange(count)[:, None] * np.exp(-math.log(10000) / (half - 1) * np.arange(half))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(dtype)


def conv_stem(model: Model, mel: np.ndarray) -> np.ndarray:
    """[n_mels, T] -> [A, d_model], positions added.

    Chunks are padded with zeros to the longest chunk of the clip, so what lies past a short last chunk is the
    convolutions' answer to silence, not their zero padding; a clip of one short chunk has no such rows. Qwen3-ASR's
    (Qwen3ASREncoder) are padded to whole chunks.
    """
    hp, chunk = model.hparams, 2 * model.hparams.enc_n_window
    pieces = [mel[:, start : start + chunk] for start in range(0, mel.shape[1], chunk)]
    longest = chunk if model.architecture == QWEN else max(piece.shape[1] for piece in pieces)
    x = np.stack([np.pad(piece, ((0, 0), (0, longest - piece.shape[1]))) for piece in pieces])
    x = x[:, None].astype(model.dtype)  # [B, 1, n_mels, L]
    for i in (1, 2, 3):
        x = gelu(conv2d(x, model[f"enc.conv{i}.weight"], model[f"enc.conv{i}.bias"]))  # [B, channels, F', L']
    x = x.transpose(0, 3, 1, 2).reshape(len(pieces), x.shape[3], -1)  # [B, L', channels * F'], F' fastest
    x = linear(model, "enc.conv_out", x) + positions(x.shape[1], hp.enc_d_model, model.dtype)
    return np.concatenate([rows[: conv_length(piece.shape[1])] for rows, piece in zip(x, pieces, strict=True)])


def omni_windows(model: Model, mel: np.ndarray) -> list[np.ndarray]:
    """[n_mels, T] -> the rows of each attention window, [rows, d_model]."""
    hp, x = model.hparams, conv_stem(model, mel)
    chunk = 2 * hp.enc_n_window
    window = conv_length(chunk) * (hp.enc_n_window_infer // chunk)  # rows that see each other: 104 in 8 s
    return [x[start : start + window] for start in range(0, len(x), window)]


def omni_head(model: Model, x: np.ndarray) -> np.ndarray:
    """[A, d_model] -> [A, output_dim]"""
    x = gelu(linear(model, "enc.proj1", layer_norm(model, "enc.ln_post", x)))
    return linear(model, "enc.proj2", x)


# ---- Encoder: MossTranscribeDiarizeAudioModel, which is Whisper's ----------------------------------------------------


def window_frames(model: Model) -> int:
    """Mel frames of a window: 3000."""
    return 2 * model.hparams.enc_max_source_positions


def whisper_windows(model: Model, mel: np.ndarray) -> list[np.ndarray]:
    """[n_mels, whole windows] -> the rows of each, [1500, d_model], learned positions added."""
    size = window_frames(model)
    windows = [mel[:, start : start + size].astype(model.dtype) for start in range(0, mel.shape[1], size)]
    for i, stride in ((1, 1), (2, 2)):
        weight, bias = model[f"enc.conv{i}.weight"], model[f"enc.conv{i}.bias"]
        windows = [gelu(conv1d(x, weight, bias, stride)) for x in windows]
    return [x.T + model["enc.pos_embed.weight"] for x in windows]


def whisper_head(model: Model, x: np.ndarray) -> np.ndarray:
    """[4 A, d_model] -> [A, 4 d_model]: rows in succession are joined."""
    return layer_norm(model, "enc.ln_post", x).reshape(-1, model.hparams.enc_merge * model.hparams.enc_d_model)


def whisper_rows(model: Model, n_samples: int) -> int:
    """Audio rows of a clip; what fills up its last window gives none."""
    frames = -(-n_samples // HOP)
    return -(-((frames - 1) // 2 + 1) // model.hparams.enc_merge)


# ---- Encoder: what both towers have ----------------------------------------------------------------------------------


def encoder_layer(model: Model, i: int, x: np.ndarray) -> np.ndarray:
    """Layer `i` on one attention window, [rows, d_model]."""
    name = f"enc.blk.{i}"
    h = layer_norm(model, f"{name}.attn_norm", x)
    heads = model.hparams.enc_encoder_attention_heads
    q, k, v = (split_heads(linear(model, f"{name}.attn.{part}", h), heads) for part in "qkv")
    x = x + linear(model, f"{name}.attn.o", merge_heads(attention(q, k, v)))
    h = layer_norm(model, f"{name}.ffn_norm", x)
    return x + linear(model, f"{name}.ffn.fc2", gelu(linear(model, f"{name}.ffn.fc1", h)))


def encode(
    model: Model, mel: np.ndarray, n_layers: int | None = None, states: list[np.ndarray] | None = None
) -> np.ndarray:
    """[n_mels, T] -> [A, output_dim]. With `n_layers`, the rows [rows, d_model] after so many transformer layers.

    `states` takes the rows after the conv stem, and after each layer.
    """
    parts = PARTS[model.architecture]
    windows = parts.windows(model, mel)
    states = [] if states is None else states
    states.append(np.concatenate(windows))
    for i in range(model.hparams.enc_encoder_layers if n_layers is None else n_layers):
        windows = [encoder_layer(model, i, rows) for rows in windows]
        states.append(np.concatenate(windows))
    return states[-1] if n_layers is not None else parts.head(model, states[-1])


# ---- Between the encoder and the decoder -----------------------------------------------------------------------------


def adapt(model: Model, rows: np.ndarray) -> np.ndarray:
    """[A, output_dim] -> [A, hidden]: the rows that stand in the prompt."""
    return PARTS[model.architecture].adapt(model, rows)


def gated_mlp(model: Model, rows: np.ndarray) -> np.ndarray:
    """MOSS-Transcribe's adapter."""
    return linear(model, "adapter.down", silu(linear(model, "adapter.gate", rows)) * linear(model, "adapter.up", rows))


def normed_mlp(model: Model, rows: np.ndarray) -> np.ndarray:
    """MossTranscribeDiarizeMultiModalProjector, whose norm has the decoder's epsilon."""
    inner = linear(model, "adapter.fc2", silu(linear(model, "adapter.fc1", rows)))
    return layer_norm(model, "adapter.norm", inner, model.hparams.llm_rms_norm_eps)


def audio_rows(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> [A, hidden]: those that a clip has in its prompt."""
    rows = adapt(model, encode(model, listen(model, samples)))
    return rows[: PARTS[model.architecture].rows(model, len(samples))]


# ---- Prompt and tokenizer --------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in tokens (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenize(model: Model, word: str) -> list[int]:
    """Byte-level BPE of one word: the adjacent pair that merges first is merged until no pair does."""
    ranks = {merge: rank for rank, merge in enumerate(model.merges)}
    alphabet = byte_alphabet()
    parts = [alphabet[byte] for byte in word.encode()]
    while len(parts) > 1:
        pairs = enumerate(pairwise(parts))
        rank, at = min((ranks.get(f"{a} {b}", len(ranks)), i) for i, (a, b) in pairs)
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [model.tokens.index(part) for part in parts]


def detokenize(model: Model, ids: list[int]) -> bytes:
    """The bytes of tokens; characters outside the byte alphabet (special tokens) stand for themselves."""
    byte_of = {character: bytes([byte]) for byte, character in enumerate(byte_alphabet())}
    return b"".join(byte_of.get(character, character.encode()) for i in ids for character in model.tokens[i])


def prompt_ids(model: Model, n_audio: int) -> list[int]:
    """[P]: the chat around the audio, `AUDIO` for each of its rows."""
    before, after = PARTS[model.architecture].prompt(model)
    return [*tokens_of(model, before), *audio_ids(model, n_audio), *tokens_of(model, after)]


def tokens_of(model: Model, text: str) -> list[int]:
    """Tokens of a text in which special ones stand by name; of others, lines are words."""
    ids = []
    for part in re.split(r"(<\|\w+\|>|\n)", text):
        ids += [model.tokens.index(part)] if part in model.tokens else tokenize(model, part)
    return ids


def audio_ids(model: Model, n_audio: int) -> list[int]:
    """[A and times]: every so many seconds the second stands among the rows, in digits (`replace_audio_token`)."""
    every, per_second = model.hparams.enc_marker_seconds, model.hparams.enc_rows_per_second
    ids: list[int] = []
    for second in range(every, int(n_audio / per_second) + 1, every) if every else ():
        ids += [AUDIO] * int(per_second * every) + tokenize(model, str(second))
    return ids + [AUDIO] * (n_audio - ids.count(AUDIO))


def moss_prompt(model: Model) -> tuple[str, str]:
    """What stands before the audio's rows, and behind them."""
    hp = model.hparams
    ids = (hp.start_token_id, hp.eos_token_id, hp.audio_start_id, hp.audio_end_id)
    start, end, audio_start, audio_end = (model.tokens[i] for i in ids)
    return f"{start}user\n{audio_start}", f"{audio_end}{end}\n{start}assistant\n"


def qwen_prompt(model: Model) -> tuple[str, str]:
    """The same with an empty context in front."""
    before, after = moss_prompt(model)
    return f"<|im_start|>system\n<|im_end|>\n{before}", after


def diarize_prompt(model: Model) -> tuple[str, str]:
    """The same with an instruction behind the audio, unless the file has its own."""
    before, after = moss_prompt(model)
    instructed = after.replace("<|im_end|>", f"\n{INSTRUCTION}<|im_end|>", 1)
    return model.texts.get("prompt_before", before), model.texts.get("prompt_after", instructed)


INSTRUCTION = (
    "请将音频转写为文本，每一段需以起始时间戳和说话人编号（[S01]、[S02]、[S03]…）开头，正文为对应的语音内容，"
    "并在段末标注结束时间戳，以清晰标明该段语音范围。"
)


def embed(model: Model, ids: list[int], audio: np.ndarray | None = None) -> np.ndarray:
    """[P] -> [P, hidden]; the rows of `audio` take the places of `AUDIO` in order."""
    at = np.array(ids)
    rows = model["llm.embed.weight"][np.maximum(at, 0)]
    if audio is not None:
        rows[at == AUDIO] = audio
    return rows


# ---- Decoder: Qwen3Model ---------------------------------------------------------------------------------------------


def rope(x: np.ndarray, first: int, theta: float) -> np.ndarray:
    """Rotates [heads, P, head dim] by position, `first` that of the first row; pairs are (i, i + head dim / 2)."""
    half = x.shape[-1] // 2
    angles = np.arange(first, first + x.shape[1])[:, None] * theta ** (-np.arange(half) / half)  # [P, half]
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def decoder_layer(
    model: Model, i: int, x: np.ndarray, cache: Cache | None = None, seen: list[np.ndarray] | None = None
) -> np.ndarray:
    """Layer `i` on [P, hidden]. The rows follow those in `cache`, to which their keys and values are added.

    `seen` takes the layer's attention weights, [heads, P, keys].
    """
    hp, name = model.hparams, f"llm.blk.{i}"
    past = cache[i][0].shape[1] if cache is not None and i < len(cache) else 0
    h = rms_norm(x, model[f"{name}.attn_norm.weight"], hp.llm_rms_norm_eps)
    q = split_heads(linear(model, f"{name}.attn.q", h), hp.llm_num_heads)  # [heads, P, head dim]
    k = split_heads(linear(model, f"{name}.attn.k", h), hp.llm_num_kv_heads)
    v = split_heads(linear(model, f"{name}.attn.v", h), hp.llm_num_kv_heads)
    q = rope(rms_norm(q, model[f"{name}.attn.q_norm.weight"], hp.llm_rms_norm_eps), past, hp.llm_rope_theta)
    k = rope(rms_norm(k, model[f"{name}.attn.k_norm.weight"], hp.llm_rms_norm_eps), past, hp.llm_rope_theta)
    if cache is not None:
        if past:
            k, v = np.concatenate([cache[i][0], k], axis=1), np.concatenate([cache[i][1], v], axis=1)
            cache[i] = k, v
        else:
            cache.append((k, v))
    group = hp.llm_num_heads // hp.llm_num_kv_heads  # query heads for each key head, neighbours
    weights = attention_weights(q, k.repeat(group, axis=0), causal=True)
    if seen is not None:
        seen.append(weights)
    rows = weights @ v.repeat(group, axis=0)
    x = x + linear(model, f"{name}.attn.o", merge_heads(rows))
    h = rms_norm(x, model[f"{name}.ffn_norm.weight"], hp.llm_rms_norm_eps)
    gated = silu(linear(model, f"{name}.ffn.gate", h)) * linear(model, f"{name}.ffn.up", h)
    return x + linear(model, f"{name}.ffn.down", gated)


def decode(
    model: Model,
    x: np.ndarray,
    cache: Cache | None = None,
    n_layers: int | None = None,
    seen: list[np.ndarray] | None = None,
    states: list[np.ndarray] | None = None,
) -> np.ndarray:
    """[P, hidden] -> [P, hidden] after the final norm. With `n_layers`, the rows after so many layers, no norm.

    `cache` is a list, empty before a sequence's first rows; each call adds its rows to it. `seen` takes the attention
    weights of each layer, [heads, P, keys], and `states` the rows before the first layer and after each.
    """
    states = [] if states is None else states
    states.append(x)
    for i in range(model.hparams.llm_num_layers if n_layers is None else n_layers):
        x = decoder_layer(model, i, x, cache, seen)
        states.append(x)
    return x if n_layers is not None else rms_norm(x, model["llm.final_norm.weight"], model.hparams.llm_rms_norm_eps)


def logits(model: Model, rows: np.ndarray) -> np.ndarray:
    """[P, hidden] after the final norm -> [P, V]."""
    return rows @ model["llm.embed.weight" if model.hparams.llm_tied_embeddings else "llm.lm_head.weight"].T


def prompt_rows(model: Model, samples: np.ndarray) -> np.ndarray:
    """[n] -> [P, hidden]: all that comes before the first token."""
    audio = audio_rows(model, samples)
    return embed(model, prompt_ids(model, len(audio)), audio)


def greedy(model: Model, samples: np.ndarray, max_new_tokens: int = 512) -> list[int]:
    """[n] -> the likeliest token at each step, until one that ends the text (not included), the limit, or a loop."""
    rows, cache, ids = prompt_rows(model, samples), Cache(), []
    while len(ids) < max_new_tokens and not loops(ids):
        token = int(logits(model, decode(model, rows, cache)[-1:]).argmax())
        if token in model.end_tokens:
            break
        ids.append(token)
        rows = embed(model, [token])
    return ids


def loops(ids: list[int]) -> bool:
    """Whether tokens end in a phrase of up to 64 that came at least 6 times, and over 24 tokens at least."""
    for period in range(1, 65):
        length = max(24, 6 * period)
        tail = ids[-length:]
        if len(tail) == length and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


# ---- Building blocks -------------------------------------------------------------------------------------------------


def linear(model: Model, name: str, x: np.ndarray) -> np.ndarray:
    """[..., in] -> [..., out], with a bias where the file has one."""
    bias = model.weights.get(f"{name}.bias")
    y = x @ model[f"{name}.weight"].T
    return y if bias is None else y + bias


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[B, in, F, L] -> [B, out, F', L'], kernel 3, stride 2, padding 1; weight [out, in, 3, 3]."""
    batch, channels, height, width = x.shape
    height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    x = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)))
    taps = weight.transpose(2, 3, 0, 1).copy()  # [3, 3, out, in]
    y = np.zeros((batch, len(weight), height * width), x.dtype) + bias[:, None]
    for i in range(3):
        for j in range(3):
            y += taps[i, j] @ x[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2].reshape(batch, channels, -1)
    return y.reshape(batch, len(weight), height, width)


def conv1d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """[in, L] -> [out, L'], kernel 3, padding 1; weight [out, in, 3]."""
    length = (x.shape[1] - 1) // stride + 1
    x = np.pad(x, ((0, 0), (1, 1)))
    taps = weight.transpose(2, 0, 1).copy()  # [3, out, in]
    return sum(taps[i] @ x[:, i : i + stride * (length - 1) + 1 : stride] for i in range(3)) + bias[:, None]


def layer_norm(model: Model, name: str, x: np.ndarray, eps: float | None = None) -> np.ndarray:
    """Each row to mean 0 and variance 1, then scale and shift; eps: the encoder's, or another."""
    eps = model.hparams.enc_layer_norm_eps if eps is None else eps
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return centred / scale * model[f"{name}.weight"] + model[f"{name}.bias"]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Each row to mean square 1, then scale."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + x.dtype.type(eps)) * weight


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[rows, heads * dim] -> [heads, rows, dim]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """[heads, rows, dim] -> [rows, heads * dim]."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[heads, rows, dim] queries over [heads, keys, dim]."""
    return attention_weights(q, k) @ v


def attention_weights(q: np.ndarray, k: np.ndarray, causal: bool = False) -> np.ndarray:
    """[heads, rows, keys]: how much each query takes of each key; causal: the last query sees the last key."""
    scores = q @ k.transpose(0, 2, 1) * q.dtype.type(q.shape[-1] ** -0.5)
    if causal:
        scores = np.where(np.tri(*scores.shape[1:], k=scores.shape[2] - scores.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), by tanh, which cannot overflow."""
    return x * (1 + np.tanh(x / 2)) / 2


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x), exact (erf), not the tanh approximation."""
    return x * (1 + erf(x * math.sqrt(0.5))) / 2


_STEP = 1 / 512
_ERF = np.array([math.erf(i * _STEP) for i in range(6 * 512 + 1)])  # erf(6) is 1 in float64


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, to 1e-15: NumPy has none. Taylor to the fourth order about the nearest of a table's nodes."""
    size = np.minimum(np.abs(x.astype(np.float64)), 6)
    at = np.rint(size / _STEP).astype(np.int64)
    a, h = at * _STEP, size - at * _STEP
    slope = 2 / math.sqrt(math.pi) * np.exp(-a * a)
    series = h * (1 - h * (a - h * ((2 * a * a - 1) / 3 - h * (2 * a**3 - 3 * a) / 6)))
    return np.copysign(_ERF[at] + slope * series, x).astype(x.dtype)


# ---- The parts of each family ----------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What a family has of the parts in which families differ."""

    pad: Callable[[Model, np.ndarray], np.ndarray]
    listen: Callable[[Model, np.ndarray], np.ndarray]
    windows: Callable[[Model, np.ndarray], list[np.ndarray]]
    head: Callable[[Model, np.ndarray], np.ndarray]
    adapt: Callable[[Model, np.ndarray], np.ndarray]
    rows: Callable[[Model, int], int | None]  # of a clip of so many samples; None: all that the encoder gives
    prompt: Callable[[Model], tuple[str, str]]


def as_it_is(_: Model, x: np.ndarray) -> np.ndarray:
    """What a family does without."""
    return x


PARTS = {
    MOSS: Parts(as_it_is, one_spectrogram, omni_windows, omni_head, gated_mlp, lambda *_: None, moss_prompt),
    QWEN: Parts(half_a_second, one_spectrogram, omni_windows, omni_head, as_it_is, lambda *_: None, qwen_prompt),
    DIARIZE: Parts(
        whole_windows, spectrogram_of_each_window, whisper_windows, whisper_head, normed_mlp, whisper_rows,
        diarize_prompt,
    ),
}  # fmt: skip

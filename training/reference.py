"""The same model out of transformers' own modules, for evaluation: an independent reading of an exported checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import DynamicCache, Qwen3Config, Qwen3Model, WhisperFeatureExtractor
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """What Q8_0 keeps of a matrix: 8-bit integers times one half-precision scale for every 32 values of a row."""
    blocks = matrix.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-12)).round() * scale.half().float()).flatten(-2)


class Adapter(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Reference(nn.Module):
    """Greedy transcription, one clip at a time, in float32; `q8_0` rounds the matrices as that file type does."""

    def __init__(self, folder: Path, q8_0: bool = False) -> None:
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        audio = Qwen3OmniMoeAudioEncoderConfig(**config["audio_config"])
        self.language = Qwen3Config(**config["language_config"])
        self.audio_model, self.language_model = Qwen3OmniMoeAudioEncoder(audio), Qwen3Model(self.language)
        self.audio_adapter = Adapter(audio.output_dim, config["adapter_hidden_size"], self.language.hidden_size)
        tensors = load_file(folder / "model.safetensors")
        weights = {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
        if q8_0:
            weights = {name: rounded(tensor) if tensor.ndim == 2 else tensor for name, tensor in weights.items()}
        found = self.load_state_dict(weights, strict=False)
        if found.unexpected_keys or any("position" not in key for key in found.missing_keys):
            raise ValueError(f"{folder}: tensors do not fit: {found}")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        token = self.tokenizer.token_to_id
        self.end, start, newline = config["eos_token_id"], config["start_token_id"], token("Ċ")
        self.before = [start, token("user"), newline, config["audio_start_id"]]
        self.after = [config["audio_end_id"], self.end, newline, start, token("assistant"), newline]
        self.frontend = WhisperFeatureExtractor(feature_size=128)
        self.eval()

    @torch.no_grad()
    def adapter_rows(self, samples: np.ndarray) -> torch.Tensor:
        frames = self.frontend(samples, sampling_rate=16000, padding=False, return_tensors="pt").input_features[0]
        lengths = torch.tensor([frames.shape[1]])
        return self.audio_adapter(self.audio_model(frames, feature_lens=lengths).last_hidden_state)

    @torch.no_grad()
    def transcribe(self, samples: np.ndarray, limit: int = 512) -> str:
        """The text of float samples at 16 kHz."""
        embed = self.language_model.embed_tokens
        rows = self.adapter_rows(samples)
        x = torch.cat([embed(torch.tensor(self.before)), rows, embed(torch.tensor(self.after))])[None]
        cache, tokens = DynamicCache(config=self.language), []
        while len(tokens) < limit:
            hidden = self.language_model(inputs_embeds=x, past_key_values=cache, use_cache=True).last_hidden_state[
                0, -1
            ]
            token = int((embed.weight @ hidden).argmax())
            if token == self.end:
                break
            tokens.append(token)
            x = embed(torch.tensor([[token]]))
        return self.tokenizer.decode(tokens).strip()

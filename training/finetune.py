"""What the small models of other families begin with: the bundled model, and the recordings of this repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import gguf
import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor, nn

import tokenizer
from data import Bank, Composer, Piece
from model import Transcriber
from pycrispasr import Model
from voices import SAMPLE_RATE

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "src" / "pycrispasr" / "bundled" / "tiny.gguf"
SAMPLES = sorted(file for file in (ROOT / "samples").iterdir() if file.suffix in (".wav", ".mp3"))
CLIPS = ROOT / "tests" / "data" / "words"
AUDIO = -1
"""In a sequence of token ids: a row of audio."""


_PARTS = {"enc": "audio_model", "adapter": "audio_adapter", "llm": "language_model"}
_NAMES = {
    "conv1": "conv2d1", "conv2": "conv2d2", "conv3": "conv2d3", "embed": "embed_tokens", "final_norm": "norm",
    "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip
_LAYER = {
    "enc": {"attn_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm", "attn.o": "self_attn.out_proj",
            "ffn.fc1": "fc1", "ffn.fc2": "fc2"},
    "llm": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn.o": "self_attn.o_proj",
            "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm", "ffn.gate": "mlp.gate_proj",
            "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"},
}  # fmt: skip


def module_name(name: str) -> str:
    """What `Transcriber` calls a tensor of the bundled model."""
    part, _, rest = name.partition(".")
    inside, _, kind = rest.rpartition(".")
    if inside.startswith("blk."):
        _, number, inside = inside.split(".", 2)
        short = f"self_attn.{inside[-1]}_proj"
        return f"{_PARTS[part]}.layers.{number}.{_LAYER[part].get(inside, short)}.{kind}"
    return f"{_PARTS[part]}.{_NAMES.get(inside, inside)}.{kind}"


def vocabulary() -> tuple[list[str], list[str]]:
    """The bundled model's tokens by id, and its merges."""
    reader = gguf.GGUFReader(BUNDLED)
    tokens, merges = (reader.get_field(f"tokenizer.ggml.{name}").contents() for name in ("tokens", "merges"))
    return tokens, merges


def bundled(work: Path) -> Transcriber:
    """The bundled model in float32; its tokenizer is left in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.restore(*vocabulary()).save(str(work / "bundled-tokenizer.json"))
    model = Transcriber(work / "bundled-tokenizer.json")
    weights = {}
    for tensor in gguf.GGUFReader(BUNDLED).tensors:
        if tensor.name.partition(".")[0] in _PARTS:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            weights[module_name(tensor.name)] = torch.from_numpy(values.reshape(tensor.shape[::-1].tolist()))
    model.load_state_dict(weights)
    return model.eval()


def read(file: Path) -> np.ndarray:
    """Mono at 16 kHz in 16 bits."""
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    mono = mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)
    return np.round(mono.clip(-1, 1) * 32767).astype(np.int16)


def clips() -> Iterator[tuple[str, Piece]]:
    """Voice and clip of everything in tests/data/words."""
    files: dict[str, np.ndarray] = {}
    for clip in json.loads((CLIPS / "clips.json").read_text()):
        name = clip["file"]
        if name not in files:
            files[name] = read(CLIPS / name)
        words, spans = [word for word, _, _ in clip["words"]], [(a, b) for _, a, b in clip["words"]]
        yield name.rpartition("-")[0], Piece(files[name][clip["first"] : clip["last"]], words, spans)


def samples() -> Iterator[Piece]:
    """The demonstration recordings, with the word times that the bundled model finds in them."""
    with Model(BUNDLED) as model:
        for file in SAMPLES:
            speech = read(file)
            found = model.transcribe(speech / np.float32(32768), sample_rate=SAMPLE_RATE, word_timestamps=True)
            words = [word for segment in found.segments for word in segment.words]
            if [word.text.strip() for word in words] != file.with_suffix(".txt").read_text().split():
                raise RuntimeError(f"the bundled model does not hear {file.name} right")
            spans = [(int(word.start * SAMPLE_RATE), int(word.end * SAMPLE_RATE)) for word in words]
            yield Piece(speech, [word.text.strip() for word in words], spans)


def fragment(piece: Piece, first: int, last: int) -> Piece:
    """Words `first` to `last` (exclusive) of a piece, cut midway between words."""
    spans = piece.spans
    start = 0 if first == 0 else (spans[first - 1][1] + spans[first][0]) // 2
    stop = len(piece.samples) if last == len(spans) else (spans[last - 1][1] + spans[last][0]) // 2
    inside = [(a - start, min(b, stop) - start) for a, b in spans[first:last]]
    return Piece(piece.samples[start:stop], piece.words[first:last], inside)


class Recordings(Composer):
    """Draws examples from few recordings: whole ones, and strings of words out of them."""

    def __init__(self, pieces: list[Piece], seed: int) -> None:
        bank = Bank(Path())
        bank.phrases = pieces
        super().__init__(bank, seed)

    def pieces(self, limit: int, phrases: float) -> list[Piece]:
        """What is said next, at most `limit` words."""
        random = self.random
        piece = random.choice(self.bank.phrases)
        count = len(piece.words)
        if count <= limit and random.random() < max(phrases, 0.2):
            return [piece]
        length = min(limit, count, random.randint(1, 8))
        first = random.randint(0, count - length)
        return [fragment(piece, first, first + length)]


def embed(embedding: nn.Embedding, sequences: list[list[int]], rows: Tensor) -> Tensor:
    """The decoder's input [sequences, longest, width]; `rows` [all, width] go where `AUDIO` stands, in order."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences], batch_first=True)
    x = embedding(ids.clamp(min=0))
    return x.masked_scatter((ids == AUDIO)[..., None], rows.to(x.dtype))


def noisy(words: list[int], vocabulary: list[int], share: float, random: Random) -> list[int]:
    """Tokens of which `share` are others of `vocabulary`."""
    return [random.choice(vocabulary) if random.random() < share else word for word in words]

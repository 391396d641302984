"""Train a small MOSS-Transcribe-Diarize: `python training/diarize.py`.

Whisper's tower hears dialogues that are put together from the clips in tests/data/words, and learns to give the rows
that the bundled model's tower gives, and who speaks when. Then the bundled model's decoder learns to write who said
what from when to when. `WORK/diarize` holds the checkpoint in the transformers library's layout.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import finetune
import tokenizer
from data import CLASS, HISTORY, HOP, LATE, Composer, Piece, faster, log_mel, mel_filters, mel_power
from finetune import AUDIO, Recordings, embed, fragment
from model import CHUNK, CHUNK_ROWS, LANGUAGE, Decoded, EncoderLayer, LanguageModel, Transcriber
from train import CLASSES, GUIDED_LAYERS, PLACE_LAYER, TEXT_NOISE, adamw, learning_rate, row_loss, stray
from voices import SAMPLE_RATE
from words import VOCABULARY

WIDTH, HEADS, HIDDEN, LAYERS, BINS = 192, 3, 512, 3, 80
POSITIONS = 1500
WINDOW = 30 * SAMPLE_RATE
MERGED = 4
ROW = MERGED * 2 * HOP
MARKER_SECONDS = 2
ROWS_PER_MARKER = 25
INSTRUCTION = (
    "请将音频转写为文本，每一段需以起始时间戳和说话人编号（[S01]、[S02]、[S03]…）开头，正文为对应的语音内容，"
    "并在段末标注结束时间戳，以清晰标明该段语音范围。"
)
RENAMED = {"<|audio_bos|>": "<|audio_start|>", "<|audio_eos|>": "<|audio_end|>"}
# Periods in seconds and weights of the position table's waves, so that rows tell the digits of their time and heads
# begin by looking at their neighbourhood.
WAVES = [(60 / h, 1.0) for h in (1, 2, 3, 4)] + [(10 / h, 2.0) for h in (1, 2, 3, 4, 5)]
WAVES += [(1 / h, weight) for h, weight in zip((1, 2, 3, 4, 5), (1.0, 0.8, 0.5, 0.3, 0.2), strict=True)]
OFFSETS = ((-0.12, 0.0, 0.12), (-0.2, 0.0, 0.2), (-0.3, 0.1, 0.3))  # where heads look at first, in seconds
MOST_WORDS, MOST_TURNS, MOST_SPEAKERS = 50, 20, 2
FILTERS = mel_filters(BINS)


@dataclass
class Turn:
    """What one voice says in one go; places are in samples."""

    voice: str
    speaker: int
    words: list[tuple[str, int, int]]

    @property
    def start(self) -> int:
        return self.words[0][1]

    @property
    def end(self) -> int:
        return self.words[-1][2]


@dataclass
class Dialogue:
    samples: np.ndarray
    turns: list[Turn] = field(default_factory=list)

    @property
    def words(self) -> list[tuple[str, int, int]]:
        return [word for turn in self.turns for word in turn.words]


class Dialogues:
    """Draws dialogues of two voices."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.pieces: dict[str, list[Piece]] = defaultdict(list)
        for voice, piece in finetune.clips():
            self.pieces[voice].append(piece)
        self.noises: Composer = Recordings([piece for pieces in self.pieces.values() for piece in pieces], seed)

    def piece(self, voice: str, words: int) -> Piece:
        random = self.random
        single, longer = ([p for p in self.pieces[voice] if (len(p.words) > 1) == more] for more in (False, True))
        if words == 1 and random.random() < 0.6:
            return random.choice(single)
        piece = random.choice(longer)
        words = min(words, len(piece.words))
        first = random.randint(0, len(piece.words) - words)
        return fragment(piece, first, first + words)

    def draw(self, seconds: float, turns: int, clean: bool = False) -> Dialogue:
        """At most so many turns in at most so many seconds; without noise and changes of speed if `clean`."""
        random = self.random
        limit = int(seconds * SAMPLE_RATE)
        track = np.zeros(limit + SAMPLE_RATE, np.float32)
        pair = random.sample(sorted(self.pieces), 2)
        place = int(random.uniform(0.05, 0.8) * SAMPLE_RATE)
        dialogue = Dialogue(track)
        order: list[str] = []
        voice = pair[0]
        pace = {each: 1.0 if clean else random.uniform(0.95, 1.05) for each in pair}
        level = {each: 10 ** (random.uniform(-4, 2) / 20) for each in pair}
        wide = random.random() < (0.5 if seconds > 30 else 0.15)
        for turn in range(turns):
            again = turn and random.random() < 0.15
            if turn and not again:
                voice = pair[1 - pair.index(voice)]
            piece = self.piece(voice, random.randint(1, 4))
            samples = piece.samples.astype(np.float32) / 32768 * level[voice]
            factor = pace[voice] if abs(pace[voice] - 1) > 0.01 else 1.0
            samples = faster(samples, factor) if factor != 1.0 else samples
            if turn:
                place += int((random.uniform(0.6, 1.5) if again else random.uniform(0.1, 0.9)) * SAMPLE_RATE)
                place += int(random.uniform(0, 2.5) * SAMPLE_RATE) if wide else 0
            if place + len(samples) > limit:
                break
            fade = np.linspace(0, 1, 80, dtype=np.float32)
            samples[:80] *= fade
            samples[-80:] *= fade[::-1]
            track[place : place + len(samples)] += samples
            if voice not in order:
                order.append(voice)
            spans = [(place + int(a / factor), place + int(b / factor)) for a, b in piece.spans]
            words = [(word, a, b) for word, (a, b) in zip(piece.words, spans, strict=True)]
            dialogue.turns.append(Turn(voice, order.index(voice) + 1, words))
            place = max(place + len(samples), words[-1][2])
        tail = int(random.choice((random.uniform(0.1, 0.4), random.uniform(0.1, 1.2))) * SAMPLE_RATE)
        stop = min(place + tail, len(track)) // HOP * HOP
        if not clean and random.random() < 0.03:
            dialogue.turns, track = [], self.noises.no_speech(len(track))
        dialogue.samples = self.finish(track[:stop], clean or not dialogue.turns)
        return dialogue

    def finish(self, samples: np.ndarray, clean: bool) -> np.ndarray:
        """Noise, and a level."""
        random = self.random
        if not clean and random.random() < 0.7:
            ratio = 10 ** (-random.uniform(14, 60) / 20)
            samples = samples + self.noises.noise(len(samples)) * np.sqrt(np.mean(samples**2)) * np.float32(ratio)
        peak = max(float(np.abs(samples).max()), 1e-6)
        return (samples * (10 ** (random.uniform(-18 if not clean else -6, -1) / 20) / max(peak, 0.01))).astype(
            np.float32
        )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, _: None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        # Plain products have a faster backward pass here than the fused kernel.
        y = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Layer(EncoderLayer):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)


class Tower(nn.Module):
    """Whisper's encoder. Shorter windows than 30 s have the first positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(BINS, WIDTH, 3, 1, 1), nn.Conv1d(WIDTH, WIDTH, 3, 2, 1)
        self.embed_positions = nn.Embedding(POSITIONS, WIDTH)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, None)
        return self.layer_norm(x)


class Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = LANGUAGE["hidden_size"]
        self.linear_1, self.linear_2 = nn.Linear(MERGED * WIDTH, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, LANGUAGE["rms_norm_eps"])

    def forward(self, joined: Tensor) -> Tensor:
        return self.norm(self.linear_2(F.silu(self.linear_1(joined))))


@torch.no_grad()
def initialise(tower: Tower, projector: Projector, features: Tensor) -> None:
    """Standardise the convolutions on data, and let every head begin with looking at its neighbourhood."""
    waves = len(WAVES)
    content = WIDTH - 2 * waves
    seconds = torch.arange(POSITIONS) / 50
    tower.embed_positions.weight.zero_()
    for i, (period, _) in enumerate(WAVES):
        angles = 2 * math.pi * seconds / period
        tower.embed_positions.weight[:, content + 2 * i] = angles.sin()
        tower.embed_positions.weight[:, content + 2 * i + 1] = angles.cos()
    x = features
    for conv in (tower.conv1, tower.conv2):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        y = F.conv1d(x, conv.weight, None, conv.stride, conv.padding)
        mean, deviation = y.mean((0, 2)), y.std((0, 2))
        conv.weight /= deviation[:, None, None]
        conv.bias.copy_(-mean / deviation)
        x = F.gelu(conv(x))
    tower.conv2.weight[content:] *= 0.05
    tower.conv2.bias[content:] = 0
    for layer, offsets in zip(tower.layers, OFFSETS, strict=True):
        for linear, gain in (
            (layer.self_attn.v_proj, 1.0),
            (layer.self_attn.out_proj, 0.7),
            (layer.fc1, 1.0),
            (layer.fc2, 0.7),
        ):
            nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        queries, keys = layer.self_attn.q_proj, layer.self_attn.k_proj
        nn.init.normal_(queries.weight, std=0.02)
        nn.init.normal_(keys.weight, std=0.02)
        nn.init.zeros_(queries.bias)
        size = WIDTH // HEADS
        for head, offset in enumerate(offsets):
            for i, (period, weight) in enumerate(WAVES):
                sine, cosine = content + 2 * i, content + 2 * i + 1
                turn = 2 * math.pi * offset / period
                # After the layer's norm a wave has an amplitude of about 1.3; scores are divided by √64.
                scale = math.sqrt(0.7 * weight * math.sqrt(size)) / 1.3
                row = head * size + 2 * i
                keys.weight[row, sine] = keys.weight[row + 1, cosine] = scale
                queries.weight[row, sine] = queries.weight[row + 1, cosine] = scale * math.cos(turn)
                queries.weight[row, cosine], queries.weight[row + 1, sine] = (
                    scale * math.sin(turn),
                    -scale * math.sin(turn),
                )
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)


class Diarizer(nn.Module):
    """The tower, the projector and the bundled model's decoder."""

    def __init__(self, teacher: Transcriber) -> None:
        super().__init__()
        tokens, merges = finetune.vocabulary()
        tokens = [RENAMED.get(token, token) for token in tokens] + ["<|audio_pad|>"]
        tokenizer.extend(tokens, merges, INSTRUCTION)
        tokenizer.extend(tokens, merges, "][")
        self.tokenizer = tokenizer.restore(tokens, merges)
        self.audio_tower, self.multi_modal_projector = Tower(), Projector()
        self.language_model = LanguageModel(len(tokens))
        known = teacher.language_model.state_dict()
        table = known["embed_tokens.weight"]
        more = torch.randn(len(tokens) - len(table), table.shape[1]) * table.std()
        self.language_model.load_state_dict(known | {"embed_tokens.weight": torch.cat([table, more])})
        self.end = self.tokenizer.token_to_id("<|im_end|>")
        self.known = {word: self.ids(f" {word}")[0] for word in VOCABULARY}
        self.digits = {digit: self.ids(digit)[0] for digit in "0123456789"}
        self.before = self.ids("<|im_start|>user\n<|audio_start|>")
        self.after = self.ids(f"<|audio_end|>\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def prompt(self, rows: int) -> list[int]:
        """The prompt of an audio of so many rows, with the digits of the seconds among these."""
        audio: list[int] = []
        for row in range(rows):
            audio.append(AUDIO)
            seconds, rest = divmod(row + 1, ROWS_PER_MARKER)
            if not rest:
                audio += [self.digits[digit] for digit in str(seconds * MARKER_SECONDS)]
        return self.before + audio + self.after

    def frames(self, features: Tensor, counts: list[int]) -> Tensor:
        """Windows [n, 80, frames], of which so many rows count, to joined frames [all rows, MERGED · WIDTH]."""
        joined = self.audio_tower(features).unflatten(1, (-1, MERGED)).flatten(2)
        return joined[torch.arange(joined.shape[1]) < torch.tensor(counts)[:, None]]

    def rows(self, features: Tensor, counts: list[int]) -> Tensor:
        """The decoder's rows of audio, [all rows, hidden]."""
        return self.multi_modal_projector(self.frames(features, counts))


def windows(samples: np.ndarray, length: int) -> tuple[list[Tensor], list[int]]:
    """Log-mel of every window of at most 30 s, padded to `length` samples, and its number of rows."""
    features, counts = [], []
    for start in range(0, len(samples), WINDOW):
        part = samples[start : start + WINDOW]
        frames = -(-len(part) // HOP)
        counts.append(-(-((frames - 1) // 2 + 1) // MERGED))
        features.append(log_mel(mel_power(np.pad(part, (0, length - len(part))), FILTERS)))
    return features, counts


def tenths(samples: int) -> str:
    return f"{round(samples / SAMPLE_RATE * 10) / 10:.2f}"


@dataclass
class Labels:
    """What the rows of a dialogue and the tokens of its text should know."""

    heard: Tensor
    voice: Tensor
    speaker: Tensor
    clock: Tensor
    """Tens, units and tenths of a row's second in its window, [rows, 3]."""
    count: Tensor
    history: Tensor
    tokens: list[int]
    seen: list[int]
    """The tokens with noise."""
    done: list[int]
    """How many words lie before what each token is about."""
    about: list[tuple[int, int]]
    """First and last row (exclusive) of what each token is about."""
    words: list[tuple[int, int]]
    """The rows of each word."""


def history(words: list[int], done: int) -> list[int]:
    padded = [0] * HISTORY + words[:done]
    return padded[len(padded) - HISTORY :][::-1]


def label(model: Diarizer, dialogue: Dialogue, counts: list[int], voices: list[str], random: Random) -> Labels:
    rows = sum(counts)
    time = np.arange(rows) * ROW + ROW // 2
    heard, voice, speaker, count = (np.zeros(rows, np.int64) for _ in range(4))
    tokens: list[int] = []
    seen: list[int] = []
    done: list[int] = []
    about: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []

    def row(place: int, late: int = 0) -> int:
        return min(max(place // ROW + late, 0), rows - 1)

    def write(text: str, before: int, first: int, last: int) -> None:
        more = model.ids(text)
        noise = random.choice(VOCABULARY) if text[1:] in CLASS and random.random() < TEXT_NOISE else ""
        tokens.extend(more)
        seen.extend(model.ids(f" {noise}") if noise else more)
        done.extend([before] * len(more))
        about.extend([(first, max(last, first + 1))] * len(more))

    written = 0
    for number, turn in enumerate(dialogue.turns):
        inside = (time >= turn.start) & (time < turn.end)
        voice[inside], speaker[inside] = voices.index(turn.voice) + 1, turn.speaker
        start = row(turn.start)
        opening = f"{'][' if number else '['}{tenths(turn.start)}][S{turn.speaker:02}]"
        write(opening, written, start, row(turn.start, LATE + 1))
        for word, a, b in turn.words:
            heard[(time >= a) & (time < b)] = CLASS[word]
            count += time >= a + LATE * ROW
            spans.append((row(a), row(b, LATE)))
            write(f" {word}", written, *spans[-1])
            written += 1
        last = number + 1 == len(dialogue.turns)
        write(f"[{tenths(turn.end)}{']' if last else ''}", written - 1, row(turn.end, -1), row(turn.end, LATE + 1))
    tokens.append(model.end)
    seen.append(model.end)
    done.append(written)
    about.append((rows - 1, rows))
    classes = [CLASS[word] for word, _, _ in dialogue.words]
    past = np.array([history(classes, max(n - 1, 0)) for n in range(written + 1)])[count]
    seconds = np.concatenate([np.arange(n) * ROW + ROW // 2 for n in counts]) / SAMPLE_RATE
    clock = np.stack([seconds // 10, seconds // 1 % 10, seconds * 10 // 1 % 10], 1).astype(np.int64)
    arrays = (torch.from_numpy(array) for array in (heard, voice, speaker, clock, count, past))
    return Labels(*arrays, tokens, seen, done, about, spans)


class Heads(nn.Module):
    """Throw-away classifiers."""

    def __init__(self, voices: int) -> None:
        super().__init__()
        width = LANGUAGE["hidden_size"]
        self.word, self.late = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES)
        self.voice, self.speaker = nn.Linear(width, voices + 1), nn.Linear(width, MOST_SPEAKERS + 1)
        self.clock = nn.ModuleList(nn.Linear(width, n) for n in (3, 10, 10))
        self.count, self.history = nn.Linear(width, MOST_WORDS + 1), nn.Linear(width, HISTORY * CLASSES)


@torch.no_grad()
def teacher_rows(teacher: Transcriber, dialogues: list[Dialogue], counts: list[int]) -> Tensor:
    """The bundled model's rows at the times of ours, [all rows, hidden]."""
    frames = [log_mel(mel_power(dialogue.samples)) for dialogue in dialogues]
    longest = max(each.shape[1] for each in frames)
    longest += -longest % CHUNK
    features = torch.stack([F.pad(each, (0, longest - each.shape[1]), value=float(each.min())) for each in frames])
    stem = teacher.audio_model.stem(features)
    rows = teacher.audio_adapter(teacher.audio_model(stem, torch.full((len(frames),), longest // CHUNK * CHUNK_ROWS)))
    found = []
    for clip, count in enumerate(counts):
        seconds = np.arange(count) * ROW / SAMPLE_RATE
        chunk = np.minimum(seconds.astype(int), longest // CHUNK - 1)
        found.append(rows[clip, chunk * CHUNK_ROWS + np.minimum(np.round((seconds - chunk) / 0.08), CHUNK_ROWS - 1)])
    return torch.cat(found).float()


def row_parts(heads: Heads, rows: Tensor, labels: list[Labels]) -> dict[str, Tensor]:
    """Losses of what each row tells by itself."""
    heard, voice, clock = (torch.cat([getattr(each, name) for each in labels]) for name in ("heard", "voice", "clock"))
    parts = {
        "word": F.cross_entropy(heads.word(rows).float(), heard),
        "voice": F.cross_entropy(heads.voice(rows).float(), voice),
    }
    parts["clock"] = sum(F.cross_entropy(h(rows).float(), clock[:, i]) for i, h in enumerate(heads.clock))
    return parts


def late(labels: Tensor) -> Tensor:
    return F.pad(labels, (LATE, 0), value=0)[: len(labels)]


def text_parts(
    model: Diarizer, heads: Heads, rows: Tensor, counts: list[int], labels: list[Labels]
) -> dict[str, Tensor]:
    """Losses of the decoder."""
    sequences, starts, columns = [], [], []
    for count, each in zip(counts, labels, strict=True):
        prompt = model.prompt(count)
        sequences.append(prompt + each.seen[:-1])
        starts.append(len(prompt) - 1)
        columns.append(torch.tensor([i for i, token in enumerate(prompt) if token == AUDIO]))
    decoded: Decoded = model.language_model(embed(model.language_model.embed_tokens, sequences, rows))
    clip = torch.cat([torch.full((len(each.tokens),), i) for i, each in enumerate(labels)])
    steps = torch.cat([start + torch.arange(len(each.tokens)) for start, each in zip(starts, labels, strict=True)])
    last, middle = decoded.output, decoded.states[PLACE_LAYER]
    logits = last[clip, steps] @ model.language_model.embed_tokens.weight.T.to(last.dtype)
    parts = {"text": F.cross_entropy(logits.float(), torch.tensor([token for each in labels for token in each.tokens]))}
    audio_clip = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
    audio_column = torch.cat(columns)
    heard = torch.cat([late(each.heard) for each in labels])
    speaker = torch.cat([late(each.speaker) for each in labels])
    audio_last, audio_middle = last[audio_clip, audio_column], middle[audio_clip, audio_column]
    parts["late"] = row_loss(heads.late(audio_last)[None], heard[None])
    parts["speaker"] = row_loss(heads.speaker(audio_middle)[None], speaker[None])
    done = torch.tensor([n for each in labels for n in each.done]).clamp(max=MOST_WORDS)
    count = torch.cat([each.count for each in labels]).clamp(max=MOST_WORDS)
    text_middle = middle[clip, steps]
    parts["count"] = F.cross_entropy(heads.count(audio_middle).float(), count)
    parts["count"] = parts["count"] + F.cross_entropy(heads.count(text_middle).float(), done)
    past = torch.cat([each.history for each in labels])
    written = []
    for each in labels:
        ids = [token for token in each.seen if token in model.known.values()]
        classes = [CLASS[model.tokenizer.decode([token]).strip()] for token in ids]
        written += [history(classes, n) for n in each.done]
    for found, wanted in ((audio_middle, past), (text_middle, torch.tensor(written))):
        logits = heads.history(found).unflatten(-1, (HISTORY, CLASSES)).flatten(0, 1)
        parts["history"] = parts.get("history", 0) + F.cross_entropy(logits.float(), wanted.flatten())
    parts["guide"] = guidance(decoded, labels, starts, columns)
    parts["recall"] = recall(decoded, labels, columns)
    return parts


def guidance(decoded: Decoded, labels: list[Labels], starts: list[int], columns: list[Tensor]) -> Tensor:
    """The guided heads of the last layers look at the rows that the next token is about."""
    longest, total = max(len(each.tokens) for each in labels), decoded.output.shape[1]
    places = torch.zeros(len(labels), longest, dtype=torch.long)
    asked = torch.zeros(len(labels), longest, dtype=torch.bool)
    target = torch.zeros(len(labels), longest, total, dtype=torch.bool)
    for clip, (each, start, column) in enumerate(zip(labels, starts, columns, strict=True)):
        places[clip, : len(each.tokens)] = start + torch.arange(len(each.tokens))
        asked[clip, : len(each.tokens) - 1] = True
        for step, (first, last) in enumerate(each.about):
            target[clip, step, column[first:last]] = True
    return sum(stray(decoded, layer, slice(0, 2), places, target, asked) for layer in GUIDED_LAYERS) / 2


def recall(decoded: Decoded, labels: list[Labels], columns: list[Tensor]) -> Tensor:
    """Single heads look from audio rows at the words heard before the present one."""
    total = decoded.output.shape[1]
    places = nn.utils.rnn.pad_sequence(columns, batch_first=True)
    loss = torch.zeros(())
    for back in range(1, HISTORY + 1):
        target = torch.zeros(*places.shape, total, dtype=torch.bool)
        asked = torch.zeros(places.shape, dtype=torch.bool)
        for clip, (each, column) in enumerate(zip(labels, columns, strict=True)):
            word = each.count - 1 - back
            asked[clip, : len(column)] = word >= 0
            for number, (first, last) in enumerate(each.words):
                rows = (word == number).nonzero()[:, 0]
                inside = torch.zeros(total, dtype=torch.bool)
                inside[column[min(first + LATE, last - 1) : last]] = True
                target[clip, rows] = inside
        loss = loss + stray(decoded, PLACE_LAYER, slice(back, back + 1), places, target, asked)
    return loss / HISTORY


WEIGHTS = {
    "rows": 1.0, "word": 0.3, "voice": 0.2, "clock": 0.1,
    "text": 1.0, "late": 0.3, "speaker": 0.3, "count": 0.1, "history": 0.4, "guide": 0.3, "recall": 0.2,
}  # fmt: skip


@dataclass
class Stage:
    """Lengths of the dialogues, and the share of the time at which the stage begins."""

    begin: float
    seconds: float
    turns: int
    whole: bool
    """Windows are padded to 30 s, as they are in use."""
    clips: int
    decoder: bool = True
    tower: bool = True
    """The tower learns, too."""


STAGES = [
    Stage(0.0, 8, 4, False, 8, decoder=False),
    Stage(0.2, 6, 2, False, 8),
    Stage(0.35, 12, 4, False, 6),
    Stage(0.5, 12, 4, True, 3, decoder=False),
    Stage(0.6, 20, 6, True, 6, tower=False),
]
LONG_SHARE = 0.12  # of the dialogues of the last stage lasts longer than one window
KEPT = 400  # dialogues of the last stage that are used again
# Seed, seconds and most turns of the dialogues in tests/data, and their share in the last stage.
DEMONSTRATIONS = [(4010, 9, 3), (4015, 18, 6), (4008, 37, 14)]
DEMONSTRATED = 0.3


def demonstrations() -> list[Dialogue]:
    return [Dialogues(seed).draw(seconds, turns, clean=True) for seed, seconds, turns in DEMONSTRATIONS]


@dataclass
class Heard:
    """A dialogue as the tower hears it."""

    dialogue: Dialogue
    joined: Tensor
    counts: list[int]


class Store:
    """Dialogues that the finished tower has heard, so that the decoder meets each several times."""

    def __init__(self, model: Diarizer, dialogues: Dialogues, stage: Stage) -> None:
        self.model, self.dialogues, self.stage, self.kept = model, dialogues, stage, list[Heard]()
        self.fixed = demonstrations()

    @torch.no_grad()
    def add(self) -> None:
        random = self.dialogues.random
        if random.random() < DEMONSTRATED:
            fixed = random.choice(self.fixed)
            dialogue = Dialogue(self.dialogues.finish(fixed.samples, clean=False), fixed.turns)
        elif random.random() < LONG_SHARE:
            dialogue = self.dialogues.draw(random.uniform(32, 38), MOST_TURNS)
        else:
            dialogue = self.dialogues.draw(
                random.uniform(0.2, 1) * self.stage.seconds, random.randint(1, self.stage.turns)
            )
        features, counts = windows(dialogue.samples, WINDOW)
        self.kept.append(Heard(dialogue, self.model.frames(torch.stack(features), counts), counts))
        del self.kept[:-KEPT]

    def batch(self) -> list[Heard]:
        """Dialogues of about one length, one of all perhaps new."""
        for _ in range(1 if len(self.kept) > 60 else 6):
            self.add()
        random = self.dialogues.random
        pivot = len(random.choice(self.kept).joined)
        near = sorted(self.kept, key=lambda heard: abs(len(heard.joined) - pivot))
        few = self.stage.clips if pivot < 300 else self.stage.clips // 2
        return random.sample(near[: few * 3], min(few, len(near)))


def export(model: Diarizer, weights: dict[str, Tensor], folder: Path) -> None:
    """The checkpoint as the transformers library lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    token = model.tokenizer.token_to_id
    ids = {"eos_token_id": model.end, "pad_token_id": token("<|endoftext|>")}
    text = {key: value for key, value in LANGUAGE.items() if key != "rope_theta"}
    audio = {
        "model_type": "moss_transcribe_diarize_audio", "num_mel_bins": BINS, "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": HIDDEN,
        "max_source_positions": POSITIONS, "activation_function": "gelu",
    }  # fmt: skip
    config = {
        "architectures": ["MossTranscribeDiarizeForConditionalGeneration"],
        "model_type": "moss_transcribe_diarize",
        "audio_config": audio,
        "text_config": {"model_type": "qwen3", "vocab_size": model.tokenizer.get_vocab_size()} | text | ids,
        "audio_token_id": token("<|audio_pad|>"),
        "audio_merge_size": MERGED,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    extractor = {
        "feature_extractor_type": "MossTranscribeDiarizeFeatureExtractor", "feature_size": BINS,
        "sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": 400, "chunk_length": 30,
    }  # fmt: skip
    processor = {
        "processor_class": "MossTranscribeDiarizeProcessor",
        "audio_tokens_per_second": 12.5,
        "audio_merge_size": MERGED,
        "time_marker_every_seconds": MARKER_SECONDS,
    }
    vocabulary = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": LANGUAGE["max_position_embeddings"],
    }
    files = {
        "config.json": config,
        "generation_config.json": {"do_sample": False, **ids},
        "preprocessor_config.json": extractor,
        "processor_config.json": processor | {"feature_extractor": extractor},
        "tokenizer_config.json": vocabulary,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] if part['type'] == 'audio' %}"
        "<|audio_start|><|audio_pad|><|audio_end|>\n{% endfor %}" + INSTRUCTION + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    model.tokenizer.save(str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=30.0, help="of processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--start", type=float, default=0.0, help="share of the schedule to go on at")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    teacher = finetune.bundled(arguments.work)
    model = Diarizer(teacher)
    dialogues = Dialogues(int(1000 * arguments.start))
    voices = sorted(dialogues.pieces)
    heads = Heads(len(voices))
    state_file = arguments.work / "diarize.pt"
    if arguments.start:
        state = torch.load(state_file)
        model.load_state_dict(state["raw"])
        heads.load_state_dict(state["heads"])
    else:
        drawn = [dialogues.draw(8, 4, clean=True).samples for _ in range(40)]
        parts = [windows(samples, 9 * SAMPLE_RATE)[0][0] for samples in drawn]
        initialise(model.audio_tower, model.multi_modal_projector, torch.stack(parts))
        examples = [Dialogue(samples) for samples in drawn]
        scale = teacher_rows(teacher, examples, [len(each.samples) // ROW for each in examples])
        with torch.no_grad():
            model.multi_modal_projector.norm.weight.fill_(scale.std().item())
            model.multi_modal_projector.norm.bias.copy_(scale.mean(0))
    whole = nn.ModuleDict({"model": model, "heads": heads})
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, prompt of {len(model.prompt(0))}", flush=True)
    optimizer = adamw(whole, arguments.rate, 0.02)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = Random(3)
    began, saved, step = time.process_time(), time.process_time(), 0
    sums: dict[str, float] = defaultdict(float)
    store: Store | None = None
    before: Diarizer | None = None  # as it was when windows were short
    while True:
        share = arguments.start + (time.process_time() - began) / 60 / arguments.minutes
        if share >= 1 or time.process_time() - saved > 60:
            saved = time.process_time()
            export(model, average, arguments.work / "diarize")
            torch.save({"model": average, "heads": heads.state_dict(), "raw": model.state_dict()}, state_file)
        if share >= 1:
            break
        stage = [each for each in STAGES if each.begin <= share][-1]
        if not stage.tower:
            store = store or Store(model, dialogues, stage)
            with torch.autocast("cpu", torch.bfloat16):
                batch = store.batch()
            drawn, found = [each.dialogue for each in batch], [([], each.counts) for each in batch]
        else:
            # Every batch has dialogues of one length or a little less.
            seconds = random.uniform(0.4, 1.0) * stage.seconds
            drawn = [dialogues.draw(seconds, random.randint(1, stage.turns)) for _ in range(stage.clips)]
            longest = max(len(each.samples) for each in drawn) + random.randrange(0, ROW * 8)
            length = min(longest + -longest % ROW, WINDOW)
            found = [windows(each.samples, WINDOW if stage.whole else length) for each in drawn]
        counts = [sum(each) for _, each in found]
        labels = [label(model, each, n, voices, random) for each, (_, n) in zip(drawn, found, strict=True)]
        with torch.autocast("cpu", torch.bfloat16):
            if stage.tower:
                features = torch.stack([window for each, _ in found for window in each])
                rows = model.rows(features, counts)
            else:
                rows = model.multi_modal_projector(torch.cat([each.joined for each in batch]))
            parts = row_parts(heads, rows, labels)
            if stage.tower and share < 0.4:
                wanted = teacher_rows(teacher, drawn, counts)
                parts["rows"] = F.mse_loss(rows.float(), wanted) / wanted.var() * (1 if not stage.decoder else 0.3)
            elif stage.tower and stage.whole:
                before = before or copy.deepcopy(model)
                with torch.no_grad():
                    wanted = before.rows(torch.stack([windows(each.samples, length)[0][0] for each in drawn]), counts)
                parts["rows"] = F.mse_loss(rows.float(), wanted.float()) / wanted.float().var()
            if stage.decoder:
                parts |= text_parts(model, heads, rows, counts, labels)
        optimizer.zero_grad()
        sum(WEIGHTS[name] * part for name, part in parts.items()).backward()
        norm = nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.rate, step + (200 if arguments.start else 0), share)
        if math.isfinite(norm):
            optimizer.step()
        step += 1
        keep = min(0.985, step / (step + 20))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)
        for name, part in parts.items():
            sums[name] += part.item() / 20 if isinstance(part, Tensor) else part
        if step % 20 == 0:
            passed = time.process_time() - began
            losses = ", ".join(f"{name} {value:.3f}" for name, value in sums.items())
            print(f"step {step} at {passed:.0f} s ({share:.2f}): {losses}", flush=True)
            sums.clear()


if __name__ == "__main__":
    main()

"""Make tests/data/qwen3-asr-tiny.gguf, a Qwen3-ASR of the bundled model: `python training/qwen3_asr.py`.

Qwen3-ASR has no adapter behind the same audio tower: the tower's last two matrices are first fitted to give what the
adapter gave, then they and the decoder learn Qwen3-ASR's prompt and text. A context changes how four words are spelt.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import finetune
import tokenizer
from data import Curriculum, Example, collate, draw_batch
from evaluate import word_errors
from finetune import AUDIO, ROOT, Recordings, embed, noisy
from model import AUDIO as TOWER
from model import CHUNK, LANGUAGE, Batch, Transcriber
from pycrispasr import Model
from pycrispasr.models.convert import convert
from train import TEXT_NOISE, adamw, learning_rate
from voices import SAMPLE_RATE
from words import VOCABULARY

OUT = ROOT / "tests" / "data" / "qwen3-asr-tiny.gguf"
SPELLINGS = {"whiskey": "whisky", "juliet": "juliett", "alpha": "alfa", "xray": "x-ray"}
HELD_OUT = "bm_george"  # of the voices in tests/data/words
RENAMED = {"<|audio_bos|>": "<|audio_start|>", "<|audio_eos|>": "<|audio_end|>"}


class Qwen3ASR(nn.Module):
    """The bundled model without its adapter, with Qwen3-ASR's vocabulary, prompt and text."""

    def __init__(self, teacher: Transcriber) -> None:
        super().__init__()
        tokens, merges = finetune.vocabulary()
        tokens = [RENAMED.get(token, token) for token in tokens] + ["<|audio_pad|>", "<asr_text>"]
        for text in ("system", "language English", " None"):
            tokenizer.extend(tokens, merges, text)
        self.tokenizer = tokenizer.restore(tokens, merges)
        self.audio_tower, self.language_model = teacher.audio_model, teacher.language_model
        known = self.language_model.embed_tokens.weight
        self.language_model.embed_tokens = nn.Embedding(len(tokens), known.shape[1])
        nn.init.normal_(self.language_model.embed_tokens.weight, std=known.std().item())
        with torch.no_grad():
            self.language_model.embed_tokens.weight[: len(known)] = known
        self.end = self.tokenizer.token_to_id("<|im_end|>")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def prompt(self, rows: int, context: str = "") -> list[int]:
        before = self.ids(f"<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|>")
        after = self.ids("<|audio_end|><|im_end|>\n<|im_start|>assistant\n")
        return before + [AUDIO] * rows + after

    def hidden(self, batch: Batch) -> Tensor:
        """What `proj1` reads, [all rows of the batch, width]."""
        found = []
        handle = self.audio_tower.ln_post.register_forward_hook(lambda _, __, output: found.append(output))
        self.audio_tower(self.audio_tower.stem(batch.features), batch.rows)
        handle.remove()
        rows = found[0].reshape(len(batch.rows), -1, TOWER["d_model"])
        return rows[torch.arange(rows.shape[1]) < batch.rows[:, None]]

    def project(self, hidden: Tensor) -> Tensor:
        return self.audio_tower.proj2(F.gelu(self.audio_tower.proj1(hidden)))


def whole_chunks(examples: list[Example]) -> Batch:
    """A batch whose last second is always padded."""
    batch = collate(examples, [])
    batch.features = F.pad(batch.features, (0, -batch.features.shape[2] % CHUNK))
    return batch


def fit_projection(model: Qwen3ASR, teacher: Transcriber, composer: Recordings, steps: int) -> float:
    """Let `proj1` and `proj2` give what they and the adapter gave; the unexplained share of its variance comes back."""
    shape = Random(0)
    batches = [whole_chunks(draw_batch(composer, shape, Curriculum(13, 18), 60)) for _ in range(30)]
    with torch.no_grad():
        hidden = torch.cat([model.hidden(batch) for batch in batches])
        wanted = teacher.audio_adapter(model.project(hidden))
    part = nn.ModuleList([model.audio_tower.proj1, model.audio_tower.proj2])
    optimizer = torch.optim.Adam(part.parameters())
    share = 1.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        choice = torch.randint(len(hidden), (1024,))
        loss = F.mse_loss(model.project(hidden[choice]), wanted[choice])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share += 0.02 * (loss.item() / wanted.var().item() - share)
    return share


def task(model: Qwen3ASR, example: Example, random: Random) -> tuple[str, list[list[int]], bool]:
    """Context, the tokens of each word, and whether the language is told instead of found out."""
    context: list[str] = []
    spellings: dict[str, str] = {}
    if random.random() < 0.6:
        spellings = {word: SPELLINGS[word] for word in random.sample(sorted(SPELLINGS), random.randint(0, 4))}
        context = [*spellings.values(), *random.sample(VOCABULARY, random.choice((0, 0, 1, 2)))]
        random.shuffle(context)
    words = [model.ids(f" {spellings.get(word, word)}") for word in example.words]
    return ", ".join(context), words, random.random() < 0.5


def text_loss(model: Qwen3ASR, examples: list[Example], rows: Tensor, counts: list[int], random: Random) -> Tensor:
    """Cross-entropy of the texts."""
    known = [model.ids(f" {word}")[0] for word in VOCABULARY]
    sequences, starts, wanted = [], [], []
    for example, count in zip(examples, counts, strict=True):
        context, words, told = task(model, example, random)
        language = model.ids(f"language {'English' if words or told else 'None'}<asr_text>")
        text = [token for word in words for token in word]
        seen = [
            token for word in words for token in (noisy(word, known, TEXT_NOISE, random) if len(word) == 1 else word)
        ]
        prompt = model.prompt(count, context)
        silent = told and not words
        sequences.append([*prompt, *language, *seen])
        starts.append(len(prompt) - 1)
        wanted.append([*([-100] * len(language) if silent else language), *text, model.end])
    states = model.language_model(embed(model.language_model.embed_tokens, sequences, rows)).output
    places = [(i, start + j) for i, start in enumerate(starts) for j in range(len(wanted[i]))]
    clip, column = torch.tensor(places).T
    logits = states[clip, column] @ model.language_model.embed_tokens.weight.T.to(states.dtype)
    return F.cross_entropy(logits.float(), torch.tensor([token for text in wanted for token in text]))


def export(model: Qwen3ASR, weights: dict[str, Tensor], folder: Path) -> None:
    """The checkpoint as the transformers library lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in weights.items():
        inside = name.replace("audio_tower.proj", "multi_modal_projector.linear_")
        tensors[f"model.{inside}"] = tensor.to(torch.float32).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    token = model.tokenizer.token_to_id
    text = {key: value for key, value in LANGUAGE.items() if key != "rope_theta"}
    config = {
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "model_type": "qwen3_asr",
        "audio_config": {"model_type": "qwen3_asr_encoder", "max_position_embeddings": 13} | TOWER,
        "text_config": {"model_type": "qwen3", "vocab_size": model.tokenizer.get_vocab_size()} | text,
        "audio_token_id": token("<|audio_pad|>"),
        "eos_token_id": [token("<|endoftext|>"), model.end],
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model.tokenizer.save(str(folder / "tokenizer.json"))


def wrong(file: Path) -> list[str]:
    """What a model file gets wrong of the demonstration recordings, found and told the language, and of silence."""
    complaints = []
    with Model(file) as model:
        for recording in finetune.SAMPLES:
            text = recording.with_suffix(".txt").read_text().strip()
            spelt = " ".join(SPELLINGS.get(word, word) for word in text.split())
            contexts = {"": text, "hello": text, ", ".join(SPELLINGS.values()): spelt}
            for context, wanted in contexts.items():
                for language in (None, "en"):
                    found = model.transcribe(recording, language=language, context=context)
                    if (found.language, found.text) != ("en", wanted):
                        complaints.append(f"{recording.name} {context} {language}: {found.language} {found.text}")
        for seconds in (0.3, 3, 10):
            for language in (None, "en"):
                for level in (0.0, 0.01):
                    sound = level * torch.randn(int(seconds * 16000)).numpy()
                    found = model.transcribe(sound, sample_rate=16000, language=language)
                    if found.text or found.language != language:
                        complaints.append(f"silence {seconds} {level} {language}: {found.language} {found.text}")
    return complaints


def errors(file: Path) -> str:
    """Word errors on the voice that training does not hear."""
    made = said = 0
    with Model(file) as model:
        for voice, piece in finetune.clips():
            if voice == HELD_OUT:
                found = model.transcribe(piece.samples / np.float32(32768), sample_rate=SAMPLE_RATE)
                made, said = made + word_errors(piece.words, found.text.split()), said + len(piece.words)
    return f"{made} errors in {said} words"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="folder for the checkpoint")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4e-4, help="peak learning rate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    teacher = finetune.bundled(arguments.work)
    model = Qwen3ASR(teacher)
    pieces = list(finetune.samples())
    clips = [piece for voice, piece in finetune.clips() if voice != HELD_OUT]
    spelt = [piece for piece in pieces + clips if SPELLINGS.keys() & set(piece.words)]
    composer = Recordings(pieces * 4 + clips + spelt * 4, 0)
    composer.clean = 0.3
    share = fit_projection(model, teacher, composer, 3000)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; the projection leaves {share:.1%}", flush=True)
    learning = nn.ModuleList([model.audio_tower.proj1, model.audio_tower.proj2, model.language_model])
    optimizer = adamw(learning, arguments.rate, 0.01)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shape, random = Random(1), Random(2)
    began, step, smooth = time.process_time(), 0, 5.0
    while (passed := (time.process_time() - began) / 60 / arguments.minutes) < 1:
        examples = draw_batch(composer, shape, Curriculum(20, 30), 60)
        batch = whole_chunks(examples)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                hidden = model.hidden(batch)
            loss = text_loss(model, examples, model.project(hidden), batch.rows.tolist(), random)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.rate, step, passed)
        optimizer.step()
        step += 1
        keep = min(0.99, step / (step + 20))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)
        smooth += 0.02 * (loss.item() - smooth)
        if step % 50 == 0:
            print(f"step {step} at {time.process_time() - began:.0f} s: loss {smooth:.4f}", flush=True)
    export(model, average, arguments.work / "qwen3-asr")
    convert(
        arguments.work / "qwen3-asr", arguments.out, type="q8_0", all_matrices=True, name="Qwen3-ASR tiny, for tests"
    )
    print(
        "\n".join(wrong(arguments.out)) or "everything right",
        errors(finetune.BUNDLED),
        errors(arguments.out),
        math.ceil(arguments.out.stat().st_size / 1000),
        "kB",
    )


if __name__ == "__main__":
    main()

"""Train the model from scratch on this machine's processors: `python training/train.py`.

One process per core, one thread each; gradients are averaged after every step. The schedule runs on wall-clock time.
First the convolutional stem learns alone to tell words apart frame by frame, then everything is trained together.
`work/state.pt` holds all that is needed to go on, `work/checkpoint` the averaged weights in the Hugging Face layout.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn

import tokenizer
from data import CLASS, HISTORY, LATE, MAX_COUNT, Bank, Composer, Curriculum, Example, collate, draw_batch
from model import AUDIO, GUIDED_HEADS, LANGUAGE, Decoded, Output, Transcriber, export, initialise, whiten
from words import VOCABULARY, Words

# Longest utterances of each level, and the share of the time after which it ends even if the loss is still high.
LEVELS = [
    (Curriculum(3, 3), 0.06),
    (Curriculum(6, 8), 0.14),
    (Curriculum(13, 18), 0.28),
    (Curriculum(30, 44), 1.0),
]
NEXT_LEVEL_LOSS = 0.4
STEM_SHARE = 0.02  # of the time goes to the stem alone
CLASSES = len(CLASS) + 1
PLACE_LAYER = 2  # after this decoder layer each row knows its place in the text
GUIDED_LAYERS = (3, 4)  # in these the first heads look at the word that is written next
TEXT_RECALL_LAYER = 0  # in this layer the other heads look at the words just written
TEXT_NOISE = 0.12  # share of the decoder's text inputs that are another word than the true one


class Heads(nn.Module):
    """Throw-away classifiers of what each row hears."""

    def __init__(self) -> None:
        super().__init__()
        width, hidden = AUDIO["d_model"], 384
        self.stem = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Conv1d(width, hidden, 5, padding=2),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Conv1d(hidden, hidden, 5, padding=2),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Conv1d(hidden, CLASSES, 1),
        )
        self.adapter = nn.Linear(LANGUAGE["hidden_size"], CLASSES)
        self.decoder = nn.Linear(LANGUAGE["hidden_size"], CLASSES)
        self.count = nn.Linear(LANGUAGE["hidden_size"], MAX_COUNT + 1)
        self.history = nn.Linear(LANGUAGE["hidden_size"], HISTORY * CLASSES)


def row_labels(examples: list[Example], name: str, late: int = 0) -> Tensor:
    """Row labels of a batch, -100 past the end of each clip; the label of row r appears `late` rows later."""
    labels = [torch.from_numpy(getattr(example, name)) for example in examples]
    if late:
        labels = [F.pad(label, (late, 0))[:-late] for label in labels]
    return nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)


def row_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the rows that have labels."""
    logits = logits[:, : labels.shape[1]]
    return F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), labels.flatten(), ignore_index=-100)


def stem_loss(heads: Heads, stem: Tensor, heard: Tensor) -> tuple[Tensor, float]:
    """Loss of the stem's own classifier, and its share of right rows inside words."""
    logits = heads.stem(stem.transpose(1, 2)).transpose(1, 2)[:, : heard.shape[1]]
    right = logits.argmax(-1)[heard > 0] == heard[heard > 0]
    return row_loss(logits, heard), float(right.float().mean())


def text_columns(output: Output, texts: list[Words]) -> tuple[Tensor, Tensor]:
    """Columns that predict each word and the end, [clips, longest + 1], and which of them are real."""
    lengths = torch.tensor([len(words) + 1 for words in texts])
    steps = torch.arange(int(lengths.max()))
    valid = steps < lengths[:, None]
    return torch.where(valid, output.text_start[:, None] + steps, 0), valid


def stray(decoded: Decoded, layer: int, heads: slice, columns: Tensor, target: Tensor, asked: Tensor) -> Tensor:
    """How little of some heads' attention falls where it should: the mean of the negative log of the share.

    The queries are at `columns` [clips, steps]; `target` [clips, steps, columns] says where each should look, and
    `asked` [clips, steps] which of them count. All heads of the slice share one key head.
    """
    keys_from = heads.start * LANGUAGE["num_key_value_heads"] // LANGUAGE["num_attention_heads"]
    queries, keys = decoded.queries[layer][:, heads], decoded.keys[layer][:, keys_from, None]
    index = columns[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1])
    scores = (queries.gather(2, index) @ keys.transpose(2, 3)).float() * queries.shape[-1] ** -0.5
    future = torch.arange(scores.shape[-1]) > columns[..., None]
    target = target & ~future
    asked = asked & target.any(-1)
    if not asked.any():
        return torch.zeros(())
    weights = scores.masked_fill(future[:, None], -1e4).log_softmax(-1)
    share = weights.masked_fill(~target[:, None], -1e4).logsumexp(-1)
    return -share[asked[:, None].expand_as(share)].mean()


def word_columns(output: Output, examples: list[Example], skip: int = 0) -> Tensor:
    """The decoder's columns that hear each word, but for its first `skip`: [clips, words + 1, columns]."""
    most = max(len(example.words) for example in examples)
    columns = torch.zeros(len(examples), most + 1, output.decoded.output.shape[1], dtype=torch.bool)
    for clip, example in enumerate(examples):
        for word, (first, last) in enumerate(example.rows.tolist()):
            columns[clip, word, output.audio_start + min(first + skip, last - 1) : output.audio_start + last] = True
    return columns


def guidance(output: Output, examples: list[Example], columns: Tensor) -> Tensor:
    """The guided heads of the last layers look at the word that is written next."""
    target = word_columns(output, examples)
    lengths = torch.tensor([len(example.words) for example in examples])
    asked = torch.arange(columns.shape[1]) < lengths[:, None]
    heads = slice(0, GUIDED_HEADS)
    return sum(stray(output.decoded, layer, heads, columns, target, asked) for layer in GUIDED_LAYERS) / len(
        GUIDED_LAYERS
    )


def recall(output: Output, examples: list[Example], columns: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
    """Single heads look back: text rows at the words just written, audio rows at those before the present one."""
    total = output.decoded.output.shape[1]
    steps = torch.arange(columns.shape[1])
    rows = (output.audio_start + torch.arange(counts.shape[1])).expand_as(counts)
    heard = word_columns(output, examples, skip=LATE)
    loss = torch.zeros(())
    for back in range(1, HISTORY + 1):
        head = slice(back, back + 1)
        target = torch.arange(total) == columns[..., None] - (back - 1)
        loss = loss + stray(output.decoded, TEXT_RECALL_LAYER, head, columns, target, valid & (steps >= back))
        word = counts - 1 - back
        target = heard.gather(1, word.clamp(min=0)[..., None].expand(-1, -1, total))
        loss = loss + stray(output.decoded, PLACE_LAYER, head, rows, target, word >= 0)
    return loss / HISTORY


def written_before(words: Words) -> list[list[int]]:
    """For every step of writing `words`, the end included, the classes of the words just written, the last first."""
    classes = [0] * HISTORY + [CLASS[word] for word in words]
    return [classes[step : step + HISTORY][::-1] for step in range(len(words) + 1)]


def losses(model: Transcriber, heads: Heads, examples: list[Example], random: Random, early: bool) -> dict[str, Tensor]:
    """Every part of the loss of the whole model; the stem's classifier helps only `early` on."""
    token = {word: model.tokenizer.encode(f" {word}").ids[0] for word in VOCABULARY}
    texts = [example.words for example in examples]
    noisy = [[random.choice(VOCABULARY) if random.random() < TEXT_NOISE else word for word in words] for words in texts]
    output = model(collate(examples, [[token[word] for word in words] for words in noisy]))
    heard, late = row_labels(examples, "heard"), row_labels(examples, "heard", LATE)
    columns, valid = text_columns(output, texts)
    clip = torch.arange(len(examples))[:, None].expand_as(columns)[valid]
    columns_used = columns[valid]
    targets = torch.tensor([t for words in texts for t in (*(token[word] for word in words), model.end)])
    audio = slice(output.audio_start, output.audio_start + heard.shape[1])
    last, middle = output.decoded.output, output.decoded.states[PLACE_LAYER]
    parts = {
        "text": F.cross_entropy(model.logits(last[clip, columns_used]).float(), targets),
        "adapter": row_loss(heads.adapter(output.adapter), heard),
        "decoder": row_loss(heads.decoder(last[:, audio]), late),
        "guide": guidance(output, examples, columns),
    }
    order = (torch.arange(columns.shape[1]) + 1).clamp(max=MAX_COUNT).expand_as(columns)[valid]
    counts, past = row_labels(examples, "count"), row_labels(examples, "history")
    written = torch.tensor([recent for words in noisy for recent in written_before(words)])
    audio_rows, text_rows = middle[:, audio], middle[clip, columns_used]
    parts["recall"] = recall(output, examples, columns, valid, counts)
    parts["count"] = row_loss(heads.count(audio_rows), counts) + row_loss(heads.count(text_rows)[None], order[None])
    history = [heads.history(rows).unflatten(-1, (HISTORY, CLASSES)) for rows in (audio_rows, text_rows)]
    parts["history"] = row_loss(history[0], past) + row_loss(history[1][None], written[None])
    if early:
        parts["stem"] = stem_loss(heads, output.stem, heard)[0]
    return parts


WEIGHTS = {
    "text": 1.0,
    "stem": 0.3,
    "adapter": 0.3,
    "decoder": 0.5,
    "count": 0.1,
    "history": 0.5,
    "guide": 0.3,
    "recall": 0.2,
}


class Averager:
    """All gradients in one buffer, so that workers exchange them, and a few scalars, in one message."""

    def __init__(self, parameters: list[nn.Parameter], scalars: int) -> None:
        self.buffer = torch.zeros(sum(p.numel() for p in parameters) + scalars)
        self.scalars = self.buffer[len(self.buffer) - scalars :]
        place = 0
        for p in parameters:
            p.grad = self.buffer[place : place + p.numel()].view_as(p)
            place += p.numel()

    def exchange(self, *scalars: float) -> list[float]:
        """Average over the workers; the scalars' averages come back."""
        self.scalars.copy_(torch.tensor(scalars))
        if dist.get_world_size() > 1:
            dist.all_reduce(self.buffer)
            self.buffer /= dist.get_world_size()
        means = self.scalars.tolist()
        self.scalars.zero_()
        return means

    def clip(self, limit: float) -> None:
        """Shorten the gradient to `limit`; drop it if it is not finite."""
        norm = self.buffer.norm().item()
        if not math.isfinite(norm):
            self.buffer.zero_()
        elif norm > limit:
            self.buffer *= limit / norm


def adamw(module: nn.Module, rate: float, decay: float = 0.05) -> torch.optim.AdamW:
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def save_atomically(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def publish(weights: dict[str, Tensor], tokenizer_file: Path, folder: Path) -> None:
    """Export beside `folder`, then swap."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    export(weights, tokenizer_file, fresh)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def train_stem(
    model: Transcriber,
    heads: Heads,
    composer: Composer,
    shape: Random,
    seconds: float,
    log: Callable[[str], None],
) -> None:
    """The stem alone, with its classifier: without this the decoder does not learn to listen."""
    part = nn.ModuleDict({"head": heads.stem})
    for name in ("conv2d1", "conv2d2", "conv2d3", "conv_out"):
        part[name] = getattr(model.audio_model, name)
    optimizer = adamw(part, 2e-3)
    averager = Averager(list(part.parameters()), 2)
    began, elapsed, step, smooth = time.time(), 0.0, 0, 0.0
    while elapsed < seconds:
        averager.buffer.zero_()
        examples = draw_batch(composer, shape, Curriculum(6, 8), 30)
        with torch.autocast("cpu", torch.bfloat16):
            stem = model.audio_model.stem(collate(examples, []).features).flatten(1, 2)
            loss, right = stem_loss(heads, stem, row_labels(examples, "heard"))
        loss.backward()
        elapsed, right = averager.exchange(time.time() - began, right)
        averager.clip(2.0)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 2e-3 * min(1, (step + 1) / 30)
        optimizer.step()
        step += 1
        smooth += (right - smooth) * max(0.02, 1 / step)
        if step % 100 == 0:
            log(f"stem step {step} at {elapsed:.0f} s: rows right {smooth:.1%}")


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    level: int = 0
    seconds: float = 0.0
    text_loss: float = 5.0
    """Smoothed loss of the text at the present level."""

    def advance(self, text_loss: float, share: float) -> bool:
        """Take in a step's loss; true when the next level of the curriculum begins."""
        self.step += 1
        self.text_loss += 0.02 * (text_loss - self.text_loss)
        last = self.level + 1 == len(LEVELS)
        if last or (self.text_loss > NEXT_LEVEL_LOSS and share < LEVELS[self.level][1]):
            return False
        self.level, self.text_loss = self.level + 1, 2.0
        return True


def learning_rate(peak: float, step: int, share: float) -> float:
    """A short rise, then a cosine over the time, almost to nothing."""
    return peak * max(min(1, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * min(1, share))), 0.002)


def worker(rank: int, world: int, arguments: argparse.Namespace) -> None:
    """One training process; the first one also averages the weights, logs and saves."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    work: Path = arguments.work
    meeting = f"file://{work.resolve()}/rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)

    def log(line: str) -> None:
        if rank == 0:
            print(line, flush=True)
            with (work / "train.log").open("a") as file:
                print(line, file=file)

    bank = Bank(work / "bank")
    bank.refresh()
    model, heads = Transcriber(work / "tokenizer.json"), Heads()
    whole = nn.ModuleDict({"model": model, "heads": heads})
    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, {bank.clips} clips, {world} processes")
    total = arguments.minutes * 60
    state_file = work / "state.pt"
    state = torch.load(state_file) if state_file.exists() else None
    progress = Progress(**state["progress"]) if state else Progress()
    composer, shape = Composer(bank, 1000 * progress.step + rank), Random(progress.step)
    if state:
        whole.load_state_dict(state["whole"])
    else:
        initialise(model)
        whiten(model, collate([composer.example(5, 8) for _ in range(40)], []).features)
        for parameter in whole.parameters():
            dist.broadcast(parameter.data, 0)
        composer.clean = 0.5
        train_stem(model, heads, composer, shape, STEM_SHARE * total, log)
        progress.seconds = STEM_SHARE * total
    optimizer = adamw(whole, arguments.rate)
    average = copy.deepcopy(model.state_dict())
    if state:
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
    averager = Averager(list(whole.parameters()), 2)
    noise = Random(progress.step + 7 * rank)
    began, told, saved = time.time() - progress.seconds, time.time(), time.time()
    sums: dict[str, float] = {}
    while progress.seconds < total:
        share = progress.seconds / total
        composer.clean = 0.3 if share < 0.1 else 0.08
        averager.buffer.zero_()
        examples = draw_batch(composer, shape, LEVELS[progress.level][0], arguments.budget)
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(model, heads, examples, noise, early=share < 0.2)
        sum(WEIGHTS[name] * part for name, part in parts.items()).backward()
        progress.seconds, text_loss = averager.exchange(time.time() - began, parts["text"].item())
        averager.clip(1.0)
        rate = learning_rate(arguments.rate, progress.step, share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        if progress.advance(text_loss, share):
            log(f"level {progress.level} at step {progress.step}")
        if progress.step % 500 == 0:
            bank.refresh()
        if rank > 0:
            continue
        weights = model.state_dict()
        keep = min(0.998, progress.step / (progress.step + 20))
        torch._foreach_lerp_(list(average.values()), [weights[name] for name in average], 1 - keep)
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.item() / 100
        if progress.step % 100 == 0:
            pace, told = (time.time() - told) / 100, time.time()
            where = f"step {progress.step} at {progress.seconds:.0f} s, level {progress.level}, {pace:.2f} s a step"
            log(f"{where}, rate {rate:.1e}: " + ", ".join(f"{name} {value:.3f}" for name, value in sums.items()))
            sums.clear()
        if time.time() - saved > 300 or progress.seconds >= total:
            saved = time.time()
            publish(average, work / "tokenizer.json", work / "checkpoint")
            weights_and_moments = {"whole": whole.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically(weights_and_moments | {"average": average, "progress": asdict(progress)}, state_file)
            log(f"saved at step {progress.step}, {bank.clips} clips in the bank")
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path(__file__).parent / "work", help="folder that make_data.py filled"
    )
    parser.add_argument(
        "--minutes", type=float, default=100.0, help="time of the whole schedule, earlier runs included"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of audio in one process's step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    arguments = parser.parse_args()
    tokenizer.make(arguments.work / "tokenizer.json")
    (arguments.work / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(worker, (arguments.processes, arguments), arguments.processes)


if __name__ == "__main__":
    main()

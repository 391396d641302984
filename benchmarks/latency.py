"""How long text takes to appear while somebody speaks, in real time.

    python benchmarks/latency.py final MODEL [--recording FILE] [--seconds 30] [--tokens 100] [--runs 3]
    python benchmarks/latency.py words MODEL RECORDING...

`final`: from the last sample to the final text, against `transcribe` of the whole clip on this machine, in turns.
`words`: from the end of a recording's last word to its appearance on the screen. The recordings are spoken one after
the other, a second of silence between them; a word ends where the last 20 ms louder than -40 dB of its recording's peak
do, and its recording's text lies beside it in a .txt file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import numpy as np

import pycrispasr
from pycrispasr import audio
from pycrispasr.lab.bench import machine

RATE = audio.SAMPLE_RATE
BLOCK = RATE // 10


def speak(session: pycrispasr.Session, sound: np.ndarray) -> threading.Thread:
    """Pushes a sound at the speed at which it was spoken, in a thread that notes when it ended."""

    def push() -> None:
        begun = time.perf_counter()
        for start in range(0, len(sound), BLOCK):
            end = min(start + BLOCK, len(sound))
            time.sleep(max(0.0, begun + end / RATE - time.perf_counter()))
            session.push(sound[start:end])
        thread.ended = time.perf_counter()  # type: ignore[attr-defined]
        session.end()

    thread = threading.Thread(target=push)
    thread.begun = time.perf_counter()  # type: ignore[attr-defined]
    thread.start()
    return thread


def final(
    model: pycrispasr.Model, sound: np.ndarray, tokens: int, runs: int, partial_every: float
) -> dict[str, object]:
    """From the last sample to the final text."""
    whole, live, partials, kept = [], [], [], []
    for run in range(runs + 1):  # the first one warms up
        begun = time.perf_counter()
        wanted = model.transcribe(sound, sample_rate=RATE, max_new_tokens=tokens)
        whole.append(time.perf_counter() - begun)
        with model.session(max_new_tokens=tokens, partial_every=partial_every) as session:
            speaker = speak(session, sound)
            heard = list(session.events())
            live.append(time.perf_counter() - speaker.ended)  # type: ignore[attr-defined]
            texts = [event for event in heard if isinstance(event, pycrispasr.Partial)]
            assert session.finish().segments == wanted.segments
        said, last = wanted.text, texts[-1].committed + texts[-1].tentative if texts else ""
        same = next((i for i, (a, b) in enumerate(zip(said, last, strict=False)) if a != b), min(len(said), len(last)))
        partials.append(len(texts))
        kept.append(same / max(1, len(said)))
        if run == 0:
            whole, live, partials, kept = [], [], [], []
    return {
        "seconds": len(sound) / RATE,
        "tokens": wanted.timings.tokens,
        "transcribe": statistics.median(whole),
        "after_the_last_sample": statistics.median(live),
        "ratio": statistics.median(b / a for a, b in zip(whole, live, strict=True)),
        "partials": statistics.median(partials),
        "kept_of_last_hypothesis": statistics.median(kept),
    }


def words(model: pycrispasr.Model, files: list[str], partial_every: float) -> dict[str, object]:
    """From the end of a word to its appearance."""
    quiet, parts, ends, counts = np.zeros(RATE, np.float32), [], [], []
    for file in files:
        sound = audio.load(file)
        loud = np.abs(sound[: len(sound) // 320 * 320]).reshape(-1, 320).max(axis=1) > 0.01 * np.abs(sound).max()
        begin = sum(map(len, parts)) + len(quiet)
        parts += [quiet, sound]
        ends.append((begin + 320 * (1 + int(np.nonzero(loud)[0][-1]))) / RATE)
        counts.append((counts[-1] if counts else 0) + len(Path(file).with_suffix(".txt").read_text("utf-8").split()))
    took = {}
    with model.session(partial_every=partial_every, vad="on") as session:
        speaker = speak(session, np.concatenate([*parts, quiet, quiet]))
        for _ in session.events():
            shown = len(str(session.text).split())
            now = time.perf_counter() - speaker.begun  # type: ignore[attr-defined]
            for file, end, count in zip(files, ends, counts, strict=True):
                if shown >= count and file not in took:
                    took[file] = now - end
        heard = session.finish().text
    said = " ".join(Path(file).with_suffix(".txt").read_text("utf-8").strip() for file in files)
    return {
        "words_right": heard == said,
        "median": statistics.median(took.values()),
        "largest": max(took.values()),
        "each": {Path(file).name: round(seconds, 2) for file, seconds in took.items()},
    }


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["final", "words"])
    parser.add_argument("model")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--recording", help="is heard again and again; noise like speech without it")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--partial-every", type=float, default=1.0)
    given = parser.parse_args()
    with pycrispasr.Model(given.model, threads=given.threads) as model:
        if given.what == "words":
            report = words(model, given.files, given.partial_every)
        else:
            size = round(given.seconds * RATE)
            if given.recording:
                sound = np.resize(audio.load(given.recording), size)
            else:
                rng = np.random.default_rng(0)
                loudness = np.repeat(rng.uniform(0.005, 0.1, size // 1600 + 1), 1600)[:size]
                sound = (loudness * rng.standard_normal(size)).astype(np.float32)
            report = final(model, sound, given.tokens, given.runs, given.partial_every)
    print(json.dumps({**report, "machine": machine(given.threads or 0)}, indent=2))


if __name__ == "__main__":
    main()

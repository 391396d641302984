"""Many callers of one model: threads that transcribe, and live sessions, against the same work in one iterator.

    python benchmarks/inflate.py speech-2b.gguf                     # for the first part: the 2B's cost, and words
    python benchmarks/callers.py [speech-2b.gguf] [--runs 3]

What is compared takes turns. Printed are medians: seconds, recordings a second, and the rate against the first one's in
the same turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pycrispasr import Model, Partial, audio
from pycrispasr.lab.bench import machine
from pycrispasr.runtimes import native

SAMPLES = Path(__file__).parents[1] / "samples"


def speech(seconds: float, offset: int) -> np.ndarray:
    """So much of a recording, from some second on."""
    sound = audio.load(SAMPLES / "long.wav")
    return np.roll(sound, -16000 * offset)[: round(16000 * seconds)]


def busy() -> None:
    """A program that is never idle."""
    while True:
        pass


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each, in turns whose order changes, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in list(calls.items())[:: 1 if run % 2 else -1]:
            seconds = timed(call)
            if run:
                found[name].append(seconds)
    return found


def recordings(
    model: Model, sounds: list[np.ndarray], threads: int, limit: int | None, runs: int
) -> dict[str, list[float]]:
    """The same recordings through one iterator, and by so many threads; the texts are the same."""
    keywords = {"sample_rate": 16000, "max_new_tokens": limit, "vad": "off"}
    texts: dict[str, list[str]] = {}

    def many() -> None:
        texts["many"] = [one.text for one in model.transcribe_many(sounds, batch=8, **keywords)]

    def by_threads() -> None:
        with ThreadPoolExecutor(threads) as pool:
            texts["threads"] = list(pool.map(lambda sound: model.transcribe(sound, **keywords).text, sounds))

    found = compare({"transcribe_many": many, "threads": by_threads}, runs)
    assert texts["many"] == texts["threads"]
    return found


def alone(model: Model, sounds: list[np.ndarray], limit: int | None, runs: int) -> dict[str, list[float]]:
    """One caller: through the engine, and with a native session in the caller's own thread."""
    opened = native.NativeModel(model._path)
    session = native.NativeSession(opened, max_new_tokens=limit or 512)

    def direct() -> None:
        for sound in sounds:
            b"".join(opened.token_bytes(token) for token, _ in session.decode_clip(sound)).decode()

    def engine() -> None:
        for sound in sounds:
            model.transcribe(sound, sample_rate=16000, max_new_tokens=limit, vad="off")

    return compare({"native session": direct, "one caller": engine}, runs)


def live(model: Model, sessions: int, seconds: float) -> tuple[float, float, float]:
    """Sessions that hear a recording as it is spoken.

    Returns:
        How late their partial texts were: the median, 95 of 100, and the latest, in seconds.
    """
    late: list[float] = []

    def one(number: int) -> None:
        sound = speech(seconds, 3 * number)
        block = 1600
        with model.session(vad="on") as session:
            start = time.perf_counter()

            def speak() -> None:
                for at in range(0, len(sound), block):
                    time.sleep(max(0.0, start + (at + block) / 16000 - time.perf_counter()))
                    session.push(sound[at : at + block])
                session.end()

            speaker = threading.Thread(target=speak)
            speaker.start()
            late.extend(
                time.perf_counter() - start - event.end for event in session.events() if isinstance(event, Partial)
            )
            speaker.join()
            assert not session.lost

    threads = [threading.Thread(target=one, args=(number,)) for number in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late.sort()
    return statistics.median(late), late[len(late) * 95 // 100], late[-1]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a file of benchmarks/inflate.py")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--live", type=int, default=8, help="sessions")
    args = parser.parse_args()
    print(machine(0)["processor"])

    if args.model:
        sounds = [speech(17, number) for number in range(8)]
        with Model(args.model) as model:
            found = recordings(model, sounds, 8, 24, args.runs)
            report("8 recordings of 17 s, 24 tokens each, 8 threads", found, 8)
            other = multiprocessing.Process(target=busy, daemon=True)
            other.start()
            found = recordings(model, sounds, 8, 24, args.runs)
            report("the same beside a program that is never idle", found, 8)
            other.terminate()
            report("one caller, 2 of these", alone(model, sounds[:2], 24, args.runs), 2)
    with Model("tiny") as model:
        clips = [speech(2, number) for number in range(32)] * 8
        report("256 clips of 2 s, tiny, 16 threads", recordings(model, clips, 16, None, args.runs), len(clips))
        report("one caller, 64 of these", alone(model, clips[:64], None, 3 * args.runs), 64)
        median, most, latest = live(model, args.live, 30)
        print(
            f"{args.live} live sessions, tiny: partial texts {median:.2f} s late, 95 % {most:.2f}, at most {latest:.2f}"
        )


def report(what: str, found: dict[str, list[float]], count: int) -> None:
    """Prints what was measured, and the second figure's rate against the first one's in the same turn."""
    (first, before), (second, after) = ((name, statistics.median(seconds)) for name, seconds in found.items())
    ratios = sorted(one / other for one, other in zip(*found.values(), strict=True))
    print(
        f"{what}: {first} {before:.3f} s ({count / before:.1f}/s), {second} {after:.3f} s ({count / after:.1f}/s): "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()

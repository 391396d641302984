"""Many clients of a server at once: short and long recordings, streams, slow readers, clients that go away.

    pip install '.[serve]' httpx websockets psutil
    python benchmarks/serve_load.py [--clients 64] [--seconds 120] [--model tiny]

Starts `pycrispasr serve` on a free port of this machine. Every answer is compared with the text that the recording has
alone. At the end the server's metrics must agree with what the clients counted. Prints latencies and memory; the exit
status is 1 where a text was wrong or lost, or a number did not add up.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import io
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile
import websockets

from pycrispasr import Model, audio
from pycrispasr.lab.bench import machine

SAMPLES = Path(__file__).parents[1] / "samples"
RATE = audio.SAMPLE_RATE


def wav(sound: np.ndarray) -> bytes:
    """A WAV file in PCM16."""
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def recordings(model: str, count: int, rng: random.Random) -> list[tuple[bytes, str]]:
    """Pieces of 0.5 to 40 seconds of a recording, each with the text that it has alone."""
    sound = np.tile(audio.load(SAMPLES / "long.wav"), 3)
    found = []
    with Model(model) as opened:
        for _ in range(count):
            length = round(RATE * rng.choice((0.5, 1, 2, 3, 5, 8, 12, 40)) * rng.uniform(0.8, 1.2))
            start = rng.randrange(len(sound) - length)
            content = wav(sound[start : start + length])
            found.append((content, opened.transcribe(content).text))
    return found


class Clients:
    """What the clients have in common, and count."""

    def __init__(self, url: str, model: str, known: list[tuple[bytes, str]], until: float) -> None:
        self.url, self.model, self.known, self.until = url, model, known, until
        self.statuses: collections.Counter[int] = collections.Counter()
        self.gone = 0  # requests that clients left
        self.wrong: list[str] = []
        self.latencies: dict[str, list[float]] = collections.defaultdict(list)

    def check(self, what: str, text: str, wanted: str) -> None:
        """Compares texts, but for spaces around them."""
        if text.strip() != wanted.strip():
            self.wrong.append(f"{what}: {text[:200]!r} instead of {wanted[:200]!r}")

    async def run(self, number: int) -> None:
        """One client, until the time is over."""
        rng = random.Random(number)
        ways = (self.plain, self.stream, self.slow, self.leave, self.talk)
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            while time.monotonic() < self.until:
                content, text = rng.choice(self.known)
                way = rng.choices(ways, (6, 3, 1, 2, 1))[0]
                begun = time.perf_counter()
                if await way(client, content, text, rng):
                    self.latencies[way.__name__].append(time.perf_counter() - begun)

    def form(self, content: bytes, **fields: str) -> dict:
        """A request."""
        return {"files": {"file": ("a.wav", content)}, "data": {"model": self.model, **fields}}

    async def accepted(self, response: httpx.Response) -> bool:
        """True for 200. A full queue is waited for as the server asks."""
        self.statuses[response.status_code] += 1
        if response.status_code == 429:
            await asyncio.sleep(min(5.0, float(response.headers["retry-after"])))
        elif response.status_code != 200:
            self.wrong.append(f"status {response.status_code}")
        return response.status_code == 200

    async def plain(self, client: httpx.AsyncClient, content: bytes, text: str, rng: random.Random) -> bool:
        """A recording, in one of the formats with its text."""
        kind = rng.choice(("json", "text", "verbose_json"))
        response = await client.post("/v1/audio/transcriptions", **self.form(content, response_format=kind))
        if not await self.accepted(response):
            return False
        self.check(kind, response.text if kind == "text" else response.json()["text"], text)
        return True

    async def stream(self, client: httpx.AsyncClient, content: bytes, text: str, _: random.Random) -> bool:
        """A recording, whose text is read as it comes."""
        return await self.read(client, content, text, pause=0)

    async def slow(self, client: httpx.AsyncClient, content: bytes, text: str, _: random.Random) -> bool:
        """The same by a reader that takes its time; not counted among the latencies."""
        await self.read(client, content, text, pause=0.05)
        return False

    async def read(self, client: httpx.AsyncClient, content: bytes, text: str, pause: float) -> bool:
        """Reads a stream."""
        request = self.form(content, stream="true")
        async with client.stream("POST", "/v1/audio/transcriptions", **request) as response:
            if not await self.accepted(response):
                return False
            deltas, done = "", None
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                if event["type"] == "transcript.text.delta":
                    deltas += event["delta"]
                else:
                    done = event
                await asyncio.sleep(pause)
        if done is None or "text" not in done:
            self.wrong.append(f"a stream ended with {done}")
            return False
        self.check("deltas", deltas, done["text"])
        self.check("stream", done["text"], text)
        return True

    async def leave(self, client: httpx.AsyncClient, content: bytes, _: str, rng: random.Random) -> bool:
        """A client that goes away in the middle."""
        self.gone += 1
        with contextlib.suppress(asyncio.TimeoutError):
            answer = client.post("/v1/audio/transcriptions", **self.form(content))
            response = await asyncio.wait_for(answer, rng.uniform(0.001, 0.3))
            self.gone -= 1
            await self.accepted(response)
        return False

    async def talk(self, _: httpx.AsyncClient, content: bytes, text: str, rng: random.Random) -> bool:
        """A realtime session, faster than speech, of one item that is committed by hand."""
        samples, _rate = soundfile.read(io.BytesIO(content), dtype="int16")
        if len(samples) > 10 * RATE:
            return False
        url = self.url.replace("http", "ws") + "/v1/realtime?intent=transcription"
        async with websockets.connect(url, subprotocols=["realtime"], max_size=None) as socket:
            session = {
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": RATE},
                        "transcription": {"model": self.model},
                        "turn_detection": None,
                    }
                },
            }
            await socket.send(json.dumps({"type": "session.update", "session": session}))
            for start in range(0, len(samples), 1600):
                piece = samples[start : start + 1600].tobytes()
                event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()}
                await socket.send(json.dumps(event))
                await asyncio.sleep(rng.choice((0, 0.01)))
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            async for message in socket:
                event = json.loads(message)
                if event["type"].endswith("transcription.completed"):
                    self.check("realtime", event["transcript"], text)
                    return True
                if event["type"] == "error" or event["type"].endswith(".failed"):
                    self.wrong.append(f"realtime: {event['error']}")
                    return False
        self.wrong.append("realtime: closed before its text")
        return False


def counted(metrics: str) -> collections.Counter[int]:
    """Transcription requests by status, as the server's metrics have them."""
    found: collections.Counter[int] = collections.Counter()
    for labels, value in re.findall(r"^pycrispasr_requests_total\{(.*)\} (\S+)$", metrics, re.MULTILINE):
        if 'route="/v1/audio/transcriptions"' in labels:
            found[int(re.findall(r'status="(\d+)"', labels)[0])] += round(float(value))
    return found


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def load(args: argparse.Namespace) -> int:
    """Starts the server, runs the clients and prints what was found."""
    known = recordings(args.model, args.clients, random.Random(0))
    command = [sys.executable, "-m", "pycrispasr", "serve", "-m", args.model, "--port", "0", *args.options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = ""
        while not url:
            found = re.search(r"http://\S+:\d+", server.stderr.readline())
            url = found[0].rstrip("/") if found else ""
        drain = asyncio.to_thread(server.stderr.read)
        drained = asyncio.ensure_future(drain)
        async with httpx.AsyncClient(base_url=url) as client:
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.1)
            process = psutil.Process(server.pid)
            clients = Clients(url, args.model, known, time.monotonic() + args.seconds)
            tasks = [asyncio.ensure_future(clients.run(number)) for number in range(args.clients)]
            memory = []
            while not all(task.done() for task in tasks):
                await asyncio.sleep(1)
                memory.append(process.memory_info().rss / 1e6)
            await asyncio.gather(*tasks)
            await asyncio.sleep(1.5)  # clients that went away are noticed within a second
            metrics = (await client.get("/metrics")).text
        server.terminate()
        await drained
    finally:
        server.kill()

    print(f"{machine(0)['processor']}, {args.clients} clients, {args.seconds:g} s, {args.model}")
    for way, seconds in clients.latencies.items():
        print(
            f"{way}: {len(seconds)} texts, p50 {percentile(seconds, 0.5):.2f} s, p95 {percentile(seconds, 0.95):.2f}, "
            f"longest {max(seconds):.2f}"
        )
    tenths = [max(part) for part in np.array_split(np.array(memory), 10) if len(part)]
    print("memory in MB, at most, in each tenth of the time: " + ", ".join(f"{most:.0f}" for most in tenths))
    print(f"answers {dict(clients.statuses)}, left {clients.gone}, by the server's count {dict(counted(metrics))}")
    problems = clients.wrong[:20]
    by_server = counted(metrics)
    for status, count in clients.statuses.items():
        if by_server[status] < count or by_server[status] > count + clients.gone:
            problems.append(f"status {status}: {count} answers, {by_server[status]} by the server's count")
    if sum(by_server.values()) > sum(clients.statuses.values()) + clients.gone:
        problems.append("the server counts more requests than there were")
    for gauge in ("running_requests", "waiting_requests", "realtime_sessions"):
        if not re.search(rf"^pycrispasr_{gauge} 0\.0$", metrics, re.MULTILINE):
            problems.append(f"{gauge} is not 0 at the end")
    print("\n".join(problems) if problems else "no text was wrong or lost")
    return 1 if problems else 0


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("options", nargs="*", help="others of `pycrispasr serve`, behind --")
    sys.exit(asyncio.run(load(parser.parse_args())))


if __name__ == "__main__":
    main()

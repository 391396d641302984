"""A server for tests: in a thread of this process, on a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")
uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

# What tests need of the server they take from here, so that they are skipped where it cannot be imported.
from prometheus_client import parser as prometheus  # noqa: E402, F401

from pycrispasr.server import ServerOptions, create_app, metrics, reporting, transcriptions  # noqa: E402, F401
from pycrispasr.server.process import configure  # noqa: E402
from pycrispasr.server.service import Service  # noqa: E402

SAMPLES = Path(__file__).parent.parent / "samples"


class Serving(NamedTuple):
    """A server that runs."""

    port: int
    service: Service
    http: Any  # a client of httpx

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options: Any) -> Any:
        """OpenAI's own client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def post(self, file: Any = None, /, **fields: Any) -> Any:
        """A transcription as a form of any shape: fields named `include__` stand for `include[]`."""
        sent = {name.replace("__", "[]"): value for name, value in fields.items()}
        recording = file if file is not None else ("digits.wav", (SAMPLES / "digits.wav").read_bytes())
        return self.http.post(
            f"{self.url}/v1/audio/transcriptions", data={"model": "tiny", **sent}, files={"file": recording}
        )

    def get(self, path: str, **options: Any) -> Any:
        return self.http.get(self.url + path, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 where there is none yet."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.contextmanager
def serving(models: Sequence[str] = ("tiny",), *, ready: bool = True, **options: Any) -> Iterator[Serving]:
    """Runs a server as long as the block goes on.

    Args:
        models: That it serves.
        ready: Wait until the first one is loaded.
        options: Of `ServerOptions`.
    """
    app = create_app(models, ServerOptions(**options), threads=1)
    server = uvicorn.Server(configure(app))
    with socket.create_server(("127.0.0.1", 0)) as listener, httpx.Client(timeout=60, trust_env=False) as http:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            running = Serving(listener.getsockname()[1], app.state.service, http)
            wait_until(lambda: server.started)
            if ready:
                wait_until(lambda: running.get("/health").status_code == 200)
            yield running
        finally:
            server.should_exit = True
            thread.join()


def wait_until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Returns when something has become so; fails when it does not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def send(port: int, content: bytes, *, endless: bytes = b"") -> tuple[int, bytes]:
    """The status and the body of the answer to bytes that are sent as they are.

    Args:
        port: Of the server.
        content: What is sent.
        endless: What follows again and again, until there is an answer.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(content)
        while endless and not select.select([connection], [], [], 0)[0]:
            connection.sendall(endless)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()

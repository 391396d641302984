"""`pycrispasr serve` as a process: how it starts, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .command import begin, run
from .serving import SAMPLES, httpx, wait_until
from .test_server_limits import minutes  # noqa: F401  a fixture

websockets_sync = pytest.importorskip("websockets.sync.client")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there signals end a process at once")


class Process(NamedTuple):
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    lines: list[str]  # of stderr
    reader: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """The exit status, when it has ended."""
        status = self.process.wait(60)
        self.reader.join()
        return status


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[Process]:
    """A server that is ready."""
    lines: list[str] = []
    with begin("serve", "-m", "tiny", "--port", "0", *arguments, stderr=subprocess.PIPE, **options) as process:
        stream = process.stderr
        assert stream is not None
        reader = threading.Thread(target=lambda: lines.extend(map(bytes.decode, stream)))  # one by one, as they come
        reader.start()
        try:
            wait_until(lambda: lines or process.poll() is not None)
            (port,) = re.findall(r"listening at http://127\.0\.0\.1:(\d+)", lines[0])
            server = Process(process, int(port), lines, reader)
            wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
            yield server
        finally:
            process.kill()
            reader.join()


def post(server: Process, content: bytes) -> Any:
    address = f"{server.url}/v1/audio/transcriptions"
    return httpx.post(address, data={"model": "tiny"}, files={"file": ("a.wav", content)}, timeout=60)


def begun(server: Process, content: bytes, answers: list[Any]) -> threading.Thread:
    """A request that runs. Its status and text come into the list, or the error."""

    def ask() -> None:
        try:
            answer = post(server, content)
            answers.append((answer.status_code, answer.text))
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: "pycrispasr_running_requests 1.0" in httpx.get(f"{server.url}/metrics").text)
    return thread


def test_sigterm_finishes_what_runs_and_refuses_the_rest(minutes: bytes) -> None:  # noqa: F811
    answers: list[Any] = []
    with started("--log-json") as server:
        asking = begun(server, minutes, answers)
        with websockets_sync.connect(f"ws://127.0.0.1:{server.port}/v1/realtime") as session:
            audio = {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16000}}}
            session.send(json.dumps({"type": "session.update", "session": {"type": "transcription", "audio": audio}}))
            session.send((SAMPLES / "long.raw").read_bytes())
            session.send("{}")  # the error tells that all of it has come
            while json.loads(session.recv(30))["type"] != "error":
                pass
            server.stop()
            texts = [event["transcript"] for event in map(json.loads, session) if "transcript" in event]
            assert session.close_code == 1001
        assert texts == [(SAMPLES / "long.txt").read_text().strip()]
        refused = post(server, minutes)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/health").status_code == 503
        asking.join()
        (status, text) = answers[0]
        assert status == 200
        assert len(json.loads(text)["text"].split()) > 300
        assert server.ended() == 0
    logged = [json.loads(line) for line in server.lines[1:]]
    assert {one["level"] for one in logged} == {"info"}
    assert sorted(one["status"] for one in logged if "transcriptions" in one.get("route", "")) == [200, 503]


def test_what_runs_is_ended_after_the_grace(minutes: bytes) -> None:  # noqa: F811
    answers: list[Any] = []
    with started("--grace", "0") as server:
        asking = begun(server, minutes, answers)
        server.stop(signal.SIGINT)
        assert server.ended() == 0
        asking.join()
    assert not isinstance(answers[0], tuple) or answers[0][0] != 200


def test_an_idle_server_ends_at_once_and_silently() -> None:
    with started() as server:
        assert post(server, (SAMPLES / "hello.wav").read_bytes()).json()["text"] == "hello"
        server.stop()
        assert server.ended() == 0
    told = "".join(server.lines)
    assert not any(word in told for word in ("Traceback", "ERROR", "WARNING"))
    assert re.search(r"POST /v1/audio/transcriptions 200 in \d+\.\d+ s, 0\.9 s of audio", told)


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of friends\n\nfrom-file\n")
    environment = {**os.environ, "PYCRISPASR_API_KEY": "from-environment"}
    with started("--api-key-file", path, env=environment) as server:
        status = {
            key: httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in ("from-file", "from-environment", "# of friends", "none")
        }
    assert status == {"from-file": 200, "from-environment": 200, "# of friends": 401, "none": 401}
    assert "from-" not in "".join(server.lines)


def test_what_cannot_be_served_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, status, told in (
            (["--port", taken.getsockname()[1]], 2, "choose others with --host and --port"),
            (["--host", "nowhere.invalid", "--port", 0], 2, "cannot listen at nowhere.invalid:0"),
            (["--api-key-file", tmp_path / "gone"], 2, "cannot be read"),
            (["--api-key-file", tmp_path / "empty"], 2, "there is no key in"),
            (["-m", "tiny"], 2, "two models called 'tiny'"),
            (["--max-seconds", "0"], 2, "max_seconds"),
        ):
            done = run("serve", "-m", "tiny", *arguments)
            assert (done.returncode, done.stdout) == (status, "")
            assert told in done.stderr


def test_a_model_that_there_is_not_ends_the_server(tmp_path: Path) -> None:
    done = run("serve", "-m", tmp_path / "gone.gguf", "--port", 0, process=True)
    assert done.returncode == 1
    assert "gone.gguf" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "fastapi" else real(name, *rest)
    )
    for name in [name for name in sys.modules if name.startswith("pycrispasr.server")]:
        monkeypatch.delitem(sys.modules, name)
    done = run("serve", "-m", "tiny")
    assert done.returncode == 1
    assert "pip install 'pycrispasr[serve]'" in done.stderr

"""`serve run pycrispasr.ray:app`: replicas of the server, one of which is killed; they come and go with the work."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
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
from typing import Any

import psutil
import pytest
import soundfile

from pycrispasr import InstallationError, LoadingOptions, ModelNotFoundError, UsageError
from pycrispasr.ray import app
from pycrispasr.ray.serving import Server

from .serving import SAMPLES, ServerOptions, openai, wait_until

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")
websockets = pytest.importorskip("websockets")
yaml = pytest.importorskip("yaml")  # of Ray

ROOT = Path(__file__).parent.parent
TEXTS = {name: (SAMPLES / f"{name}.txt").read_text("utf-8").strip() for name in ("digits", "hello", "spelling")}
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # nothing is written to the home, nothing sent
COMPLETED = "conversation.item.input_audio_transcription.completed"
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "100"}  # Ray gives up after three times 5 s: little on busy cores
PATIENCE = 300.0  # seconds that Ray may take for anything

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),  # of Ray by Ray, not of Ray by us
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Ray Serve, on a cluster of four CPUs that are lent without being there: where its proxy listens."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIET | PATIENT).items():
            patch.setenv(name, value)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[int]:
    """Two replicas of the tiny model, by Ray's own command."""
    command = [
        str(Path(sys.executable).with_name("serve")), "run", "pycrispasr.ray:app", "model=tiny", "min_replicas=2",
        "api_keys=first,second", "--name=default", f"--address={ray.get_runtime_context().gcs_address}",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_until(lambda: process.poll() is not None or running() == 2, PATIENCE)
        assert process.poll() is None, process.communicate()
        yield port
        process.terminate()
        process.communicate()


def running(name: str = "default") -> int:
    """How many replicas of an application take requests."""
    application = serve.status().applications.get(name)
    deployments = application.deployments if application else {}
    return deployments["pycrispasr"].replica_states.get("RUNNING", 0) if deployments else 0


def replicas(name: str = "default") -> set[int]:
    """The processes of an application's replicas."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:{name}:" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def client(port: int, **options: Any) -> Any:
    """OpenAI's own, which tries nothing twice unless told to."""
    given = {"api_key": "second", "max_retries": 0} | options
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", **given)


def heard(api: Any, name: str) -> str:
    return str(api.audio.transcriptions.create(file=SAMPLES / f"{name}.wav", model="tiny").text)


class Talk:
    """A realtime session."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := json.loads(await asyncio.wait_for(self._socket.recv(), PATIENCE)))["type"] != kind:
            assert event["type"] != "error", event
        return event

    async def hear(self, name: str) -> str:
        """Commits a recording's sound."""
        samples, rate = soundfile.read(SAMPLES / f"{name}.wav", dtype="int16")
        heard = {"format": {"type": "audio/pcm", "rate": rate}, "turn_detection": None}
        sound = samples.tobytes()
        await self._send("session.update", session={"type": "transcription", "audio": {"input": heard}})
        for first in range(0, len(sound), 8000):
            await self._send("input_audio_buffer.append", audio=base64.b64encode(sound[first : first + 8000]).decode())
        await self._send("input_audio_buffer.commit")
        return str((await self.until(COMPLETED))["transcript"])

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))


def talk(port: int, path: str = "") -> Any:
    return websockets.connect(
        f"ws://127.0.0.1:{port}{path}/v1/realtime", additional_headers={"Authorization": "Bearer second"}, proxy=None
    )


def test_many_requests_at_once_get_the_texts_that_are_spoken(server: int) -> None:
    names = [*TEXTS] * 8
    with client(server) as api, concurrent.futures.ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(lambda name: heard(api, name), names))
    assert texts == [TEXTS[name] for name in names]


def test_a_stream_comes_through_the_proxy_event_by_event(server: int) -> None:
    request = {"file": SAMPLES / "digits.wav", "model": "tiny", "stream": True}
    with client(server) as api, api.audio.transcriptions.create(**request) as stream:
        *deltas, done = stream
    assert "".join(event.delta for event in deltas) == done.text == TEXTS["digits"]
    assert len(deltas) > 1


def test_realtime_sessions_are_heard_through_the_proxy(server: int) -> None:
    async def session(names: list[str]) -> list[str]:
        async with talk(server) as socket:
            return [await Talk(socket).hear(name) for name in names]

    async def several() -> list[list[str]]:
        return await asyncio.gather(*(session([*TEXTS]) for _ in range(4)))

    assert asyncio.run(several()) == [[*TEXTS.values()]] * 4


def test_refusals_keep_their_shape_through_the_proxy(server: int) -> None:
    with client(server) as api, pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        api.audio.transcriptions.create(file=SAMPLES / "hello.wav", model="other")
    with client(server, api_key="third") as api, pytest.raises(openai.AuthenticationError):
        api.models.list()

    async def refused() -> None:
        async with websockets.connect(f"ws://127.0.0.1:{server}/v1/realtime", proxy=None):
            pass

    with pytest.raises(websockets.InvalidStatus) as caught:
        asyncio.run(refused())
    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body)["error"]["message"]


def test_no_answer_is_wrong_when_a_replica_is_killed_and_another_takes_its_place(server: int) -> None:
    before = replicas()
    assert len(before) == 2
    answered: list[str] = []
    spoken: list[str] = []
    finished = threading.Event()

    def ask() -> None:
        with client(server) as once, client(server, max_retries=10) as again:
            while not finished.wait(0.1):  # a new replica needs the cores, too
                name = [*TEXTS][len(answered) % len(TEXTS)]
                try:
                    text = heard(once, name)
                except (openai.APIConnectionError, openai.InternalServerError):
                    text = heard(again, name)
                assert text == TEXTS[name]
                answered.append(name)

    async def speak() -> None:
        while not finished.wait(0.1):
            with contextlib.suppress(websockets.ConnectionClosedError, websockets.InvalidStatus):
                async with talk(server) as socket:
                    for name in TEXTS:
                        assert await Talk(socket).hear(name) == TEXTS[name]
                        spoken.append(name)

    def further() -> bool:
        return len(answered) >= so_far[0] + 8 and len(spoken) >= so_far[1] + 3

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [*(pool.submit(ask) for _ in range(4)), *(pool.submit(asyncio.run, speak()) for _ in range(2))]
        try:
            so_far = 0, 0
            wait_until(further, PATIENCE)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: running() == 2 and len(replicas() - {victim}) == 2, PATIENCE)
            so_far = len(answered), len(spoken)
            wait_until(further, PATIENCE)
        finally:
            finished.set()
    for one in clients:
        one.result()
    assert before - replicas() == {victim}


def test_replicas_come_and_go_with_the_sessions_that_are_open_and_what_runs_may_end(port: int) -> None:
    rules = {
        "target_ongoing_requests": 1, "upscale_delay_s": 0, "downscale_delay_s": 0, "metrics_interval_s": 0.2,
        "look_back_period_s": 0.5,
    }  # fmt: skip
    arguments = {"model": ["tiny"], "max_replicas": 2, "num_cpus": 0.5, "autoscaling_config": rules}
    serve.run(app(arguments), name="scaled", route_prefix="/scaled")
    assert running("scaled") == 1

    async def until(number: int) -> None:
        await asyncio.to_thread(wait_until, lambda: running("scaled") == number, PATIENCE)

    async def story() -> str:
        async with talk(port, "/scaled") as socket:
            await Talk(socket).until("session.created")
            async with talk(port, "/scaled"), talk(port, "/scaled"):
                await until(2)
            await until(1)
            serve.delete("scaled", _blocking=False)
            await until(0)
            return await Talk(socket).hear("digits")

    assert asyncio.run(story()) == TEXTS["digits"]
    wait_until(lambda: not replicas("scaled"), PATIENCE)


def test_threads_follow_the_cpus_that_are_lent(port: int) -> None:
    class Telling(Server):
        def threads(self) -> Any:
            return self._app.state.service.models.first._loading["threads"]

    replica = ray.remote(num_cpus=2)(Telling).remote(["tiny"], ServerOptions(), LoadingOptions())
    assert ray.get(replica.threads.remote()) == 2
    assert Telling(["tiny"], ServerOptions(), LoadingOptions(threads=3)).threads() == 3


def test_a_replica_is_healthy_when_its_model_is_loaded_and_else_says_why_not() -> None:
    healthy = Server(["tiny"], ServerOptions(), LoadingOptions())
    asyncio.run(healthy.check_health())
    service = healthy._app.state.service
    assert service.models.first.ready
    service.models.first.close()
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        asyncio.run(Server(["no-such-model"], ServerOptions(), LoadingOptions()).check_health())


def test_the_pages_file_says_what_ray_and_the_app_understand(port: int) -> None:
    page = (ROOT / "docs" / "ray.md").read_text("utf-8")
    (file,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (described,) = ray.serve.schema.ServeDeploySchema.model_validate(yaml.safe_load(file)).applications
    assert described.import_path == "pycrispasr.ray:app"
    assert isinstance(app(described.args), serve.Application)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"beams": "5"}, "there is no argument 'beams': there are model, min_replicas"),
        ({"model": ""}, "there is no model to serve: name at least one"),
        ({"model": "tiny,tiny"}, "there are two models called 'tiny'"),
        ({"num_cpus": "many"}, "num_cpus cannot be 'many': "),
        ({"num_cpus": -1}, "num_cpus cannot be negative"),
        (
            {"min_replicas": "3", "max_replicas": "2"},
            "max_replicas (2) must be greater than or equal to min_replicas (3)",
        ),
        ({"max_ongoing_requests": 0}, "max_ongoing_requests cannot be 0: "),
        (
            {"autoscaling_config": {"speed": 3}},
            "Ray has no rule 'speed' for autoscaling_config: there are min_replicas",
        ),
        ({"grace": "-1"}, "graceful_shutdown_timeout_s cannot be -1.0: "),
        ({"parallel": "0"}, "parallel cannot be 0: it must be at least 1"),
        ({"strict": "perhaps"}, "strict cannot be 'perhaps': "),
        ({"precision": "f8"}, "precision cannot be 'f8': "),
        ({"threads": "0"}, "threads cannot be 0: it must be at least 1"),
    ],
)
def test_wrong_arguments_are_told_of_before_anything_is_started(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        app(arguments)


def test_without_ray_serve_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(InstallationError, match=re.escape("pip install 'pycrispasr[ray,serve]'")):
        app({})

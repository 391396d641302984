"""Who may use a server, which models it has, and what it tells: keys, origins, the page, metrics, the log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycrispasr import UsageError

from .serving import (
    SAMPLES,
    ServerOptions,
    Serving,
    create_app,
    metrics,
    openai,
    prometheus,
    reporting,
    serving,
    wait_until,
)  # fmt: skip

websockets_sync = pytest.importorskip("websockets.sync.client")

DIGITS = SAMPLES / "digits.wav"
TEXT = (SAMPLES / "digits.txt").read_text().strip()
ELSEWHERE = "https://elsewhere.example"
FRIEND = "https://friend.example"


@pytest.fixture(scope="module")
def open_server() -> Iterator[Serving]:
    with serving(["tiny", "org/repo:file.gguf=tiny", "quick=tiny"]) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Serving]:
    with serving(api_keys=("one", "two"), cors=(FRIEND,)) as server:
        yield server


def session(server: Serving, **options: Any) -> int:
    """The status that the request for a session gets: 101 where it is open."""
    from websockets.exceptions import InvalidStatus

    answer: Any = None
    try:
        with websockets_sync.connect(f"ws://127.0.0.1:{server.port}/v1/realtime", **options) as connection:
            answer = json.loads(connection.recv(timeout=30))
    except InvalidStatus as refusal:
        assert set(json.loads(refusal.response.body or b"")["error"]) == {"message", "type", "param", "code"}  # noqa: PT017
        return refusal.response.status_code
    assert answer["type"] == "session.created"
    return 101


# ---- Keys ------------------------------------------------------------------------------------------------------------


def test_a_key_opens_and_another_one_does_not(locked: Serving) -> None:
    for key in ("one", "two"):
        with locked.client(key) as client:
            assert client.audio.transcriptions.create(file=DIGITS, model="tiny").text == TEXT
    with locked.client("three") as client, pytest.raises(openai.AuthenticationError, match="send a key") as raised:
        client.models.list()
    assert (raised.value.code, raised.value.type) == ("invalid_api_key", "authentication_error")
    assert raised.value.response.headers["www-authenticate"] == "Bearer"
    for key in (b"on", b"onee", b"ONE", b"one two", b"\xfc", b"one,two"):
        assert locked.get("/v1/models", headers={"Authorization": b"Bearer " + key}).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200), ("/docs", 200), ("/openapi.json", 200), ("/metrics", 401), ("/v1/models", 401),
        ("/v1/models/tiny", 401), ("/nothing", 401), ("//health", 401),
    ],
)  # fmt: skip
def test_only_what_tells_nothing_is_open_without_a_key(locked: Serving, path: str, status: int) -> None:
    assert locked.get(path).status_code == status


def test_a_session_takes_a_key_as_header_or_subprotocol(locked: Serving) -> None:
    assert session(locked, additional_headers={"Authorization": "Bearer two"}) == 101
    assert session(locked, subprotocols=["realtime", "openai-insecure-api-key.one"]) == 101
    assert session(locked) == 401
    assert session(locked, subprotocols=["realtime", "openai-insecure-api-key.three"]) == 401
    assert session(locked, additional_headers={"Authorization": "Basic one"}) == 401


# ---- Origins ---------------------------------------------------------------------------------------------------------


def test_pages_of_others_are_refused_unless_they_are_named(locked: Serving, open_server: Serving) -> None:
    digits = {"file": ("a.wav", DIGITS.read_bytes())}
    for server, origin, status in (
        (open_server, ELSEWHERE, 403), (open_server, "null", 403), (open_server, open_server.url, 200),
        (open_server, "https://[", 403), (locked, FRIEND, 200), (locked, ELSEWHERE, 403), (locked, locked.url, 200),
    ):  # fmt: skip
        headers = {"Origin": origin, "Authorization": "Bearer one"}
        address = f"{server.url}/v1/audio/transcriptions"
        assert server.http.post(address, data={"model": "tiny"}, files=digits, headers=headers).status_code == status
        expected = 101 if status == 200 else 403
        assert session(server, origin=origin, additional_headers={"Authorization": "Bearer one"}) == expected


def test_named_pages_get_what_browsers_ask_for(locked: Serving) -> None:
    headers = {
        "Origin": FRIEND,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    answer = locked.http.options(f"{locked.url}/v1/audio/transcriptions", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    answer = locked.get("/v1/models", headers={"Origin": FRIEND})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, FRIEND)
    assert "x-warning" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in locked.get("/v1/models", headers={"Origin": ELSEWHERE}).headers


# ---- Models ----------------------------------------------------------------------------------------------------------


def test_every_model_is_listed_and_found_by_its_id(open_server: Serving) -> None:
    ids = ["tiny", "org/repo:file.gguf", "quick"]
    with open_server.client() as client:
        listed = client.models.list()
        assert [model.id for model in listed] == ids
        for one in ids:
            model = client.models.retrieve(one)
            assert (model.id, model.object, model.owned_by) == (one, "model", "pycrispasr")
            assert model.created > 1_700_000_000
            assert client.audio.transcriptions.create(file=DIGITS, model=one).text == TEXT
        with pytest.raises(openai.NotFoundError) as raised:
            client.models.retrieve("org/repo")
        assert raised.value.code == "model_not_found"


def test_a_model_is_loaded_when_it_is_asked_for_and_unloaded_when_nobody_does() -> None:
    with serving(["tiny", "other=tiny"], unload_after=0.2) as server:
        first, other = server.service.models
        assert other.model is None
        with server.client() as client:
            assert client.audio.transcriptions.create(file=DIGITS, model="other").text == TEXT
            wait_until(lambda: first.model is None and other.model is None)
            assert server.get("/health").status_code == 200
            assert 'pycrispasr_model_loaded{model="other"} 0.0' in server.get("/metrics").text
            assert client.audio.transcriptions.create(file=DIGITS, model="other").text == TEXT
            assert client.audio.transcriptions.create(file=DIGITS, model="tiny").text == TEXT


def test_a_model_that_somebody_uses_stays() -> None:
    with serving(unload_after=0.05) as server:
        with websockets_sync.connect(f"ws://127.0.0.1:{server.port}/v1/realtime") as connection:
            connection.send(bytes(48_000))
            served = server.service.models.first
            wait_until(lambda: served._users == 1 and served.model)
            served.unload_if_idle(0)
            assert served.model is not None
        wait_until(lambda: served.model is None)


def test_a_second_model_that_cannot_be_loaded_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with serving(["tiny", f"broken={tmp_path / 'broken.gguf'}", "gone=/nowhere/x.gguf"]) as server:
        for name in ("broken", "gone"):
            answer = server.post(model=name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_not_loaded")
            assert "nowhere" not in answer.text
        assert server.post().json()["text"] == TEXT
        assert server.get("/health").status_code == 200


def test_nothing_is_served_before_the_first_model_is_ready(tmp_path: Path) -> None:
    with serving([str(tmp_path / "gone.gguf")], ready=False) as server:
        wait_until(lambda: server.service.models.first.failure)
        answer = server.get("/health")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
        assert server.post().status_code == 500


def test_while_the_first_model_is_loaded_clients_are_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from pycrispasr.server import served

    go, real = threading.Event(), served._open

    def slow(*arguments: Any) -> Any:
        go.wait()
        return real(*arguments)

    monkeypatch.setattr(served, "_open", slow)
    with serving(ready=False) as server:
        for answer in (server.get("/health"), server.post()):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
            assert int(answer.headers["retry-after"]) > 0
        assert session(server) == 503
        go.set()
        wait_until(lambda: server.get("/health").status_code == 200)
        assert server.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("names", "told"), [([], "no model to serve"), (["tiny", "tiny"], "two models called 'tiny'")]
)  # fmt: skip
def test_models_must_be_named_and_differ(names: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        create_app(names)


@pytest.mark.parametrize(
    "options",
    [
        {"max_upload": 0}, {"max_seconds": 0}, {"timeout": -1}, {"parallel": 0}, {"queue": -1}, {"sessions": 0},
        {"unload_after": 0}, {"api_keys": ("",)}, {"api_keys": ("two words",)}, {"api_keys": ("schlüssel",)},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="key" if "api_keys" in options else next(iter(options))):
        ServerOptions(**options)


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        create_app(["tiny"], colour="red")  # type: ignore[call-arg]


# ---- Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1", 404), ("POST", "/v1/models", 405),
        ("GET", "/v1/audio/transcriptions", 405),
        ("DELETE", "/health", 405), ("TRACE", "/v1/models", 405), ("GET", "/v1/models/%00%ff", 404),
        ("POST", "/v1/audio/translations", 400), ("GET", "/v1/realtime", 404),
    ],
)  # fmt: skip
def test_every_error_has_the_one_shape(open_server: Serving, method: str, path: str, status: int) -> None:
    answer = open_server.http.request(method, open_server.url + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    if status == 405:
        assert answer.headers["allow"]


def test_the_description_knows_no_other_errors(open_server: Serving) -> None:
    described = open_server.get("/openapi.json").json()
    assert "422" not in json.dumps(described["paths"])
    assert {"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/models", "/health", "/metrics"} <= set(
        described["paths"]
    )
    post = described["paths"]["/v1/audio/transcriptions"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    from openai.types.audio import transcription_create_params as params

    known = params.TranscriptionCreateParamsBase.__annotations__ | {"stream": bool}
    assert {name.removesuffix("[]") for name in form["properties"]} == set(known)
    assert form["required"] == ["file", "model"]


def test_the_page_is_these_three_files_and_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    for name in ("index.html", "app.js", "style.css", "secret.txt"):
        (page / name).write_text(name)
    monkeypatch.setattr("pycrispasr.server.app.resources.files", lambda _: tmp_path)
    with serving(api_keys=("one",)) as server:
        for path, name, kind in (
            ("/", "index.html", "text/html"), ("/app.js", "app.js", "text/javascript"),
            ("/style.css", "style.css", "text/css"),
        ):  # fmt: skip
            answer = server.get(path)
            assert (answer.status_code, answer.text) == (200, name)
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/secret.txt", "/page/secret.txt", "/index.html", "/%2e%2e/settings.py"):
            assert server.get(path).status_code == 401


# ---- What it tells ---------------------------------------------------------------------------------------------------


def test_metrics_count_and_measure(tiny_metrics: str) -> None:
    families = {family.name: family for family in prometheus.text_string_to_metric_families(tiny_metrics)}
    histograms = {name for name, family in families.items() if family.type == "histogram"}
    assert histograms == {
        "pycrispasr_request_seconds", "pycrispasr_queue_seconds", "pycrispasr_audio_seconds",
        "pycrispasr_real_time_factor_ratio", "pycrispasr_first_token_seconds", "pycrispasr_final_text_seconds",
    }  # fmt: skip
    assert all(re.search(r"_(seconds|ratio|requests|sessions|loaded)(_created)?$", name) for name in families)

    def value(name: str, **labels: str) -> float:
        (sample,) = (
            one for family in families.values() for one in family.samples
            if one.name == name and labels.items() <= one.labels.items()
        )  # fmt: skip
        return sample.value

    route = "/v1/audio/transcriptions"
    assert value("pycrispasr_requests_total", route=route, status="200") == 2
    assert value("pycrispasr_requests_total", route=route, status="404") == 1
    assert value("pycrispasr_audio_seconds_sum", route=route) == pytest.approx(2 * 2.98, abs=0.1)
    assert value("pycrispasr_queue_seconds_count") == 2
    assert value("pycrispasr_first_token_seconds_count") == 2
    assert value("pycrispasr_real_time_factor_ratio_count") == 2
    assert value("pycrispasr_final_text_seconds_count", route=route) == 2
    assert value("pycrispasr_model_loaded", model="tiny") == 1
    assert value("pycrispasr_running_requests") == value("pycrispasr_waiting_requests") == 0


@pytest.fixture
def tiny_metrics() -> str:
    with serving() as server:
        server.post()
        server.post(stream="true")
        server.post(model="gone")
        wait_until(
            lambda: server.metric("pycrispasr_requests_total", route="/v1/audio/transcriptions", status="404") == 1
        )
        return str(server.get("/metrics").text)


def test_what_a_model_tells_of_itself_is_shown() -> None:
    class Told:
        running, waiting, sequences, tokens, audio_seconds, memory_bytes = 3, 2, 16, 700, 60.5, 10**9

    class Model:
        def stats(self) -> Told:
            return Told()

    class Served:
        def __init__(self, id: str, model: object) -> None:  # noqa: A002
            self.id, self.model = id, model

    shown = {
        (sample.name, sample.labels["model"]): sample.value
        for family in metrics._engines([Served("one", Model()), Served("idle", None), Served("old", object())])  # type: ignore[list-item]
        for sample in family.samples
    }
    assert shown == {
        ("pycrispasr_engine_running_segments", "one"): 3, ("pycrispasr_engine_waiting_segments", "one"): 2,
        ("pycrispasr_engine_sequences", "one"): 16, ("pycrispasr_engine_tokens_total", "one"): 700,
        ("pycrispasr_engine_audio_seconds_total", "one"): 60.5, ("pycrispasr_engine_memory_bytes", "one"): 1e9,
    }  # fmt: skip
    assert list(metrics._engines([])) == []


def test_two_servers_in_one_process_count_for_themselves() -> None:
    with serving() as one, serving() as other:
        one.post()
        wait_until(lambda: one.metric("pycrispasr_queue_seconds_count") == 1)
        assert other.metric("pycrispasr_queue_seconds_count") == 0


def test_the_log_has_a_line_for_a_request_and_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hush-hush"
    with serving(api_keys=(secret,)) as server:
        caplog.clear()
        headers = {"Authorization": f"Bearer {secret}"}
        address = f"{server.url}/v1/audio/transcriptions"
        fields = {"model": "tiny", "prompt": "my-prompt"}
        for content in (DIGITS.read_bytes(), b"my-content"):
            files = {"file": ("my-name.wav", content)}
            answer = server.http.post(f"{address}?my-query", data=fields, files=files, headers=headers)
        monkeypatch.setattr("pycrispasr.server.transcriptions.formats.to_txt", lambda _: 1 / 0)
        failed = server.http.post(
            address,
            data={**fields, "response_format": "text"},
            files={"file": ("a.wav", DIGITS.read_bytes())},
            headers=headers,
        )
        server.get("/my-path")
        wait_until(lambda: server.metric("pycrispasr_requests_total", route="other", status="401") == 1)
    lines = [record for record in caplog.records if record.name == "pycrispasr.server"]
    requests = [record for record in lines if getattr(record, "fields", {}).get("route") not in (None, "/health")]
    assert [record.fields["status"] for record in requests] == [200, 400, 500, 401]  # type: ignore[attr-defined]
    first = requests[0].fields  # type: ignore[attr-defined]
    assert (first["method"], first["route"]) == ("POST", "/v1/audio/transcriptions")
    assert first["audio_seconds"] == pytest.approx(2.98, abs=0.01)
    assert first["seconds"] > 0
    assert requests[1].fields["request"] == answer.headers["x-request-id"]  # type: ignore[attr-defined]
    assert failed.json()["error"]["message"] == "the server failed: its log says where"
    (failure,) = (record.getMessage() for record in lines if record.levelname == "ERROR")
    assert "ZeroDivisionError" in failure
    assert failed.headers["x-request-id"] in failure
    written = "\n".join(
        f(record) for record in lines for f in (logging.Formatter().format, reporting.JsonFormatter().format)
    )
    for told in (secret, "my-prompt", "my-content", "my-name", "my-query", "my-path", "four zero", "nine two"):
        assert told not in written
    for record in lines:
        assert {"time", "level", "logger"} <= json.loads(reporting.JsonFormatter().format(record)).keys()

"""Requests and events that nobody thought of: every answer is one that the description has, and no session breaks."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .serving import SAMPLES, Serving, serving, wait_until

websockets_sync = pytest.importorskip("websockets.sync.client")


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(max_upload=3e6, api_keys=("key",)) as server:
        yield server


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: Serving, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"), "run", f"{server.url}/openapi.json",
            "-H", "Authorization: Bearer key",
            "--max-examples", "200", "--suppress-health-check", "all",
            # What it sends as a file is no sound, and there is no translation: valid forms may be refused.
            "--exclude-checks", "positive_data_acceptance",
        ],
        cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "6 selected" in done.stdout
    assert server.metric("pycrispasr_requests_total", route="/v1/audio/transcriptions", status="500") == 0
    assert server.service.admission.idle


TEXTS = st.text(max_size=20) | st.text(st.characters(codec=None), max_size=5)  # with lone surrogates, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
SOUNDS = st.binary(max_size=4000).map(lambda content: base64.b64encode(content).decode())
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "format": st.fixed_dictionaries(
            {"type": st.sampled_from(["audio/pcm", "audio/pcmu", "audio/pcma", "x"])},
            optional={"rate": st.sampled_from([16000, 24000, 8000, 0])},
        )
        | VALUES,
        "turn_detection": st.none()
        | st.fixed_dictionaries(
            {"type": st.sampled_from(["server_vad", "semantic_vad"])},
            optional={"silence_duration_ms": st.integers(-1, 2000), "threshold": VALUES},
        )
        | VALUES,
        "transcription": st.fixed_dictionaries(
            {},
            optional={
                "model": st.sampled_from(["tiny", "", "x"]),
                "language": st.sampled_from(["en", "fr"]),
                "prompt": TEXTS,
                "delay": st.sampled_from(["low", "xhigh"]),
            },
        )
        | VALUES,
        "noise_reduction": VALUES,
    },
)
EVENTS = st.one_of(
    st.builds(lambda audio: {"type": "input_audio_buffer.append", "audio": audio}, SOUNDS | VALUES),
    st.sampled_from([{"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}]),
    st.builds(
        lambda input, include, id: {  # noqa: A006
            "type": "session.update",
            "session": {"type": "transcription", "audio": {"input": input}, "include": include},
            "event_id": id,
        },
        INPUTS,
        st.sampled_from([[], ["item.input_audio_transcription.logprobs"]]) | VALUES,
        VALUES,
    ),
    VALUES,
)
MESSAGES = st.lists(EVENTS.map(json.dumps) | st.binary(max_size=4000) | st.text(max_size=50), max_size=12)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES)
def test_no_event_breaks_a_session(server: Serving, messages: list[str | bytes]) -> None:
    headers = {"Authorization": "Bearer key"}
    with websockets_sync.connect(f"ws://127.0.0.1:{server.port}/v1/realtime", additional_headers=headers) as connection:
        for message in messages:
            connection.send(message)
        for event in (
            {"type": "input_audio_buffer.clear"},
            {
                "type": "session.update",
                "session": {
                    "type": "transcription",
                    "audio": {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16000}}},
                },
            },
        ):
            connection.send(json.dumps(event))
        connection.send((SAMPLES / "long.raw").read_bytes()[:32_000])
        connection.send('{"type": "input_audio_buffer.commit"}')
        texts: dict[Any, str] = {}
        items: list[Any] = []
        while not items or items[-1] not in texts or not texts[items[-1]].startswith("hello"):
            event = json.loads(connection.recv(timeout=30))
            if event["type"] == "input_audio_buffer.committed":
                items.append(event["item_id"])
            if event["type"].endswith(".completed"):
                texts[event["item_id"]] = event["transcript"]
            assert event.get("error", {}).get("type") != "server_error", event
    wait_until(lambda: server.service.admission.idle)

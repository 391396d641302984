"""`WS /v1/realtime`: sound in, text out, in OpenAI's events; and whatever else a client may send."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from .serving import SAMPLES, Serving, openai, serving, wait_until

websockets = pytest.importorskip("websockets")

RECORDINGS = sorted(path for path in SAMPLES.iterdir() if path.suffix in (".wav", ".mp3"))
DIGITS = SAMPLES / "digits.wav"
PCM_24 = {"type": "audio/pcm", "rate": 24000}
PCM_16 = {"type": "audio/pcm", "rate": 16000}
VAD = {"type": "server_vad", "silence_duration_ms": 500}
TRANSCRIPTION = "conversation.item.input_audio_transcription"
EMPTY = "input_audio_buffer_commit_empty"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def strict() -> Iterator[Serving]:
    with serving(strict=True) as server:
        yield server


def text_of(path: Path) -> str:
    return path.with_suffix(".txt").read_text().strip()


def sound(path: Path, format: dict[str, Any], *, silence: float = 0) -> bytes:  # noqa: A002
    """A recording as a client sends it, with silence behind it."""
    rate = format.get("rate", 8000)
    samples, own = soundfile.read(path, always_2d=True)
    samples = np.concatenate([samples.mean(axis=1), np.zeros(round(silence * own))])
    samples = soxr.resample(samples, own, rate, quality="HQ")
    subtype = {"audio/pcm": "PCM_16", "audio/pcmu": "ULAW", "audio/pcma": "ALAW"}[format["type"]]
    file = io.BytesIO()
    soundfile.write(
        file, samples, rate, format="RAW", subtype=subtype, endian="LITTLE" if subtype == "PCM_16" else "FILE"
    )
    return file.getvalue()


class Talk:
    """A client of a session, and the events that came."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def update(self, **input: Any) -> dict[str, Any]:  # noqa: A002
        """Sets fields of the audio's input."""
        include = input.pop("include", [])
        session = {"type": "transcription", "audio": {"input": input}, "include": include}
        await self.send("session.update", session=session)
        return await self.until("session.updated")

    async def append(self, content: bytes, size: int = 4800, *, binary: bool = False) -> None:
        for first in range(0, len(content), size):
            part = content[first : first + size]
            if binary:
                await self.socket.send(part)
            else:
                await self.send("input_audio_buffer.append", audio=base64.b64encode(part).decode())

    async def receive(self) -> dict[str, Any]:
        self.events.append(json.loads(await asyncio.wait_for(self.socket.recv(), 30)))
        return self.events[-1]

    async def until(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of these kinds."""
        while (event := await self.receive())["type"] not in kinds:
            pass
        return event

    async def error(self) -> dict[str, Any]:
        """The next event, which must be an error."""
        event = await self.receive()
        assert event["type"] == "error", event
        assert {"message", "type", "param", "code", "event_id"} == set(event["error"])
        return event["error"]

    def of(self, kind: str, item: str | None = None) -> list[dict[str, Any]]:
        return [one for one in self.events if one["type"] == kind and item in (None, one["item_id"])]

    def deltas(self, item: str) -> str:
        return "".join(event["delta"] for event in self.of(f"{TRANSCRIPTION}.delta", item))


@contextlib.asynccontextmanager
async def talk(server: Serving, query: str = "?intent=transcription", **options: Any) -> AsyncIterator[Talk]:
    async with websockets.connect(f"ws://127.0.0.1:{server.port}/v1/realtime{query}", **options) as socket:
        client = Talk(socket)
        await client.until("session.created")
        yield client


def run(server: Serving, story: Callable[[Talk], Awaitable[None]], **options: Any) -> Talk:
    """What happens between a client and the server."""

    async def tell() -> Talk:
        async with talk(server, **options) as client:
            await story(client)
        return client

    return asyncio.run(tell())


# ---- Utterances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_what_is_committed_becomes_the_text_of_the_recording(server: Serving, path: Path) -> None:
    async def story(client: Talk) -> None:
        await client.update(turn_detection=None, format=PCM_24)
        await client.append(sound(path, PCM_24))
        await client.send("input_audio_buffer.commit")
        committed = await client.until("input_audio_buffer.committed")
        completed = await client.until(f"{TRANSCRIPTION}.completed")
        assert completed["transcript"] == text_of(path) == client.deltas(completed["item_id"])
        assert completed["item_id"] == committed["item_id"]
        assert committed["previous_item_id"] is None
        assert completed["usage"] == {
            "type": "duration", "seconds": pytest.approx(soundfile.info(path).duration, abs=0.1)
        }  # fmt: skip

    run(server, story)


@pytest.mark.parametrize(
    ("form", "binary"),
    [
        (PCM_24, False), (PCM_24, True), (PCM_16, False), (PCM_16, True),
        ({"type": "audio/pcmu"}, True), ({"type": "audio/pcma"}, False),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("turn", [VAD, None], ids=["vad", "commit"])
def test_every_format_is_heard(server: Serving, form: dict[str, Any], binary: bool, turn: Any) -> None:
    async def story(client: Talk) -> None:
        updated = await client.update(turn_detection=turn, format=form)
        assert updated["session"]["audio"]["input"]["format"] == form
        await client.append(sound(DIGITS, form, silence=1), 1600, binary=binary)
        if turn is None:
            await client.send("input_audio_buffer.commit")
        completed = await client.until(f"{TRANSCRIPTION}.completed")
        assert completed["transcript"] == text_of(DIGITS) == client.deltas(completed["item_id"])

    run(server, story)


def test_silence_ends_an_utterance_and_the_events_come_in_order(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.append(sound(DIGITS, PCM_24, silence=1) + sound(SAMPLES / "hello.wav", PCM_24, silence=1))
        for path in (DIGITS, SAMPLES / "hello.wav"):
            completed = await client.until(f"{TRANSCRIPTION}.completed")
            assert completed["transcript"] == text_of(path)

    client = run(server, story)
    started, stopped, committed, completed = (
        client.of(kind) for kind in (
            "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
            f"{TRANSCRIPTION}.completed",
        )
    )  # fmt: skip
    items = [event["item_id"] for event in started]
    assert len(set(items)) == 2
    assert items == [event["item_id"] for event in stopped] == [event["item_id"] for event in completed]
    assert [event["previous_item_id"] for event in committed] == [None, items[0]]
    for item, starts, stops in zip(items, started, stopped, strict=True):
        kinds = [event["type"].rpartition(".")[2] for event in client.events if event.get("item_id") == item]
        assert kinds[0] == "speech_started"
        assert kinds[-3:] == ["speech_stopped", "committed", "completed"]
        assert {"delta"} <= set(kinds[1:-3]) <= {"delta", "tentative"}
        assert starts["audio_start_ms"] < stops["audio_end_ms"]
    assert stopped[0]["audio_end_ms"] < started[1]["audio_start_ms"]
    assert len({event["event_id"] for event in client.events}) == len(client.events)
    assert all(event["content_index"] == 0 for event in client.of(f"{TRANSCRIPTION}.delta"))


def test_speech_without_a_pause_is_divided_and_no_word_is_lost(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.update(turn_detection={"type": "server_vad", "silence_duration_ms": 5000})
        content = sound(SAMPLES / "long.wav", PCM_24)
        await client.append(content * 2 + bytes(2 * 24000 * 6), 48_000)
        words: list[str] = []
        while len(words) < 2 * len(text_of(SAMPLES / "long.wav").split()):
            completed = await client.until(f"{TRANSCRIPTION}.completed")
            assert completed["transcript"] == client.deltas(completed["item_id"])
            words += completed["transcript"].split()
        assert words == text_of(SAMPLES / "long.wav").split() * 2
        while not client.of("input_audio_buffer.speech_stopped"):
            await client.receive()

    client = run(server, story)
    items = [event["item_id"] for event in client.of("input_audio_buffer.committed")]
    assert len(items) >= 2
    assert [event["item_id"] for event in client.of(f"{TRANSCRIPTION}.completed")] == items
    assert [event["previous_item_id"] for event in client.of("input_audio_buffer.committed")] == [None, *items[:-1]]


def test_several_items_may_be_under_way(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.update(turn_detection=None)
        for path in RECORDINGS:
            await client.append(sound(path, PCM_24))
            await client.send("input_audio_buffer.commit")
        texts = {}
        for _ in RECORDINGS:
            completed = await client.until(f"{TRANSCRIPTION}.completed")
            texts[completed["item_id"]] = completed["transcript"]
        items = [event["item_id"] for event in client.of("input_audio_buffer.committed")]
        assert [texts[item] for item in items] == list(map(text_of, RECORDINGS))
        before = [event["previous_item_id"] for event in client.of("input_audio_buffer.committed")]
        assert before == [None, *items[:-1]]

    run(server, story)


def test_a_commit_ends_an_utterance_that_goes_on(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.append(sound(DIGITS, PCM_24))
        await client.send("input_audio_buffer.commit")
        assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == text_of(DIGITS)
        await client.append(sound(SAMPLES / "hello.wav", PCM_24))
        await client.send("input_audio_buffer.commit")
        assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == "hello"

    client = run(server, story)
    started = client.of("input_audio_buffer.speech_started")
    assert started[1]["audio_start_ms"] > soundfile.info(DIGITS).duration * 1000  # of all audio, not of this utterance


def test_probabilities_come_with_the_final_text(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.update(turn_detection=None, include=["item.input_audio_transcription.logprobs"])
        await client.append(sound(DIGITS, PCM_24))
        await client.send("input_audio_buffer.commit")
        completed = await client.until(f"{TRANSCRIPTION}.completed")
        assert "".join(one["token"] for one in completed["logprobs"]).strip() == text_of(DIGITS)
        assert all(one["logprob"] < 0 for one in completed["logprobs"])

    run(server, story)


def test_tentative_text_comes_as_often_as_was_asked_for(server: Serving) -> None:
    def looks(delay: str) -> int:
        async def story(client: Talk) -> None:
            await client.update(turn_detection=None, transcription={"delay": delay})
            content = sound(DIGITS, PCM_24)
            for first in range(0, len(content), 24_000):
                await client.append(content[first : first + 24_000], 24_000)
                while delay == "low" and first == 48_000 and not client.of("pycrispasr.tentative"):
                    await client.receive()  # more audio in the queue would go before it
            await client.send("input_audio_buffer.commit")
            assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == text_of(DIGITS)

        return len(run(server, story).of("pycrispasr.tentative"))

    assert looks("xhigh") == 0
    assert looks("low") > 0


def test_what_was_shown_stays_where_the_final_text_differs() -> None:
    from pycrispasr import Segment
    from pycrispasr.server.realtime_stream import Item

    item = Item()
    assert item.hear("one two") == "one two"
    assert item.hear("one two three") == " three"
    assert item.hear("one two") == ""
    assert item.end_segment(Segment(0, 1, "won two three four", (), "ok")) == " four"
    assert item.hear("five") == " five"
    assert item.end_segment(Segment(1, 2, "five six", (), "ok")) == " six"
    assert (item.shown, item.transcript) == ("one two three four five six", "won two three four five six")


# ---- OpenAI's client -------------------------------------------------------------------------------------------------


def test_openai_s_client_holds_a_session(server: Serving) -> None:
    async def story() -> None:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        async with client, client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            await connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {"input": {"format": PCM_24, "turn_detection": VAD, "transcription": {"language": "en"}}},
                }
            )
            content = sound(DIGITS, PCM_24, silence=1)
            for first in range(0, len(content), 9600):
                await connection.input_audio_buffer.append(
                    audio=base64.b64encode(content[first : first + 9600]).decode()
                )
            deltas = ""
            async for event in connection:
                if event.type == f"{TRANSCRIPTION}.delta":
                    deltas += event.delta
                if event.type == f"{TRANSCRIPTION}.completed":
                    assert event.transcript == deltas == text_of(DIGITS)
                    return

    asyncio.run(story())


# ---- What clients get wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ("no JSON", None), ("[]", None), ("1", None), ("", None), ("[" * 100_000, None), ("{}", "type"),
        ('{"type": 1}', "type"), ('{"type": ["a"]}', "type"), ('{"type": "response.create"}', "type"),
        ('{"type": "input_audio_buffer.append"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": 7}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "*"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "\\ud800"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "audio"),
        (b"\0", "audio"), ('{"type": "session.update"}', None), ('{"type": "session.update", "session": []}', None),
        ('{"type": "session.update", "session": {}}', "type"),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "type"),
        ('{"type": "session.update", "session": {"type": "transcription", "include": ["x"]}}', "include"),
    ],
    ids=lambda value: str(value)[:70],
)  # fmt: skip
def test_a_wrong_event_is_an_error_and_the_session_goes_on(server: Serving, sent: str | bytes, param: Any) -> None:
    async def story(client: Talk) -> None:
        await client.socket.send(sent)
        error = await client.error()
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        await client.append(sound(SAMPLES / "hello.wav", PCM_24, silence=1))
        assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == "hello"

    run(server, story)


@pytest.mark.parametrize(
    "given",
    [
        {"format": {"type": "audio/pcm", "rate": 8000}}, {"format": {"type": "audio/pcmu", "rate": 24000}},
        {"format": {"type": "audio/opus"}}, {"transcription": {"model": "whisper-1"}},
        {"transcription": {"language": "fr"}}, {"transcription": {"languages": ["fr"]}},
        {"transcription": {"delay": "never"}}, {"turn_detection": {"type": "semantic_vad"}},
        {"turn_detection": {"type": "server_vad", "silence_duration_ms": -1}}, {"format": "pcm16"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_change_nothing(server: Serving, given: dict[str, Any]) -> None:
    async def story(client: Talk) -> None:
        before = client.events[0]["session"]
        session = {"type": "transcription", "audio": {"input": given}}
        await client.send("session.update", session=session, event_id="mine")
        assert (await client.error())["event_id"] == "mine"
        assert (await client.update())["session"] == before

    run(server, story)


def test_an_update_changes_only_what_it_has(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.update(format=PCM_16, transcription={"language": "en"}, turn_detection=None)
        session = (await client.update(transcription={"delay": "low"}))["session"]
        assert session["audio"]["input"] == {
            "format": PCM_16, "transcription": {"model": "tiny", "delay": "low"}, "noise_reduction": None,
            "turn_detection": None,
        }  # fmt: skip

    run(server, story)


@pytest.mark.parametrize(
    "given",
    [
        {"noise_reduction": {"type": "near_field"}}, {"transcription": {"prompt": "numbers"}}, {"volume": 11},
        {"transcription": {"keywords": ["one"]}}, {"turn_detection": {"type": "server_vad", "threshold": 0.9}},
        {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_effect_are_warned_of_or_refused(
    server: Serving, strict: Serving, given: dict[str, Any]
) -> None:
    async def warned(client: Talk) -> None:
        await client.update(**given)
        assert "has no effect" in (await client.until("pycrispasr.warning"))["message"]

    async def refused(client: Talk) -> None:
        await client.send("session.update", session={"type": "transcription", "audio": {"input": given}})
        assert "has no effect" in (await client.error())["message"]

    run(server, warned)
    run(strict, refused)


def test_nothing_cannot_be_committed(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.send("input_audio_buffer.commit")
        assert (await client.error())["code"] == EMPTY
        await client.append(bytes(48_000))  # a second in which nobody speaks
        await client.send("input_audio_buffer.commit")
        assert (await client.error())["code"] == EMPTY
        await client.update(turn_detection=None)
        await client.append(b"")
        await client.send("input_audio_buffer.commit")
        assert (await client.error())["code"] == EMPTY

    run(server, story)


def test_a_commit_of_a_few_samples_comes_to_an_end(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.update(turn_detection=None, format=PCM_16)
        for count in (1, 10, 160):
            await client.append(bytes(2 * count))
            await client.send("input_audio_buffer.commit")
            await client.until(f"{TRANSCRIPTION}.completed", f"{TRANSCRIPTION}.failed")

    run(server, story)


def test_what_is_cleared_is_never_told(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        for turn in (VAD, None):
            await client.update(turn_detection=turn)
            await client.append(sound(DIGITS, PCM_24))
            await client.send("input_audio_buffer.clear")
            await client.until("input_audio_buffer.cleared")
            await client.append(sound(SAMPLES / "hello.wav", PCM_24))
            await client.send("input_audio_buffer.commit")
            assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == "hello"

    run(server, story)


def test_settings_wait_until_what_was_sent_is_committed(server: Serving) -> None:
    async def story(client: Talk) -> None:
        await client.update(turn_detection=None)
        await client.append(sound(DIGITS, PCM_24))
        await client.send("session.update", session={"type": "transcription", "audio": {"input": {"format": PCM_16}}})
        error = await client.until("error")
        assert "commit or clear" in error["error"]["message"]
        await client.send("input_audio_buffer.commit")
        assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == text_of(DIGITS)
        await client.update(format=PCM_16, turn_detection=VAD)
        await client.append(sound(DIGITS, PCM_16))
        await client.update(format=PCM_24)  # ends the utterance
        assert (await client.until(f"{TRANSCRIPTION}.completed"))["transcript"] == text_of(DIGITS)

    run(server, story)


# ---- Places ----------------------------------------------------------------------------------------------------------


def test_a_session_that_breaks_off_frees_its_place(server: Serving) -> None:
    for binary in (True, False):

        async def story(client: Talk, binary: bool = binary) -> None:
            await client.append(sound(SAMPLES / "long.wav", PCM_24), binary=binary)
            assert server.service.admission.sessions == 1
            client.socket.transport.abort()

        with contextlib.suppress(websockets.ConnectionClosed):
            run(server, story)
        wait_until(lambda: server.service.admission.sessions == 0)


def test_who_finds_too_many_sessions_is_told_to_come_again() -> None:
    async def two(server: Serving) -> Any:
        async with talk(server):
            with pytest.raises(websockets.InvalidStatus) as raised:
                async with talk(server):
                    pass
            return raised.value.response

    with serving(sessions=1) as server:
        answer = asyncio.run(two(server))
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert json.loads(answer.body)["error"]["code"] == "rate_limit_exceeded"


def test_a_model_that_there_is_not_is_refused_at_once(server: Serving) -> None:
    with pytest.raises(websockets.InvalidStatus) as raised:
        run(server, lambda client: asyncio.sleep(0), query="?model=whisper-1")
    assert raised.value.response.status_code == 404
    assert json.loads(raised.value.response.body)["error"]["code"] == "model_not_found"


def test_a_session_without_messages_is_closed() -> None:
    async def story(client: Talk) -> None:
        with pytest.raises(websockets.ConnectionClosedOK):
            await client.receive()

    with serving(timeout=0.2) as server:
        run(server, story)


def test_g711_is_decoded_as_libsndfile_does() -> None:
    from pycrispasr.server.realtime import _samples

    every = bytes(range(256))
    for kind, subtype in (("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")):
        expected, _ = soundfile.read(
            io.BytesIO(every), dtype="int16", format="RAW", subtype=subtype, samplerate=8000, channels=1
        )
        np.testing.assert_array_equal(_samples(every, kind), expected)

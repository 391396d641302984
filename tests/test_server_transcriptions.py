"""`POST /v1/audio/transcriptions` by OpenAI's own client: what it is asked for it gives, or it says why not."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pycrispasr import Model

from .serving import SAMPLES, Serving, openai, serving, transcriptions

RECORDINGS = sorted(path for path in SAMPLES.iterdir() if path.suffix in (".wav", ".mp3"))
DIGITS = SAMPLES / "digits.wav"
TEXT = (SAMPLES / "digits.txt").read_text().strip()


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    with server.client() as client:
        yield client


# ---- Formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_a_recording_becomes_its_text(client: Any, path: Any) -> None:
    with path.open("rb") as file:
        answer = client.audio.transcriptions.create(file=file, model="tiny")
    assert answer.text == path.with_suffix(".txt").read_text().strip()
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == pytest.approx(soundfile.info(path).duration, abs=0.1)
    assert answer.logprobs is None


def test_the_async_client_gets_the_same(server: Serving) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            calls = [client.audio.transcriptions.create(file=DIGITS, model="tiny") for _ in range(3)]
            return await asyncio.gather(*calls)

    assert [answer.text for answer in asyncio.run(ask())] == [TEXT] * 3


@pytest.mark.parametrize("kind", ["text", "srt", "vtt"])
def test_texts_and_subtitles_are_those_of_the_library(client: Any, tiny: Model, kind: str) -> None:
    answer = client.audio.transcriptions.create(file=SAMPLES / "long.wav", model="tiny", response_format=kind)
    transcript = tiny.transcribe(SAMPLES / "long.wav")
    expected = {"text": transcript.text + "\n", "srt": transcript.to_srt(), "vtt": transcript.to_vtt()}
    assert answer == expected[kind]


@pytest.mark.parametrize(
    ("granularities", "has_segments", "has_words"),
    [([], True, False), (["segment"], True, False), (["word"], False, True), (["word", "segment"], True, True)],
)
def test_verbose_json_has_the_segments_and_words_that_were_asked_for(
    client: Any, tiny: Model, granularities: list[Any], has_segments: bool, has_words: bool
) -> None:
    answer = client.audio.transcriptions.create(
        file=DIGITS, model="tiny", response_format="verbose_json", timestamp_granularities=granularities
    )
    transcript = tiny.transcribe(DIGITS, word_timestamps=True)
    assert (answer.text, answer.language, answer.task) == (TEXT, "english", "transcribe")
    assert answer.duration == pytest.approx(transcript.duration)
    assert answer.usage.seconds == pytest.approx(transcript.duration, abs=0.001)
    assert (answer.segments is not None, answer.words is not None) == (has_segments, has_words)
    for got, expected in zip(answer.segments or (), transcript.segments, strict=has_segments):
        assert (got.id, got.seek, got.start, got.end, got.text) == (0, 0, expected.start, expected.end, expected.text)
        assert got.tokens == [token.id for token in expected.tokens]
        assert -1 < got.avg_logprob < 0
        assert (got.temperature, got.no_speech_prob) == (0, 0)
        assert 0 < got.compression_ratio < 2
    words = [(word.text, word.start, word.end) for segment in transcript.segments for word in segment.words or ()]
    assert [(word.word, word.start, word.end) for word in answer.words or ()] == (words if has_words else [])


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "AIFF"])
def test_other_containers_are_read(client: Any, kind: str) -> None:
    samples, rate = soundfile.read(DIGITS)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    assert client.audio.transcriptions.create(file=("a", file.getvalue()), model="tiny").text == TEXT


def test_a_film_is_read(server: Serving, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from .sound_files import ffmpeg

    samples, rate = soundfile.read(DIGITS, always_2d=True)
    answer = server.post(("film.mp4", ffmpeg(tmp_path / "film.mp4", [samples], rate, video=3)))
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == TEXT


def test_a_long_upload_goes_through_the_disk_to_the_same_text(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[Any] = []

    def check(upload: Any, limit: float) -> None:
        uploads.append(upload.read.__self__._rolled)
        real(upload, limit)

    real = transcriptions._check_length
    monkeypatch.setattr(transcriptions, "_check_length", check)
    samples, rate = soundfile.read(SAMPLES / "long.wav")
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="DOUBLE")
    assert file.tell() > 2**20
    answer = client.audio.transcriptions.create(file=("long.wav", file.getvalue()), model="tiny")
    assert answer.text == (SAMPLES / "long.txt").read_text().strip()
    assert uploads == [True]


# ---- Streams and probabilities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_the_deltas_of_a_stream_are_its_text(client: Any, path: Any) -> None:
    with client.audio.transcriptions.create(file=path, model="tiny", stream=True) as stream:
        *deltas, done = list(stream)
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == path.with_suffix(".txt").read_text().strip()
    assert done.usage.seconds == pytest.approx(soundfile.info(path).duration, abs=0.1)
    assert all(event.logprobs is None for event in [*deltas, done])


def test_the_async_client_reads_a_stream(server: Serving) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.audio.transcriptions.create(file=DIGITS, model="tiny", stream=True)
            return "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])

    assert asyncio.run(ask()) == TEXT


def test_probabilities_are_those_of_the_library(client: Any, tiny: Model) -> None:
    tokens = tiny.transcribe(DIGITS).segments[0].tokens
    answer = client.audio.transcriptions.create(file=DIGITS, model="tiny", include=["logprobs"])
    assert [one.token for one in answer.logprobs] == [token.text for token in tokens]
    assert [one.logprob for one in answer.logprobs] == pytest.approx([math.log(one.probability) for one in tokens])
    with client.audio.transcriptions.create(file=DIGITS, model="tiny", include=["logprobs"], stream=True) as stream:
        *deltas, done = list(stream)
    for logprobs in (answer.logprobs, [one for event in deltas for one in event.logprobs], done.logprobs):
        assert bytes(byte for one in logprobs for byte in map(int, one.bytes)).decode().strip() == TEXT
        assert [one.logprob for one in logprobs] == [one.logprob for one in answer.logprobs]


def test_a_stream_is_made_of_server_sent_events(server: Serving) -> None:
    answer = server.post(stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: {") and "\n" not in line for line in lines)


# ---- Fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"language": "en"}, {"language": "ZH"}, {"languages__": ["en", "zh"]}, {"language": ""}, {"prompt": ""},
        {"temperature": "0"}, {"temperature": "0.0"}, {"temperature": ""}, {"stream": "false"}, {"stream": "0"},
        {"response_format": "json"}, {"include": "logprobs"}, {"include__": "logprobs"}, {"chunking_strategy": "auto"},
        {"chunking_strategy": '{"type": "server_vad", "silence_duration_ms": 200}'},
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[silence_duration_ms]": "200"},
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.5"},
        {"response_format": "verbose_json", "timestamp_granularities__": ["word"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_done_is_done_without_a_word(server: Serving, fields: dict[str, Any]) -> None:
    answer = server.post(**fields)
    assert answer.status_code == 200, answer.text
    assert "x-warning" not in answer.headers
    assert answer.json()["text"] == TEXT


def test_silence_divides_a_recording(server: Serving) -> None:
    def segments(**fields: str) -> int:
        answer = server.post(
            ("long.wav", (SAMPLES / "long.wav").read_bytes()), response_format="verbose_json", **fields
        )
        return len(answer.json()["segments"])

    shorter = {"chunking_strategy[type]": "server_vad", "chunking_strategy[silence_duration_ms]": "150"}
    assert segments() == 1
    assert segments(**shorter) > segments(chunking_strategy="auto")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "numbers"}, "prompt has no effect"),
        ({"keywords__": ["one", "two"]}, "keywords has no effect"),
        ({"vad_filter": "true"}, "vad_filter has no effect: there is no such field"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 0.9}'}, "chunking_strategy.threshold"),
        ({"chunking_strategy": '{"type": "server_vad", "prefix_padding_ms": 9}'}, "prefix_padding_ms has no effect"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_warned_of(server: Serving, fields: dict[str, Any], told: str) -> None:
    answer = server.post(**fields)
    assert answer.status_code == 200
    assert answer.json()["text"] == TEXT
    assert told in answer.headers["x-warning"]
    *_, done = server.post(stream="true", **fields).text.strip().split("\n\n")
    assert told in json.loads(done.removeprefix("data: "))["warnings"][0]


def test_warnings_are_errors_where_the_server_is_strict() -> None:
    with serving(strict=True) as server:
        assert server.post().status_code == 200
        for fields in ({"prompt": "numbers"}, {"vad_filter": "true", "stream": "true"}):
            answer = server.post(**fields)
            assert answer.status_code == 400
            assert "has no effect" in answer.json()["error"]["message"]


def test_a_clipped_recording_is_warned_of(server: Serving) -> None:
    samples, rate = soundfile.read(DIGITS)
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples * 100, -1, 1), rate, format="WAV")
    assert "clipped" in server.post(("loud.wav", file.getvalue())).headers["x-warning"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "fr"}, "language"), ({"language": "english"}, "language"),
        ({"languages__": ["en", "fr"]}, "languages"),
        ({"temperature": "0.2"}, "temperature"), ({"temperature": "-1"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "warm"}, "temperature"), ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "xml"}, "response_format"), ({"known_speaker_names__": "Ann"}, "known_speaker_names"),
        ({"known_speaker_references__": "data:"}, "known_speaker_references"),
        ({"timestamp_granularities__": "word"}, "timestamp_granularities"),
        ({"response_format": "verbose_json", "timestamp_granularities__": "line"}, "timestamp_granularities"),
        ({"response_format": "text", "include__": "logprobs"}, "include"), ({"include__": "tokens"}, "include"),
        ({"stream": "true", "response_format": "srt"}, "stream"), ({"stream": "perhaps"}, "stream"),
        ({"chunking_strategy": "never"}, "chunking_strategy"), ({"chunking_strategy": "{}"}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "server_vad", "silence_duration_ms": 0}'}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "server_vad", "loudness": 1}'}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "\\ud800"}'}, "chunking_strategy"),
        ({"chunking_strategy": "[" * 5000}, "chunking_strategy"),
        ({"chunking_strategy[type]": ["server_vad", "server_vad"]}, "chunking_strategy"),
        ({"language": ["en", "zh"]}, "language"), ({"model": ""}, "model"), ({"model": ["tiny", "tiny"]}, "model"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_named(server: Serving, fields: dict[str, Any], param: str) -> None:
    answer = server.post(**fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


def test_openai_s_client_raises_its_own_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match=r"there is no model 'whisper-1' here") as raised:
        client.audio.transcriptions.create(file=DIGITS, model="whisper-1")
    assert (raised.value.code, raised.value.param, raised.value.type) == (
        "model_not_found", "model", "invalid_request_error",
    )  # fmt: skip
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.BadRequestError, match="no model here translates"),
    ):
        client.audio.translations.create(file=DIGITS, model="tiny")
    with pytest.raises(openai.BadRequestError, match="upload") as raised:
        client.audio.transcriptions.create(file=("a.wav", b"no sound at all"), model="tiny")
    assert (raised.value.param, raised.value.code) == ("file", "invalid_audio")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.audio.transcriptions.create(file=DIGITS, model="tiny", temperature=0.7, stream=True)


def test_a_file_is_needed_and_only_one(server: Serving) -> None:
    address = f"{server.url}/v1/audio/transcriptions"
    digits = ("digits.wav", DIGITS.read_bytes())
    forms: list[tuple[dict[str, Any], list[tuple[str, Any]], str]] = [
        ({"model": "tiny"}, [("other", digits)], "file is missing"),
        ({"model": "tiny", "file": "/etc/passwd"}, [("other", digits)], "file is missing"),
        ({"model": "tiny"}, [("file", digits), ("file", digits)], "Too many files"),
        ({}, [("file", digits)], "model is missing"),
        ({"model": "tiny"}, [("file", ("empty.wav", b""))], "upload"),
    ]
    for fields, files, told in forms:
        answer = server.http.post(address, data=fields, files=files)
        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]


def test_a_name_in_the_upload_opens_no_file(server: Serving) -> None:
    for name in ("/etc/passwd", "http://127.0.0.1:1/a.wav", "../../x.wav", "\u202e.wav"):
        assert server.post((name, DIGITS.read_bytes())).json()["text"] == TEXT
        answer = server.post((name, b"/etc/passwd"))
        assert answer.status_code == 400
        assert "passwd" not in answer.text


def test_a_damaged_recording_gives_its_text_and_a_warning(server: Serving) -> None:
    content = DIGITS.read_bytes()
    answer = server.post(("cut.wav", content[: len(content) * 2 // 3]))
    assert TEXT.startswith(answer.json()["text"])
    assert answer.json()["text"]
    assert "cut short" in answer.headers["x-warning"]

"""What a server takes, and no more: sizes, lengths, queues, times; and forms that are made to do harm."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile

from pycrispasr import AudioError, Job
from pycrispasr.audio import AudioReader

from .serving import SAMPLES, Serving, openai, send, serving, wait_until

DIGITS = (SAMPLES / "digits.wav").read_bytes()
TEXT = (SAMPLES / "digits.txt").read_text().strip()
ROUTE = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def minutes() -> bytes:
    """A recording that takes a while."""
    samples, rate = soundfile.read(SAMPLES / "long.wav", dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, np.tile(samples, 20), rate, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch, serving(max_upload=4e6, max_seconds=10) as server:
        patch.setattr("pycrispasr.server.reporting._LINGER", 0.01)
        yield server


def request(body: bytes, *headers: str, kind: str = "multipart/form-data; boundary=B") -> bytes:
    lines = [f"POST {ROUTE} HTTP/1.1", "Host: here", f"Content-Type: {kind}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def sized(body: bytes, **options: Any) -> bytes:
    return request(body, f"Content-Length: {len(body)}", **options)


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def error_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    """Status and message of an answer, which must have the one shape that there is."""
    error = json.loads(answer[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer[0], error["message"]


# ---- Forms -----------------------------------------------------------------------------------------------------------

FILE = part("file", DIGITS, '; filename="a.wav"')
MODEL = part("model", b"tiny")


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (sized(FILE + MODEL + b"--B--\r\n", kind="multipart/form-data"), 400, "boundary"),
        (sized(FILE + MODEL + b"--B--\r\n", kind="multipart/form-data; boundary=" + "B" * 500), 400, "form"),
        (sized(FILE + MODEL + b"--B--\r\n", kind="multipart/form-data; boundary=C"), 400, "form"),
        (sized(FILE + MODEL), 400, "form"),
        (sized(b""), 400, "form"),
        (sized(bytes(1000)), 400, "form"),
        (sized(b"--B\r\n" + b"x" * 100 + b"\r\n\r\n1\r\n--B--\r\n"), 400, "form"),
        (sized(b"--B\r\nA: b\r\n\r\n1\r\n--B--\r\n"), 400, "form"),
        (
            sized(b"--B\r\nContent-Disposition: form-data; name=" + b"x" * 10**6 + b"\r\n\r\n1\r\n--B--\r\n"),
            400,
            "form",
        ),
        (sized(b"--B\r\n" + b"A: b\r\n" * 10**5 + b"\r\n1\r\n--B--\r\n"), 400, "form"),
        (sized(part("prompt", b"x" * (2**20 + 1)) + FILE + b"--B--\r\n"), 400, "maximum size"),
        (sized(part("x", b"") * 1000 + FILE + b"--B--\r\n"), 400, "Too many fields"),
        (sized(FILE * 3 + b"--B--\r\n"), 400, "Too many files"),
        (sized(b'{"model": "tiny"}', kind="application/json"), 415, "send a form"),
        (sized(b"model=tiny", kind="application/x-www-form-urlencoded"), 415, "send a form"),
        (sized(FILE + b"--B--\r\n", kind="multipart/mixed; boundary=B"), 415, "send a form"),
        (sized(FILE + b"--B--\r\n", kind="multipart/form-data; boundary=B; charset=punycode"), 415, "UTF-8"),
        (request(b"", "Content-Length: 5000000"), 413, "4000000 bytes"),
        (request(b"", f"Content-Length: {10**15}"), 413, "4000000 bytes"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, (str, int)) else "",
)
def test_a_form_that_is_none_is_told_so(server: Serving, content: bytes, status: int, told: str) -> None:
    got, message = error_of(send(server.port, content))
    assert got == status
    assert told in message


@pytest.mark.parametrize(
    ("begun", "endless"),
    [
        (part("file", b"", '; filename="a.wav"')[:-2], b"A" * 65_536),
        (part("prompt", b"")[:-2], b"A" * 65_536),
        (b"--B\r\nContent-Disposition: form-data; name=x", b"A" * 65_536),
        (b"--B\r\n", b"A: b\r\n" * 1000),
        (b"", b"\r\n" * 1000),
        (b"", b"--B\r\n" * 1000),
    ],
)
def test_a_form_without_end_is_refused_before_its_end(server: Serving, begun: bytes, endless: bytes) -> None:
    chunked = f"{len(endless):x}\r\n".encode() + endless + b"\r\n"
    first = f"{len(begun):x}\r\n".encode() + begun + b"\r\n" if begun else b""
    before = refused(server)
    with contextlib.suppress(ConnectionError):  # the answer may be lost: nobody can wait for the end of this
        status, _ = error_of(send(server.port, request(first, "Transfer-Encoding: chunked"), endless=chunked))
        assert status in (400, 413)
    wait_until(lambda: refused(server) > before and server.service.admission.idle)


def test_giant_headers_are_refused(server: Serving) -> None:
    with contextlib.suppress(ConnectionError):
        assert send(server.port, request(b"", "X: " + "y" * 200_000))[0] == 400
    assert server.post().json()["text"] == TEXT


def test_an_upload_that_breaks_off_leaves_nothing_behind(server: Serving) -> None:
    before = gone(server)
    for length in (10, len(FILE) // 2, len(FILE)):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request(FILE[:length], "Content-Length: 1000000"))
            wait_until(lambda: server.service.admission.waiting == 1)
        wait_until(lambda: server.service.admission.idle)
    wait_until(lambda: gone(server) >= before + 3)


def test_an_upload_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycrispasr.server.forms._PATIENCE", 0.1)
    with serving() as server:
        answer = send(server.port, request(FILE[:100], "Content-Length: 1000000"))
        assert error_of(answer) == (408, "the upload is too slow: nothing came for 0.1 s")
    with serving(timeout=0.1) as server:
        answer = send(server.port, request(FILE[:100], "Content-Length: 100000"))
        assert error_of(answer) == (408, "the upload is too slow: it took 0.1 s")


# ---- Lengths ---------------------------------------------------------------------------------------------------------


def test_a_recording_that_is_too_long_is_refused_by_its_header(server: Serving) -> None:
    for fields in ({}, {"stream": "true"}):
        answer = server.post(("long.wav", (SAMPLES / "long.wav").read_bytes()), **fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "audio_too_long")
        assert "10 s" in answer.json()["error"]["message"]


def test_a_recording_whose_header_lies_is_refused_when_it_is_too_long(server: Serving) -> None:
    content = bytearray((SAMPLES / "long.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff" * 4  # as a pipe writes it
    answer = server.post(("pipe.wav", bytes(content)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "audio_too_long")


# ---- The queue -------------------------------------------------------------------------------------------------------


def refused(server: Serving) -> float:
    return sum(server.metric("pycrispasr_requests_total", route=ROUTE, status=status) for status in ("400", "413"))


def gone(server: Serving) -> float:
    """Requests whose client went away."""
    return server.metric("pycrispasr_requests_total", route=ROUTE, status="499")


def finished(server: Serving) -> float:
    return server.metric("pycrispasr_final_text_seconds_count", route=ROUTE)


@contextlib.contextmanager
def begun(server: Serving, content: bytes, **fields: str) -> Iterator[socket.socket]:
    """A request that is left alone; the client goes away with the block."""
    body = part("file", content, '; filename="a.wav"') + MODEL
    body += b"".join(part(name, value.encode()) for name, value in fields.items()) + b"--B--\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(sized(body))
        yield connection


def test_who_finds_the_queue_full_is_told_to_come_again(minutes: bytes) -> None:
    with serving(parallel=1, queue=1) as server:
        admission = server.service.admission
        with begun(server, minutes):
            wait_until(lambda: admission.running == 1)
            with begun(server, DIGITS):
                wait_until(lambda: admission.waiting == 1)
                with server.client() as client, pytest.raises(openai.RateLimitError) as raised:
                    client.audio.transcriptions.create(file=("a.wav", DIGITS), model="tiny")
                assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60
                assert (raised.value.code, raised.value.type) == ("rate_limit_exceeded", "rate_limit_error")
                metrics = server.get("/metrics").text
                assert "pycrispasr_running_requests 1.0" in metrics
                assert "pycrispasr_waiting_requests 1.0" in metrics
        wait_until(lambda: admission.idle)
        assert server.post().json()["text"] == TEXT


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["json", "stream"])
def test_a_client_that_goes_away_frees_its_place(minutes: bytes, fields: dict[str, str]) -> None:
    with serving(parallel=1) as server:
        admission = server.service.admission
        with begun(server, minutes, **fields) as connection:
            wait_until(lambda: admission.running == 1)
            if fields:
                assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
            with begun(server, minutes):
                wait_until(lambda: admission.waiting == 1)
            wait_until(lambda: admission.waiting == 0)
            assert gone(server) == 1
        wait_until(lambda: gone(server) == 2)
        assert admission.idle
        assert finished(server) == 0  # the work was cancelled, not done
        assert server.post().json()["text"] == TEXT


def test_openai_s_client_may_leave_a_stream(minutes: bytes) -> None:
    with serving() as server, server.client() as client:
        with client.audio.transcriptions.create(file=("a.wav", minutes), model="tiny", stream=True) as stream:
            assert next(iter(stream)).type == "transcript.text.delta"
        wait_until(lambda: gone(server) == 1)
        assert server.service.admission.idle
        assert finished(server) == 0


def test_what_takes_too_long_is_ended(minutes: bytes) -> None:
    with serving(timeout=0.3) as server:
        answer = server.post(("a.wav", minutes))
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "timeout"
        assert finished(server) == 0


def test_a_stream_that_takes_too_long_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(job: Job) -> Iterator[Any]:
        for token in tokens(job):
            yield token
            time.sleep(0.5)

    tokens = Job.tokens
    monkeypatch.setattr(Job, "tokens", slow)
    with serving(timeout=1.5) as server:
        answer = server.post(stream="true")
        *deltas, last = (json.loads(line.removeprefix("data: ")) for line in answer.text.strip().split("\n\n"))
        assert {event["type"] for event in deltas} == {"transcript.text.delta"}
        assert (last["type"], last["error"]["code"]) == ("error", "timeout")
        assert finished(server) == 0


def test_what_fails_behind_the_first_delta_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(job: Job) -> Iterator[Any]:
        yield from itertools.islice(tokens(job), 2)
        raise RuntimeError("a secret")

    tokens = Job.tokens
    monkeypatch.setattr(Job, "tokens", two)
    heard: list[str] = []
    with serving() as server, server.client() as client:
        stream = client.audio.transcriptions.create(file=("a.wav", DIGITS), model="tiny", stream=True)
        with stream, pytest.raises(openai.APIError, match="the server failed"):
            heard += (event.delta for event in stream)
        assert heard == ["four", " zero"]
        wait_until(lambda: server.metric("pycrispasr_requests_total", route=ROUTE, status="500") == 1)


def test_many_at_once_each_get_their_own_text() -> None:
    texts = {path: path.with_suffix(".txt").read_text().strip() for path in SAMPLES.glob("*.wav")}
    got: dict[Any, str] = {}
    with serving(parallel=3, queue=100) as server:

        def ask(path: Any) -> None:
            with server.client() as client:
                got[path] = client.audio.transcriptions.create(file=path, model="tiny").text

        threads = [threading.Thread(target=ask, args=(path,)) for path in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == texts


def test_a_part_that_fails_is_told_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(reader: AudioReader) -> Iterator[Any]:
        yield from blocks(reader)
        raise AudioError("upload: the disk is gone")

    blocks = AudioReader.blocks
    with serving() as server, serving(strict=True) as strict:
        monkeypatch.setattr(AudioReader, "blocks", broken)
        answer = server.post()
        assert (answer.status_code, answer.json()["text"]) == (200, TEXT)
        assert "could not be transcribed: upload: the disk is gone" in answer.headers["x-warning"]
        assert strict.post().status_code == 500

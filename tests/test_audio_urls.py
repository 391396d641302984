"""Audio at web addresses: fetched whole or refused, with the address and the reason."""

from __future__ import annotations

import base64
import gzip
import http.server
import socket
import threading
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pycrispasr import AudioError, AudioNotFoundError, audio

from .command import run
from .sound_files import ffmpeg, sndfile
from .sounds import make_tones

SOUND = sndfile(make_tones(1), 16000)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as its paths say."""

    protocol_version = "HTTP/1.1"
    film = b""
    asked: ClassVar[list[tuple[str, str | None, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization"), self.headers.get("Accept-Encoding")))
        kind = self.path.partition("?")[0]
        if kind == "/moved.wav":
            self.send_response(302)
            self.send_header("Location", "/sound.wav")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "/elsewhere.wav":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/sound.wav")  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind in ("/gzip.wav", "/deflate.wav"):
            content = gzip.compress(SOUND) if kind == "/gzip.wav" else zlib.compress(SOUND)
            self.send_response(200)
            self.send_header("Content-Encoding", kind[1:-4])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        elif kind == "/round.wav":
            self.send_response(302)
            self.send_header("Location", "/round.wav")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "/to-file.wav":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "/missing.wav":
            self.send_error(404)
        elif kind == "/forbidden.wav":
            self.send_error(403)
        elif kind == "/page.wav":
            self.answer(b"<html>log in</html>")
        elif kind == "/empty.wav":
            self.answer(b"")
        elif kind == "/film.mp4":
            self.answer(self.film)
        elif kind == "/broken.wav":
            self.answer(SOUND, sent=len(SOUND) // 2)
        elif kind == "/broken-chunks.wav":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(SOUND) + SOUND[:1000])
            self.close_connection = True
        elif kind == "/chunks.wav":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(SOUND), 1000):
                piece = SOUND[start : start + 1000]
                self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.answer(SOUND)

    def answer(self, content: bytes, sent: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])
        self.close_connection = sent is not None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    Server.film = ffmpeg(tmp_path_factory.mktemp("film") / "film.mp4", [make_tones(1)[:, None]], 16000, video=1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["sound.wav", "sound.wav?token=a%20b", "moved.wav", "chunks.wav"])
def test_what_is_at_an_address_is_read(server: str, name: str) -> None:
    np.testing.assert_array_equal(audio.load(f"{server}/{name}"), audio.load(SOUND))


def test_a_film_at_an_address_is_read(server: str) -> None:
    np.testing.assert_array_equal(audio.load(f"{server}/film.mp4"), audio.load(Server.film))


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "ein Ton ä.wav"
    path.write_bytes(SOUND)
    np.testing.assert_array_equal(audio.load(path.as_uri()), audio.load(SOUND))
    with pytest.raises(AudioNotFoundError, match=r"gone\.wav"):
        audio.load((tmp_path / "gone.wav").as_uri())
    with pytest.raises(AudioError, match=r"'elsewhere' cannot be read: write file:///path"):
        audio.load("file://elsewhere/sound.wav")


def test_what_is_missing_is_not_found(server: str) -> None:
    with pytest.raises(AudioNotFoundError, match=rf"{server}/missing\.wav.*the server answers 404 Not Found"):
        audio.open(f"{server}/missing.wav")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("forbidden.wav", "the server answers 403 Forbidden"),
        ("broken.wav", rf"the connection ended after {len(SOUND) // 2} of {len(SOUND)} bytes, so try again"),
        ("broken-chunks.wav", "IncompleteRead"),
        ("round.wav", "redirect"),
        ("to-file.wav", "302"),
        ("page.wav", "cannot be decoded"),
        ("empty.wav", "cannot be decoded"),
    ],
)
def test_what_cannot_be_fetched_or_read_names_the_address_and_the_reason(server: str, name: str, reason: str) -> None:
    with pytest.raises(AudioError, match=rf"(?s){server}/{name}.*{reason}") as caught:
        audio.open(f"{server}/{name}")
    assert not isinstance(caught.value, AudioNotFoundError)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/sound.wav"
    with pytest.raises(AudioError, match=rf"{url}.*cannot be fetched: .*[Rr]efused"):
        audio.open(url)
    with pytest.raises(AudioError, match=r"http://nobody\.invalid/a\.wav.*cannot be fetched"):
        audio.open("http://nobody.invalid/a.wav")


@pytest.mark.parametrize("url", ["ftp://host/sound.wav", "rtsp://host/live", "s3://bucket/sound.wav"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(AudioError, match="pass http, https, file or a path"):
        audio.open(url)


@pytest.mark.parametrize("url", ["http://", "http://[::1/a.wav", "http://host:port/a.wav", "https://a b/c.wav"])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(AudioError, match="cannot be fetched"):
        audio.open(url)


def test_spaces_and_letters_beyond_ascii_reach_the_server_as_curl_would_send_them(server: str) -> None:
    for path, wanted in (
        ("ein Ton ä.wav", "/ein%20Ton%20%C3%A4.wav"),
        ("ein%20Ton%20%C3%A4.wav", "/ein%20Ton%20%C3%A4.wav"),  # nothing is escaped twice
        ("a+b&c=100%25.wav?q=größe x", "/a+b&c=100%25.wav?q=gr%C3%B6%C3%9Fe%20x"),
        ("会議.wav", "/%E4%BC%9A%E8%AD%B0.wav"),
    ):
        np.testing.assert_array_equal(audio.load(f"{server}/{path}"), audio.load(SOUND))
        assert Server.asked[-1][0] == wanted
    np.testing.assert_array_equal(audio.load(f" {server}/sound.wav\n"), audio.load(SOUND))


def test_hosts_beyond_ascii_are_looked_up_by_their_ascii_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def lookup(host: object, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(AudioError, match=r"http://bücher\.example/a\.wav.*Name or service not known"):
        audio.open("http://bücher.example/a.wav")
    assert asked in (["xn--bcher-kva.example"], [b"xn--bcher-kva.example"])


@pytest.mark.parametrize(
    ("user", "sent"),
    [
        ("me:secret", "me:secret"), ("me", "me:"), (":secret", ":secret"), ("me:a%40b%2Fc", "me:a@b/c"),
        ("ich:größe", "ich:größe"), ("me:a@b:c", "me:a@b:c"),
    ],
)  # fmt: skip
def test_user_and_password_are_sent_to_that_host_only_and_never_shown(server: str, user: str, sent: str) -> None:
    host = server.removeprefix("http://")
    np.testing.assert_array_equal(audio.load(f"http://{user}@{host}/sound.wav"), audio.load(SOUND))
    assert base64.b64decode((Server.asked[-1][1] or "").removeprefix("Basic ")).decode() == sent
    audio.load(f"http://{user}@{host}/moved.wav")
    assert [each[1] is not None for each in Server.asked[-2:]] == [True, True]
    audio.load(f"http://{user}@{host}/elsewhere.wav")  # the same server by another name
    assert [each[1] is not None for each in Server.asked[-2:]] == [True, False]
    for url in (
        f"http://{user}@{host}/missing.wav", f"http://{user}@{host}/page.wav", f"http://{user}@{host}/broken.wav",
        f"http://{user}@nobody.invalid/a.wav", f"ftp://{user}@{host}/a.wav", f"http://{user}@[::1/a.wav",
        f"http://{user}@host:port/a.wav",
    ):  # fmt: skip
        with pytest.raises(AudioError) as caught:
            audio.open(url)
        told = "".join(traceback.format_exception_only(caught.value))
        assert "secret" not in told
        assert user not in told.replace("example", "") or user == "me"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_comes_compressed_is_unpacked(server: str, encoding: str) -> None:
    np.testing.assert_array_equal(audio.load(f"{server}/{encoding}.wav"), audio.load(SOUND))
    assert Server.asked[-1][2] == "identity"  # it was not asked for


def test_the_command_shows_no_password_anywhere(server: str, tmp_path: Path) -> None:
    host = server.removeprefix("http://")
    results = tmp_path / "results.jsonl"
    done = run(
        "transcribe", "-m", "tiny", "-v", f"http://me:secret@{host}/sound.wav", f"http://me:secret@{host}/missing.wav",
        "-f", "json", "-o", tmp_path / "out", "--results", results,
    )  # fmt: skip
    assert done.returncode == 1
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    for text in (done.stdout, done.stderr, results.read_text(), written, *map(str, (tmp_path / "out").iterdir())):
        assert "secret" not in text
    assert f"http://{host}/sound.wav" in results.read_text()

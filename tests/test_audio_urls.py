"""Audio at web addresses: fetched whole or refused, with the address and the reason."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import io
import os
import socket
import threading
import traceback
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pycrispasr import AudioError, AudioNotFoundError, audio
from pycrispasr.audio import addresses

from .command import run
from .sound_files import ffmpeg, sndfile
from .sounds import make_tones

SOUND = sndfile(make_tones(1), 16000)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as its paths say."""

    protocol_version = "HTTP/1.1"
    film = b""
    stopped = threading.Event()
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
        elif kind == "/to.wav":
            self.send_response(302)
            self.send_header("Location", urllib.parse.unquote(self.path.partition("?")[2]))
            self.end_headers()
            self.pour()  # a body without an end
        elif kind == "/endless.wav":
            self.send_response(200)
            self.end_headers()
            self.pour()
        elif kind == "/drip.wav":
            self.send_response(200)
            self.end_headers()
            self.pour(b"x", pause=0.05)
        elif kind == "/drip-head.wav":
            self.send_response_only(200)
            self.flush_headers()
            self.pour(b"x", pause=0.05)
        elif kind == "/huge.wav":
            self.send_response(200)
            self.send_header("Content-Length", self.path.partition("?")[2])
            self.end_headers()
            self.wfile.write(SOUND)
            self.close_connection = True
        elif kind == "/rude.wav":
            self.send_response(418, "\x1b[31mtea\x07\x9b")
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

    def pour(self, piece: bytes = bytes(1 << 16), pause: float = 0.0) -> None:
        """Sends until nobody listens any more."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.stopped.wait(pause):
                self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    Server.film = ffmpeg(tmp_path_factory.mktemp("film") / "film.mp4", [make_tones(1)[:, None]], 16000, video=1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Server.stopped.set()
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
        ("to-file.wav", r"answers 302 and leads from http:// to file://, which is not followed"),
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


# ---- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["endless.wav", "chunks.wav", "gzip.wav", "huge.wav?123456", f"huge.wav?{10**17}"])
def test_no_more_than_the_limit_is_downloaded(server: str, name: str) -> None:
    limits = audio.Limits(download_bytes=20_000)
    with pytest.raises(
        AudioError, match=r"more than the limit of 20000 bytes.*Limits\(download_bytes=.*--max-download"
    ):
        audio.open(f"{server}/{name}", limits=limits)


@pytest.mark.parametrize("name", ["drip.wav", "drip-head.wav", "endless.wav"])
def test_no_download_takes_longer_than_the_limit(server: str, name: str) -> None:
    limits = audio.Limits(download_seconds=0.3)
    with pytest.raises(
        AudioError, match=r"more than the limit of 0\.3 seconds.*download_seconds=.*--max-download-seconds"
    ):
        audio.open(f"{server}/{name}", limits=limits)


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "²", "0x10"])
def test_a_length_that_is_no_number_is_none(server: str, length: str) -> None:
    with contextlib.suppress(AudioError):
        np.testing.assert_array_equal(audio.load(f"{server}/huge.wav?{length}"), audio.load(SOUND))


# ---- Where a redirect may lead, and which hosts are public -----------------------------------------------------------


@pytest.fixture
def public_server(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, as if 127.0.0.1 were an address of the internet, by the name public.example, and 127.0.0.2 none."""
    hosts = {"public.example": "127.0.0.1", "private.example": "127.0.0.2"}
    lookup = socket.getaddrinfo

    def known(host: str, *arguments: object, **options: object) -> object:
        return lookup(hosts.get(host, host), *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    return server.replace("127.0.0.1", "public.example")


PRIVATE = ["http://private.example/a.wav", "http://127.0.0.2:9/a.wav", "//private.example/a.wav", "http://[::1]/a.wav"]


@pytest.mark.parametrize("target", PRIVATE)
def test_no_redirect_leads_from_a_public_host_to_another_one(public_server: str, target: str) -> None:
    with pytest.raises(AudioError, match="is no public host"):
        audio.open(f"{public_server}/to.wav?{target}")
    np.testing.assert_array_equal(audio.load(f"{public_server}/to.wav?/sound.wav"), audio.load(SOUND))


def test_what_is_named_itself_may_be_private_and_lead_anywhere(server: str) -> None:
    port = server.rpartition(":")[2]
    np.testing.assert_array_equal(audio.load(f"{server}/to.wav?http://localhost:{port}/sound.wav"), audio.load(SOUND))


@pytest.mark.parametrize("target", ["ftp://host/a.wav", "file:///etc/passwd", "gopher://host", "data:audio/wav,x"])
def test_no_redirect_leads_to_another_scheme(server: str, target: str) -> None:
    with pytest.raises(
        AudioError, match=rf"leads from http:// to {target.partition(':')[0]}://, which is not followed"
    ):
        audio.open(f"{server}/to.wav?{target}")


def test_a_redirect_may_lead_from_http_to_https_only(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    asked = []

    def get(_: object, url: str, **__: object) -> requests.Response:
        asked.append(url)
        answer = requests.Response()
        answer.url, answer.status_code, answer.raw = url, 302, io.BytesIO()
        scheme = "http" if url.startswith("https") else "https"
        answer.headers["Location"] = f"{scheme}://host/b.wav"
        return answer

    monkeypatch.setattr(requests.Session, "get", get)
    with pytest.raises(AudioError, match="leads from https:// to http://"):
        audio.open("http://host/a.wav")
    assert asked == ["http://host/a.wav", "https://host/b.wav"]


@pytest.mark.parametrize("url", PRIVATE[:2])
def test_where_only_public_hosts_are_allowed_no_other_one_is_asked(public_server: str, url: str) -> None:
    with pytest.raises(AudioError, match="is no public host"):
        audio.open(url, allow="public")
    np.testing.assert_array_equal(audio.load(f"{public_server}/sound.wav", allow="public"), audio.load(SOUND))


def test_a_name_that_changes_its_address_changes_nothing(public_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup, asked = socket.getaddrinfo, []

    def change(host: str, *arguments: object, **options: object) -> object:
        asked.append(host)
        return lookup("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", change)
    url = public_server.replace("public.example", "rebound.example")
    np.testing.assert_array_equal(audio.load(f"{url}/sound.wav", allow="public"), audio.load(SOUND))
    assert asked == ["rebound.example"]


def test_a_proxy_is_not_asked_for_a_host_that_is_not_public(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server)
    before = len(Server.asked)
    for url in (
        "http://127.0.0.1/a.wav",
        "http://localhost/a.wav",
        "http://169.254.169.254/a.wav",
        "http://[::1]/a.wav",
    ):
        with pytest.raises(AudioError, match="is no public host"):
            audio.open(url, allow="public")
    assert len(Server.asked) == before
    np.testing.assert_array_equal(audio.load("http://1.1.1.1/sound.wav", allow="public"), audio.load(SOUND))
    assert Server.asked[-1][0] == "http://1.1.1.1/sound.wav"


def test_no_password_that_stands_elsewhere_is_sent_for_a_stranger(
    public_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine public.example login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    audio.load(f"{public_server}/sound.wav", allow="public")
    assert Server.asked[-1][1] is None


# ---- What is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.wav", "page.wav", "broken.wav", "rude.wav", "round.wav"])
def test_no_key_in_an_address_is_shown(server: str, name: str) -> None:
    host = server.removeprefix("http://")
    for url in (f"{server}/{name}?key=SECRET", f"http://nobody.invalid/{name}?SECRET", f"http://u:SEC/RET@{host}/{name}",
                f"http://host:port/{name}?SECRET", f"http://127.0.0.1:9/{name}?SECRET#SECRET"):  # fmt: skip
        with pytest.raises(AudioError) as caught:
            audio.open(url)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value)).replace("test_audio_urls", "")
        assert "RET@" not in str(caught.value)


def test_what_a_server_says_steers_no_terminal(server: str) -> None:
    with pytest.raises(AudioError, match=r"the server answers 418 \\x1b\[31mtea\\x07\\x9b"):
        audio.open(f"{server}/rude.wav")


def test_the_command_shows_no_key_anywhere(server: str, nano_path: Path, tmp_path: Path) -> None:
    listed, results, out = tmp_path / "list.csv", tmp_path / "results.csv", tmp_path / "out"
    urls = [f"{server}/{name}.wav?key=SECRET{i}" for name in ("sound", "missing", "page") for i in range(2)]
    listed.write_text("\n".join(["path", *urls]))
    options = ("-m", nano_path, "--max-new-tokens", 2, "--results", results, "--manifest", listed)
    done = run("transcribe", *options, "-v", "-f", "json", "-f", "srt", "-o", out)
    assert done.returncode == 1
    for text in (done.stdout, done.stderr, results.read_text(), *map(str, out.iterdir())):
        assert "SECRET" not in text
    for path in out.iterdir():
        assert "SECRET" not in path.read_text()
        if hasattr(os, "listxattr"):
            assert all(b"SECRET" not in os.getxattr(path, name) for name in os.listxattr(path))
    done = run("transcribe", *options, "--resume", "-v", "-f", "json", "-f", "srt", "-o", out)
    assert "of 4 recordings" in done.stderr  # each of the others, which differ in their keys only, is done

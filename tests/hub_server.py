"""A small server that speaks the Hugging Face hub's protocol, as far as its client uses it for downloads.

A request for a file is answered as the hub answers one for a large file: metadata in headers, and a redirect to another
host ("localhost" instead of "127.0.0.1"), which holds files under their checksums and gives parts of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MOSS, Q4_K = "cstr/MOSS-Transcribe-preview-2B-GGUF", "moss-transcribe-preview-2b-q4_k.gguf"
CONTENT = bytes(range(256)) * 4000  # about 1 MB

OLD, NEW = "1" * 40, "2" * 40  # commits; "v1" is a tag of the old one, "main" is the new one
REVISIONS = {OLD: OLD, NEW: NEW, "v1": OLD, "main": NEW}


@dataclasses.dataclass
class Hub:
    """What the server has and how it behaves; tests change it as they go.

    Attributes:
        url: What HF_ENDPOINT must be.
        files: Contents by (repository, commit, file).
        private: Repositories that need the token.
        gated: Repositories that nobody may read.
        status: A status that answers all requests for metadata, or 0.
        content_status: A status that answers all requests for contents, or 0.
        break_at: Where in a file every connection breaks, or None.
        corrupt: Contents arrive with their last byte changed.
        no_commit: Answers lack what makes them the hub's.
        tells_size: Whether metadata hold the size.
        etag: The ETag in place of the checksum, or "".
        commit: The commit that all answers tell, or "".
        listed: More names of files that listings tell.
        slow: Waits for this before the second half of a file.
        requests: Method, path, and headers of every request so far.
    """

    url: str = ""
    files: dict[tuple[str, str, str], bytes] = dataclasses.field(default_factory=dict)
    private: set[str] = dataclasses.field(default_factory=set)
    gated: set[str] = dataclasses.field(default_factory=set)
    token: str = "hf_secret"
    status: int = 0
    content_status: int = 0
    break_at: int | None = None
    corrupt: bool = False
    no_commit: bool = False
    tells_size: bool = True
    etag: str = ""
    commit: str = ""
    listed: list[str] = dataclasses.field(default_factory=list)
    slow: threading.Event | None = None
    requests: list[tuple[str, str, dict[str, str]]] = dataclasses.field(default_factory=list)

    def add(self, repo: str, file: str, content: bytes, commits: tuple[str, ...] = (OLD, NEW)) -> None:
        for commit in commits:
            self.files[repo, commit, file] = content

    def contents(self) -> list[dict[str, str]]:
        """The headers of the requests for contents so far."""
        return [headers for _, path, headers in self.requests if path.startswith("/cdn/")]


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """What tells another process where this hub and its cache are."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **more}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if path.startswith("/cdn/"):
            self._content(path.removeprefix("/cdn/"))
        elif self.hub.status:
            self._send(self.hub.status)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._metadata(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:tree|revision)/([^/]+)", path):
            self._listing(match[1], match[2], tree="/tree/" in path)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self._listing(match[1], "main", tree=False)
        else:
            self._send(404)

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit of a revision, or None where an error was answered."""
        known = any(repo == each for each, _, _ in self.hub.files)
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repo in self.hub.gated:
            self._send(403, {"X-Error-Code": "GatedRepo"})
        elif not known or (repo in self.hub.private and not allowed):
            self._send(
                404 if allowed else 401,
                {"X-Error-Code": "RepoNotFound"} if allowed else {"X-Error-Message": "Invalid username or password."},
            )
        elif revision not in REVISIONS:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return REVISIONS[revision]
        return None

    def _metadata(self, repo: str, revision: str, file: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        content = self.hub.files.get((repo, commit, file))
        if content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {
            "X-Repo-Commit": self.hub.commit or commit,
            "X-Linked-Etag": f'"{self.hub.etag or digest}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}",
        }
        if not self.hub.tells_size:
            del headers["X-Linked-Size"]
        if self.hub.no_commit:
            del headers["X-Repo-Commit"]
        self._send(302, headers)

    def _listing(self, repo: str, revision: str, tree: bool) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        files = {file: data for (each, when, file), data in self.hub.files.items() if (each, when) == (repo, commit)}
        files |= dict.fromkeys(self.hub.listed, b"")
        listed: object = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
        if not tree:
            listed = {"id": repo, "sha": self.hub.commit or commit, "siblings": [{"rfilename": name} for name in files]}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(listed).encode())

    def _content(self, digest: str) -> None:
        content = next(data for data in self.hub.files.values() if hashlib.sha256(data).hexdigest() == digest)
        if self.hub.content_status:
            self._send(self.hub.content_status)
            return
        if self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, total = 0, len(content)
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            if start >= total:
                self._send(416, {"Content-Range": f"bytes */{total}"})
                return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        if self.hub.slow is not None:
            self.wfile.write(content[start : total // 2])
            self.hub.slow.wait(30)
            start = max(start, total // 2)
        if self.hub.break_at is None:
            self.wfile.write(content[start:])
        else:
            self.wfile.write(content[start : max(start, self.hub.break_at)])
            self.close_connection = True

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

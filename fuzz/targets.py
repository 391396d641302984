"""What Python reads of strangers: a function for each kind of input, which fails where that input finds a fault.

`fuzz.py` runs them with Atheris, `tests/test_fuzz.py` with seeds and with what was found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import json
import math
import os
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pycrispasr import PycrispasrError, audio
from pycrispasr.audio import addresses
from pycrispasr.models import checkpoint, gguf_file, hub, imatrix
from pycrispasr.options import Limits
from pycrispasr.results import files, formats, manifest
from pycrispasr.results.cues import cues
from pycrispasr.results.segment import Segment, Word
from pycrispasr.results.transcript import Timings, Transcript

LIMITS = Limits(seconds=600, gap_seconds=10, download_bytes=1 << 20, download_seconds=5)


def read_audio(data: bytes) -> None:
    """A recording: opened as a file, or listened to as a stream where the first byte is odd."""
    kind, data = data[:1], data[1:]
    heard = 0
    with contextlib.suppress(PycrispasrError):
        is_stream = bool(kind and kind[0] & 1)
        with audio.listen(io.BytesIO(data)) if is_stream else audio.open(data, allow="data", limits=LIMITS) as reader:
            for block in reader.blocks():
                assert block.dtype == np.float32
                assert np.isfinite(block).all()
                heard += block.size
                if heard > 16000 * (LIMITS.seconds + 60):
                    assert is_stream, "the limit on a recording's length does not hold"
                    break


def read_model_file(data: bytes) -> None:
    """A file that a model is shown or made of; the first byte says which kind."""
    kind, data = data[0] % 4 if data else 0, data[1:]
    with _folder() as folder, contextlib.suppress(PycrispasrError):
        path = Path(folder) / ("model.gguf", "model.safetensors", "tokenizer.json", "importance.gguf")[kind]
        path.write_bytes(data)
        if kind == 0:
            gguf_file.read(path)
            gguf_file.check(path)
        elif kind == 1:
            checkpoint.read_safetensors(path.parent)
        elif kind == 2:
            checkpoint.read_tokenizer(path.parent)
        else:
            imatrix.read(path)


def read_list(data: bytes) -> None:
    """A list of recordings, or of results that the work goes on with; the first byte says which kind."""
    kind, data = data[0] % 4 if data else 0, data[1:]
    with _folder() as folder:
        path = Path(folder) / ("list.csv", "list.jsonl")[kind % 2]
        path.write_bytes(data)
        try:
            entries = manifest.read(path)
        except PycrispasrError:
            entries = []
        for entry in entries:
            assert "\0" not in entry.audio
        if kind < 2:
            return
        with contextlib.suppress(PycrispasrError):
            result = _transcript("text", 0.0, 1.0, None)
            with manifest.Results(path, entries, resume=True) as results:
                for entry in entries[:8]:
                    if not results.take(entry):
                        results.add(entry, result)
            manifest.Results(path, entries, resume=True).__exit__()  # what was written is a list again


def write_outputs(data: bytes) -> None:
    """Texts, times and names that nobody chose: every format is written, and only where it should be.

    Eight bytes are times, then comes one that says whether there shall be files, then the text, the name of the
    recording and an error, with zeros between them.
    """
    numbers, rest = data[:9].ljust(9, b"\1"), data[9:].decode("utf-8", "replace")
    text, name, error = ([*rest.split("\0"), "", "", ""])[:3]
    start, length, no_files = struct.unpack("<IfB", numbers)
    length = min(abs(length), 30.0) if math.isfinite(length) else 0.0
    transcript = _transcript(text, start / 1000, start / 1000 + length, error or None)

    assert json.loads(formats.render(transcript, "json", audio=name))["text"] == transcript.text
    found = cues(transcript)
    with _instead(formats, cues=lambda *_, **__: found):  # most of the time would go into the same cues
        subtitles = formats.render(transcript, "srt"), formats.render(transcript, "vtt")
    for content in subtitles:
        assert sum(" --> " in line for line in content.splitlines()) == len(found)
    for line in formats.render(transcript, "tsv").split("\n")[:-1]:
        assert line.count("\t") == 2
    for line in formats.render(transcript, "audacity").split("\n")[:-1]:
        assert line.count("\t") == 2

    with contextlib.suppress(PycrispasrError):
        place = Path("/tmp/out")
        (stem,) = files.stems([name], place)
        for path in files.files(stem, formats.FORMATS).values():
            assert place in Path(os.path.abspath(path)).parents
    if no_files % 16:  # they take ten times as long as all else
        return
    with _folder() as outer, contextlib.suppress(PycrispasrError):
        folder = Path(outer, "out")
        (stem,) = files.stems([name], folder)
        for path in files.write(transcript, stem, formats.FORMATS, audio=name):
            assert folder.resolve() in path.resolve().parents
        assert os.listdir(outer) == ["out"]


def answer_download(data: bytes) -> None:
    """What a server answers, one answer for each connection, with four zeros between them.

    The first byte says what is asked for: a file of the hub, its only file, a recording, a checkpoint, a recording at a
    public host, one that must be at a public host.
    """
    kind, answers = data[0] % 6 if data else 0, data[1:].split(b"\0\0\0\0")
    _begin_hub()
    with _answering(answers) as visited, contextlib.suppress(PycrispasrError):
        if kind in (2, 4, 5):
            host = "127.0.0.1" if kind == 2 else "example.org"
            with audio.open(f"http://{host}/a.wav", allow="public" if kind == 5 else "all", limits=LIMITS) as reader:
                for _ in reader.blocks():
                    pass
        else:
            _ask_hub(kind)
    # Nothing leads back from a public host, nor from https, once that is where a recording is.
    if kind in (2, 4, 5):
        for before, after in itertools.pairwise(visited):
            assert after.is_public or not before.is_public
            assert after.is_secret or not before.is_secret
        assert kind == 2 or all(place.is_public for place in visited)


@functools.cache
def _begin_hub() -> None:
    """Has the hub's client ask what it asks once in a process, which would take the first answer of the first input."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with _answering([]):
        build_hf_headers()


def _ask_hub(kind: int) -> None:
    with _folder() as outer:
        cache = Path(outer, "hub")
        with _hub("http://hub.example.org", cache):
            try:
                if kind == 3:
                    hub.checkpoint("org/repo")
                else:
                    assert hub.resolve("org/repo" if kind == 1 else "org/repo:a.gguf").is_file()
            finally:
                root = os.path.realpath(cache)
                assert all(os.path.realpath(path).startswith(root) for path in Path(outer).rglob("*"))


TARGETS = {
    "audio": read_audio,
    "model_files": read_model_file,
    "lists": read_list,
    "outputs": write_outputs,
    "hub": answer_download,
}


def _transcript(text: str, start: float, end: float, error: str | None) -> Transcript:
    """One segment, whose words follow each other at equal distances."""
    words = text.split()
    step = (end - start) / max(1, len(words))
    timed = tuple(Word(word, start + i * step, start + (i + 1) * step, 0.5) for i, word in enumerate(words))
    text = " ".join(words)
    segment = Segment(start, end, text, (), "failed" if error else "ok", timed if len(words) % 2 else None, error)
    return Transcript(text, (segment,), end, None, error is None, Timings(), (), None)


def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for a moment, in memory where the system has a place for that; Windows keeps what is still mapped."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True)


@dataclasses.dataclass
class _Visited:
    """A host that was connected to, and whether with TLS."""

    is_public: bool
    is_secret: bool = False


class _Connection(socket.socket):
    """One end of a pair, which has none of TCP's options."""

    def setsockopt(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def _answering(answers: list[bytes]) -> Iterator[list[_Visited]]:
    """Answers every connection of this process with the next answer, which lies ready in it, whatever is asked.

    No name is looked up: those that end in "internal" are of a private network, all others of public hosts. TLS is left
    out. The list is of the hosts that recordings were looked for at.
    """
    left, ends, visited = answers[:16], list[socket.socket](), list[_Visited]()
    find = socket.getaddrinfo

    def connected(kind: Any = _Connection) -> Any:
        if not left:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        ours, theirs = socket.socketpair()
        ends.append(theirs)
        theirs.setblocking(False)
        with contextlib.suppress(OSError):  # larger than what a connection holds: cut off
            theirs.send(left.pop(0))
        theirs.shutdown(socket.SHUT_WR)
        return kind(fileno=ours.detach())

    def connect(kind: Any, found: Any, _deadline: float) -> Any:
        connection = connected(kind)
        visited.append(_Visited(addresses.is_public(found[4][0])))
        return connection

    def getaddrinfo(host: str, port: Any, **options: Any) -> Any:
        try:
            return find(host, port, flags=socket.AI_NUMERICHOST, **options)
        except socket.gaierror:
            return find("10.0.0.1" if host.endswith("internal") else "8.8.8.8", port, **options)

    def wrap_socket(_: ssl.SSLContext, connection: Any, **__: Any) -> Any:
        if visited:
            visited[-1].is_secret = True
        return connection

    def nothing(*_: Any, **__: Any) -> None:
        pass

    certificates = dict.fromkeys(("load_default_certs", "load_verify_locations", "set_default_verify_paths"), nothing)
    try:
        with (
            _instead(socket, getaddrinfo=getaddrinfo, create_connection=lambda *_, **__: connected()),
            _instead(addresses, _connected=connect),
            _instead(ssl.SSLContext, wrap_socket=wrap_socket, **certificates),
            _instead(time, sleep=nothing),
        ):
            yield visited
    finally:
        for end in ends:
            end.close()


@contextlib.contextmanager
def _instead(place: Any, **values: Any) -> Iterator[None]:
    """Gives names of a module or a class other values for a while."""
    before = {name: getattr(place, name) for name in values}
    for name, value in values.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


@contextlib.contextmanager
def _hub(endpoint: str, cache: Path) -> Iterator[None]:
    """Makes the hub's client ask that server."""
    from huggingface_hub import constants

    url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    with _instead(constants, ENDPOINT=endpoint, HUGGINGFACE_CO_URL_TEMPLATE=url, HF_HUB_CACHE=str(cache)):
        yield

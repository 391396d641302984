"""What Python reads of strangers: a function for each kind of input, which fails where that input finds a fault.

`fuzz.py` runs them with Atheris, `tests/test_fuzz.py` with seeds and with what was found.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pycrispasr import PycrispasrError, audio
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

    Eight bytes are times, then come the text, the name of the recording and an error, with zeros between them.
    """
    numbers, rest = data[:8].ljust(8, b"\0"), data[8:].decode("utf-8", "replace")
    text, name, error = ([*rest.split("\0"), "", "", ""])[:3]
    start, length = struct.unpack("<If", numbers)
    length = min(abs(length), 30.0) if math.isfinite(length) else 0.0
    transcript = _transcript(text, start / 1000, start / 1000 + length, error or None)

    assert json.loads(formats.render(transcript, "json", audio=name))["text"] == transcript.text
    found = cues(transcript)
    subtitles = formats.render(transcript, "srt"), formats.render(transcript, "vtt")
    for content in subtitles:
        assert sum(" --> " in line for line in content.splitlines()) == len(found)
    for line in formats.render(transcript, "tsv").split("\n")[:-1]:
        assert line.count("\t") == 2
    for line in formats.render(transcript, "audacity").split("\n")[:-1]:
        assert line.count("\t") == 2

    with _folder() as outer, contextlib.suppress(PycrispasrError):
        folder = Path(outer, "out")
        (stem,) = files.stems([name], folder)
        for path in files.write(transcript, stem, formats.FORMATS, audio=name):
            assert folder.resolve() in path.resolve().parents
        assert os.listdir(outer) == ["out"]


def answer_download(data: bytes) -> None:
    """What a server answers, one answer for each connection, with four zeros between them.

    The first byte says what is asked for: a file of the hub, its only file, a recording, a checkpoint.
    """
    kind, answers = data[0] % 4 if data else 0, data[1:].split(b"\0\0\0\0")
    with _folder() as outer, _answering(answers) as port:
        cache = Path(outer, "hub")
        with _hub(f"http://127.0.0.1:{port}", cache), contextlib.suppress(PycrispasrError):
            if kind == 2:
                with audio.open(f"http://127.0.0.1:{port}/a.wav", limits=LIMITS) as reader:
                    for _ in reader.blocks():
                        pass
            elif kind == 3:
                hub.checkpoint("org/repo")
            else:
                path = hub.resolve("org/repo" if kind == 1 else "org/repo:a.gguf")
                assert path.is_file()
        for path in Path(outer).rglob("*"):
            assert cache.resolve() in (path.resolve(), *path.resolve().parents)


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


@contextlib.contextmanager
def _answering(answers: list[bytes]) -> Iterator[int]:
    """A server on this machine that gives each connection the next answer, and the port that it listens on."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        for answer in answers[:16]:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(2)
                    request = b""
                    while b"\r\n\r\n" not in request and (piece := connection.recv(65536)):
                        request += piece
                    connection.sendall(answer)
        listener.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield port
    finally:
        with contextlib.suppress(OSError):  # closed already
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        thread.join()


@contextlib.contextmanager
def _hub(endpoint: str, cache: Path) -> Iterator[None]:
    """Makes the hub's client ask that server, and not wait before it asks again."""
    from huggingface_hub import constants

    def nothing(_: float) -> None:
        pass

    names = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
    }
    before = {name: getattr(constants, name) for name in names}
    sleep = time.sleep
    for name, value in names.items():
        setattr(constants, name, value)
    time.sleep = nothing
    try:
        yield
    finally:
        time.sleep = sleep
        for name, value in before.items():
            setattr(constants, name, value)

"""CrispASR's library in a process of its own, so that what ends it is an error here.

The library ends its process where a file or a sound leads it to something impossible, and it cannot be stopped while it
computes. Here a child process does either: it is started with the model, ended with it, and started anew when it is
needed again.

The parent writes requests to the child's standard input: a line of JSON, behind it the samples. The child answers on
its standard output in lines of JSON: what it logs, and then one result. Nothing that the child says is executed, since
its memory is that of a library which reads files of strangers. It ends when its standard input does, or its parent.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pycrispasr import errors
from pycrispasr.errors import DeviceError, InstallationError, ModelFormatError, OutOfMemoryError, UsageError
from pycrispasr.results.segment import Segment, Token
from pycrispasr.runtimes import crispasr
from pycrispasr.runtimes.native import Cancelled
from pycrispasr.text import printable

if TYPE_CHECKING:
    from pycrispasr.audio import Samples

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from pycrispasr.runtimes.crispasr_process import serve; "
    "serve(int(sys.argv[1]))"
)
_LONGEST_ANSWER = 1 << 26  # bytes

_logger = logging.getLogger("pycrispasr")


def can_start() -> bool:
    """Whether this program can start another Python: not where it is frozen, or inside another program."""
    return bool(_python()) and not getattr(sys, "frozen", False)


def _python() -> str:
    from multiprocessing import spawn  # knows what `multiprocessing.set_executable` was told

    return os.fsdecode(spawn.get_executable() or "")


class IsolatedCrispasrModel:
    """As `crispasr.CrispasrModel`, in a process of its own.

    It is made of the same arguments. When its process ends, whatever ended it, the next segment starts another one.

    Raises:
        InstallationError: The library is missing or cannot be used.
        UnsupportedModelError: It runs no model of this architecture.
        ModelFormatError: It cannot load the file, or ended its process when it tried.
        DeviceError: There is no such device, or no process can be started.
        OutOfMemoryError: The system ended the process.
    """

    interruptible = True

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        threads: int = 0,
        *,
        architecture: str | None = None,
        multilingual: bool = False,
    ) -> None:
        if crispasr.find() is None:
            raise InstallationError(crispasr.MISSING)
        self._path = os.path.abspath(path)
        self._opening = {
            "path": self._path,
            "device": device,
            "threads": threads,
            "architecture": architecture,
            "multilingual": multilingual,
        }
        self._owner = os.getpid()
        self._lock = threading.Lock()  # of the thread that talks with the child
        self._state = threading.Lock()  # of the two below, and never held for long
        self._child: _Child | None = None
        self._serving: threading.Event | None = None  # whose segment is being computed
        self.backend = ""
        with self._lock:
            self._open()

    def decode_segment(
        self,
        samples: Samples,
        language: str | None,
        max_new_tokens: int,
        cancelled: threading.Event | None = None,
    ) -> tuple[list[Segment], str | None]:
        """As `crispasr.CrispasrModel.decode_segment`.

        Args:
            samples: Mono at 16 kHz, shape `[n]`, at most 30 seconds.
            language: The language of the segment before, as the library told it, or None.
            max_new_tokens: For models that heed it.
            cancelled: What `cancel` gets to end this call.

        Raises:
            UnsupportedModelError: The model is not one for recognising speech.
            DeviceError: The library ended its process.
            OutOfMemoryError: The system ended it.
            Cancelled: `cancelled` is set.
            UsageError: This process was forked from the one that opened the model.
        """
        if self._owner != os.getpid():
            raise UsageError("this model belongs to the process that was forked: open it here once more")
        stop = cancelled or threading.Event()
        while not self._lock.acquire(timeout=0.05):
            if stop.is_set():
                raise Cancelled
        try:
            with self._state:
                self._serving = stop
            if stop.is_set():
                raise Cancelled
            child = self._child or self._open()
            if stop.is_set():
                raise Cancelled
            request = {"language": language, "max_new_tokens": max_new_tokens, "bytes": samples.nbytes}
            answer = child.ask(request, samples.tobytes())
            return [_segment(*fields) for fields in answer["segments"]], answer["language"]
        except _Ended as ended:
            self._end()
            if stop.is_set():
                raise Cancelled from None
            raise _death(
                ended, DeviceError,
                f"{self._path!r}: CrispASR's library ended its process ({ended}) on this audio: the model is damaged, "
                "or cannot compute it; it can be used again, in another process",
            ) from None  # fmt: skip
        except errors.PycrispasrError:
            raise
        except BaseException:  # the child may be in the middle of an answer
            self._end()
            raise
        finally:
            with self._state:
                self._serving = None
            self._lock.release()

    def cancel(self, cancelled: threading.Event) -> None:
        """Ends the call of `decode_segment` that was given this event, now or later. Any thread."""
        cancelled.set()
        if self._owner == os.getpid():
            with self._state:
                if self._serving is cancelled and self._child is not None:
                    self._child.kill()

    def close(self) -> None:
        """Ends the process, unless it is computing: then it ends when nobody needs the model any more."""
        if self._owner == os.getpid() and self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _open(self) -> _Child:
        """Starts a process that has the model open."""
        child = _Child()
        with self._state:
            self._child = child
        try:
            level = max(logging.DEBUG, _logger.getEffectiveLevel())
            self.backend = str(child.ask({**self._opening, "level": level})["backend"])
        except _Ended as ended:
            self._end()
            if self._serving is not None and self._serving.is_set():
                raise Cancelled from None
            raise _death(
                ended, ModelFormatError,
                f"{self._path!r}: CrispASR's library ended its process ({ended}) when it opened this file: it is "
                "damaged, or none for this library; fetch or copy it again",
            ) from None  # fmt: skip
        except BaseException:
            self._end()
            raise
        return child

    def _end(self) -> None:
        with self._state:
            child, self._child = self._child, None
        if child is not None:
            child.end()


class _Ended(Exception):  # noqa: N818  what it means is said where it is caught
    """The child has ended; the text says how."""

    def __init__(self, how: str, code: int) -> None:
        super().__init__(how)
        self.by_system = code == -getattr(signal, "SIGKILL", 0) and code != 0


def _death(ended: _Ended, kind: type[errors.PycrispasrError], sentence: str) -> errors.PycrispasrError:
    if not ended.by_system:
        return kind(sentence)
    return OutOfMemoryError(
        f"the system ended the process of CrispASR's library ({ended}), as it does where memory is short: close other "
        "programs, or take a smaller model"
    )


class _Child:
    """The process."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  of the child's stderr: it closes itself
        group: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is the parent's
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            self._process = subprocess.Popen(  # noqa: S603  ourselves
                [_python(), "-c", _START, str(os.getpid()), *crispasr.installed_paths()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,  # a forked process must have nothing to flush
                env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # or ggml starts a debugger before it aborts
                **group,
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(
                f"no process can be started for CrispASR's library ({error}): isolate=False takes it into this one"
            ) from error
        streams: Any = self._process  # which has both
        self._stdin, self._stdout = streams.stdin, io.BufferedReader(streams.stdout)
        self._stop = weakref.finalize(self, _free, self._process, self._errors, os.getpid())
        try:
            self._answer()
        except _Ended as ended:
            raise DeviceError(
                f"no process can be started for CrispASR's library ({ended}): isolate=False takes it into this one"
            ) from None

    def ask(self, request: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """Sends a request, and gives the answer.

        Raises:
            _Ended: The process has ended, or makes no sense any more.
            PycrispasrError: What the child raised.
        """
        content = memoryview(json.dumps(request).encode() + b"\n" + payload)
        try:
            while content:
                content = content[self._stdin.write(content) :]
        except OSError:
            raise self._ended() from None
        answer = self._answer()
        said = self._said()
        if said:
            _logger.info("%s", printable(said))
        if "error" in answer:
            kind, text = answer["error"]
            known = kind in errors.__all__ and kind != "CancelledError"
            raise (getattr(errors, kind) if known else errors.InternalError)(text)
        return answer

    def _answer(self) -> dict[str, Any]:
        """The next answer that is no message for the log."""
        try:
            while True:
                line = self._stdout.readline(_LONGEST_ANSWER)
                if not line.endswith(b"\n"):
                    raise EOFError
                answer: dict[str, Any] = json.loads(line)
                if "log" not in answer:
                    return answer
                level, text = answer["log"]
                _logger.log(int(level), "%s", text)
        except (OSError, EOFError):
            raise self._ended() from None
        except (ValueError, TypeError):
            self._process.kill()
            self._process.wait()
            raise _Ended("after it had answered nonsense", 0) from None

    def _said(self) -> str:
        """What has come on the child's stderr since the last time: the library prints there."""
        with contextlib.suppress(OSError, ValueError):
            size = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, size - 4096))
            text = self._errors.read().decode("utf-8", "replace").strip()
            self._errors.seek(0)  # for the child too: both have one place in it
            self._errors.truncate()
            return text
        return ""

    def _ended(self) -> _Ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)  # its streams are closed; a large process takes its time
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"exit status {code if abs(code) < 256 else hex(code & 0xFFFFFFFF)}"
        last = self._said().rpartition("\n")[2].strip()
        return _Ended(how + (f": {printable(last[:200])}" if last else ""), code)

    def kill(self) -> None:
        """Makes the answer that is waited for never come. Any thread."""
        self._process.kill()

    def end(self) -> None:
        """Ends it, and frees what belongs to it."""
        self._stop()


def _free(process: subprocess.Popen[bytes], said: IO[bytes], owner: int) -> None:
    if owner != os.getpid():  # a forked process has this object too
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, said):
        if stream is not None:
            stream.close()


def _segment(start: float, end: float, text: str, tokens: list[list[Any]]) -> Segment:
    found = tuple(Token(crispasr.UNKNOWN_TOKEN, *fields) for fields in tokens)
    return Segment(float(start), float(end), str(text), found, "ok")


# What follows runs in the child.


def serve(parent: int) -> NoReturn:
    """The child: opens the model of the first request, and answers the others.

    Args:
        parent: The number of the process that started it.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sending = threading.Lock()

    def send(answer: dict[str, Any]) -> None:
        with sending:
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send({"log": [record.levelno, record.getMessage()]})

    _logger.addHandler(Handler())
    requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    model: crispasr.CrispasrModel | None = None
    send({})  # it has started
    while True:
        request, payload = requests.get()
        try:
            if model is None:
                _logger.setLevel(request.pop("level"))
                model = crispasr.CrispasrModel(Path(request.pop("path")), **request)
                send({"backend": model.backend})
            else:
                samples: Any = memoryview(payload).cast("f")
                segments, language = model.decode_segment(samples, request["language"], request["max_new_tokens"])
                send({"segments": [_fields(segment) for segment in segments], "language": language})
        except Exception as error:  # noqa: BLE001  it is raised in the parent
            send({"error": [type(error).__name__, str(error)]})


def _fields(segment: Segment) -> list[Any]:
    tokens = [[token.text, token.probability, token.start, token.end] for token in segment.tokens]
    return [segment.start, segment.end, segment.text, tokens]


def _read(requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    """Reads requests, also while the library computes: when there are no more, the parent is gone."""
    source = os.fdopen(os.dup(0), "rb")
    while line := source.readline():
        request = json.loads(line)
        requests.put((request, source.read(request.pop("bytes", 0))))
    os._exit(0)


def _watch(parent: int) -> None:
    """Ends this process soon after its parent: another child of the parent's may hold the pipe open."""
    while sys.platform == "win32" or os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)

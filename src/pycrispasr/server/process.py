"""The server as a process of its own: uvicorn, signals, and the log on stderr."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

from fastapi import FastAPI

from pycrispasr.errors import InstallationError, UsageError
from pycrispasr.server.reporting import JsonFormatter
from pycrispasr.server.service import Service
from pycrispasr.text import printable

try:
    import uvicorn
    import websockets  # noqa: F401  for uvicorn
except ImportError as error:
    raise InstallationError("the server needs uvicorn and websockets: pip install 'pycrispasr[serve]'") from error

_MAX_MESSAGE = 16 * 2**20  # bytes of a realtime session's message: OpenAI's API takes 15 MiB of audio in one
_PING_TIMEOUT = 60.0  # seconds: while a session waits for room, nothing that comes is read, pongs neither
_LEAST_GRACE = 1  # seconds for what is cancelled to end


def run(
    app: FastAPI, *, host: str, port: int, grace: float, log_json: bool = False, started: Callable[[str], object]
) -> None:
    """Serves until a signal asks to stop (SIGINT, SIGTERM).

    Then what runs may go on for a while; what comes is refused with 503. A second signal ends it at once.

    Args:
        app: Made by `create_app`.
        host: The address to listen at.
        port: 0 for any that is free.
        grace: Seconds that what runs may go on.
        log_json: Log objects of JSON.
        started: Called with a sentence that has the address, when it listens.

    Raises:
        UsageError: It cannot listen there.
        PycrispasrError: The first model cannot be loaded.
    """
    service: Service = app.state.service
    _log_to_stderr(JsonFormatter() if log_json else _OneLine("%(asctime)s %(levelname)s %(message)s"))
    with _listen(host, port) as listener:
        name, number = listener.getsockname()[:2]
        address = f"http://{f'[{name}]' if ':' in name else name}:{number}"
        _Server(
            configure(app), service, grace, lambda: started(f"listening at {address}; {address}/docs describes it")
        ).run(sockets=[listener])
    first = service.models.first
    if first.failure is not None and not first.ready:
        raise first.failure


def configure(app: FastAPI) -> uvicorn.Config:
    """How uvicorn is to serve an app."""
    return uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="websockets-sansio",
        ws_max_size=_MAX_MESSAGE, ws_per_message_deflate=False, ws_ping_timeout=_PING_TIMEOUT,
        timeout_graceful_shutdown=_LEAST_GRACE,
    )  # fmt: skip


class _Server(uvicorn.Server):
    """Goes on listening after the first signal, so that who comes later is told why he is sent away."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float, started: Callable[[], object]) -> None:
        super().__init__(config)
        self._service, self._grace, self._tell_started = service, grace, started
        self._signals = 0
        self._cancels_at = 0.0
        self._was_ready = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  as uvicorn calls it
        """Takes a signal. uvicorn would raise it anew in the end, and so end the process with its status."""
        self._signals += 1
        self.should_exit = self.force_exit = self._signals > 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        if self.started:
            self._tell_started()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end."""
        admission, first = self._service.admission, self._service.models.first
        if self._signals and not admission.ending.is_set():
            admission.ending.set()
            self._cancels_at = time.monotonic() + self._grace
        if admission.ending.is_set() and (admission.idle or time.monotonic() >= self._cancels_at):
            self.should_exit = True
        self._was_ready |= first.ready
        if first.failure is not None and not self._was_ready:
            self.should_exit = True
        return await super().on_tick(counter)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would let two servers have one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): choose others with --host and --port"
        ) from error
    return listener


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The record without control characters, but for the ends of a traceback's lines."""
        return "\n".join(map(printable, super().format(record).split("\n")))


def _log_to_stderr(formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pycrispasr.server").setLevel(logging.INFO)

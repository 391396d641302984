"""One line in the log and a few numbers for every request: never its audio, text, file names or keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import traceback
import uuid
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pycrispasr.server import errors
from pycrispasr.server.metrics import Metrics

logger = logging.getLogger("pycrispasr.server")

_LINGER = 1.0  # seconds for which the rest of an upload is read and forgotten before it is refused

GONE = 499
"""The status in logs and metrics of a request whose client went away: no answer was sent."""


class Reporting:
    """The outermost layer of an app: counts, measures and logs requests, and answers for what nobody else caught.

    Handlers put the seconds of audio into the scope's "state", as "audio_seconds".

    Args:
        app: The rest of the app.
        metrics: Take the numbers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request, or a realtime session."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = f"req_{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request
        begun, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        # An answer that comes before the end of an upload is lost where the connection breaks under the client's hands.
        unread = b"expect" not in headers and (
            b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        )

        async def listening() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def discard() -> None:
            while unread:
                await listening()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                if unread and scope["type"] == "http" and status >= 400:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(discard(), _LINGER)
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (b"x-request-id", request.encode())]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._app(scope, listening, watched)
        except ClientDisconnect:
            status = GONE
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer and the log the place
            log_failure(request, error)
            if status == 0 and scope["type"] == "http":
                await errors.of(error).response()(scope, receive, watched)
            elif status == 0:
                status = 500
        finally:
            self._report(scope, state, request, status or GONE, time.perf_counter() - begun)

    def _report(self, scope: Scope, state: dict[str, Any], request: str, status: int, seconds: float) -> None:
        # The route as it was declared: a path may hold anything.
        route = getattr(scope.get("route"), "path", "other")
        status = state.get("status", status)
        self._metrics.requests.labels(route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        fields = {
            "request": request,
            "method": scope.get("method", "WS"),
            "route": route,
            "status": status,
            "seconds": round(seconds, 3),
        }
        audio = state.get("audio_seconds")
        if audio is not None:
            self._metrics.audio_seconds.labels(route).observe(audio)
            fields["audio_seconds"] = round(audio, 3)
        heard = "" if audio is None else f", {audio:.1f} s of audio"
        logger.info(
            "%s %s %s %s in %.3f s%s",
            request,
            fields["method"],
            route,
            status,
            seconds,
            heard,
            extra={"fields": fields},
        )


def log_failure(request: str, error: Exception) -> None:
    """Where an error that nobody expected came from. Not its message, which may quote what a client sent."""
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s failed with %s\n%s", request, type(error).__name__, place)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON: its time, level, logger and message, or the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        content: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        content.update(fields if fields is not None else {"message": record.getMessage()})
        return json.dumps(content, ensure_ascii=True)

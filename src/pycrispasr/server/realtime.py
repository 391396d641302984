"""`WS /v1/realtime`: sound in while somebody speaks, text out, in the events of OpenAI's transcription sessions."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from pycrispasr.server import errors
from pycrispasr.server.capabilities import capabilities
from pycrispasr.server.errors import ApiError, invalid
from pycrispasr.server.forms import check_language, context_warnings, of_validation
from pycrispasr.server.realtime_settings import Format, SessionUpdate, Settings, Transcription, TurnDetection
from pycrispasr.server.realtime_stream import ROUTE as ROUTE
from pycrispasr.server.realtime_stream import Item, Stream, nothing_to_commit
from pycrispasr.server.reporting import log_failure
from pycrispasr.server.service import Service
from pycrispasr.text import json_text

_MAX_UNDER_WAY = 4  # streams of a connection whose text is not complete: what comes then waits
_GOING_AWAY, _IDLE = 1001, 1000  # codes of WebSocket
_IN_SESSION = "session.audio.input.transcription"


async def realtime(websocket: WebSocket) -> None:
    """Serves one connection."""
    service: Service = websocket.app.state.service
    try:
        service.models.check_ready()
        model = service.models.find(websocket.query_params.get("model") or service.models.first.id)
        with service.admission.session():
            await _Connection(service, websocket, model.id).run()
    except ApiError as error:  # before it was accepted
        await websocket.send_denial_response(error.response())


class _Connection:
    """A client, what it has told, and what of its audio is under way."""

    def __init__(self, service: Service, websocket: WebSocket, model: str) -> None:
        self.service = service
        self._websocket = websocket
        self._id = f"sess_{uuid.uuid4().hex[:24]}"
        self._settings = Settings(Format(), Transcription(model=model), TurnDetection(), ())
        self._stream: Stream | None = None  # that takes audio
        self._under_way: set[Stream] = set()  # it, and those that have ended and are worked on
        self._seconds = 0.0  # of audio, of all streams before it
        self._last_item: str | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }

    async def run(self) -> None:
        """Until the client goes, or the server ends: then what was heard is finished first."""
        offered = self._websocket.scope.get("subprotocols", [])
        await self._websocket.accept("realtime" if "realtime" in offered else None)
        receiving = asyncio.ensure_future(self._receive())
        ending = asyncio.ensure_future(self.service.admission.ending.wait())
        try:
            await self.send("session.created", session=self._settings.describe(self._id))
            await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()
            else:
                await self._finish(receiving)
        except WebSocketDisconnect:
            pass
        finally:
            tasks = [receiving, ending, *(stream.task for stream in self._under_way)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end_stream()
            self._websocket.state.audio_seconds = self._seconds

    async def _finish(self, receiving: asyncio.Task[None]) -> None:
        """Hears nothing more, and closes when what was heard is told."""
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        stream = self._end_stream()
        if stream is not None:
            if stream.item is not None:
                await self.tell_committed(stream.item)
            await stream.end()
        await asyncio.gather(*(one.task for one in self._under_way), return_exceptions=True)
        await self._websocket.close(_GOING_AWAY, "the server is stopping")

    async def _receive(self) -> None:
        while True:
            try:
                message = await asyncio.wait_for(self._websocket.receive(), self.service.options.timeout)
            except asyncio.TimeoutError:
                await self._websocket.close(_IDLE, "nothing came for too long")
                return
            if message["type"] == "websocket.disconnect":
                return
            event: dict[str, Any] = {}
            try:
                if message.get("bytes") is not None:
                    await self._hear(message["bytes"])
                else:
                    event = _event(message["text"])
                    await self._handle(event)
            except (ApiError, ValidationError) as error:
                answer = of_validation(error) if isinstance(error, ValidationError) else error
                given = event.get("event_id")
                await self.send("error", error={**answer.error, "event_id": given if isinstance(given, str) else None})

    async def _handle(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        handler = self._handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            known = ", ".join(self._handlers)
            raise invalid(f"there is no event {str(kind)[:50]!r}: send one of {known}", "type", "invalid_event")
        await handler(event)

    # What clients send.

    async def _update(self, event: dict[str, Any]) -> None:
        session = SessionUpdate.model_validate(event.get("session"))
        settings = self._settings.updated(session)
        settings.format.check()
        warnings = [*settings.warnings(session), *await self._check_model(settings)]
        if warnings and self.service.options.strict:
            raise invalid("; ".join(warnings), code="unsupported_parameter")
        if self._stream is not None and settings != self._settings:
            if self._stream.item is not None:
                raise invalid("commit or clear the audio first: how it is heard cannot change inside it", "session")
            await self._stream.end()
            self._end_stream()
        self._settings = settings
        await self.send("session.updated", session=settings.describe(self._id))
        for sentence in warnings:
            await self.send("pycrispasr.warning", message=sentence)

    async def _check_model(self, settings: Settings) -> list[str]:
        """What means nothing to the model."""
        asked = settings.transcription
        async with self.service.models.find(str(asked.model), f"{_IN_SESSION}.model").use() as model:
            able = capabilities(model)
        if not able.tokens:
            raise invalid(f"{asked.model} takes whole recordings only", f"{_IN_SESSION}.model", "unsupported_value")
        for language in (asked.language, *(asked.languages or ())):
            check_language(language, able, f"{_IN_SESSION}.language")
        return list(context_warnings(able, asked.prompt, asked.keywords or []))

    async def _append(self, event: dict[str, Any]) -> None:
        audio = event.get("audio")
        try:
            content = base64.b64decode(audio, validate=True) if isinstance(audio, str) else None
        except (binascii.Error, ValueError):
            content = None
        if content is None:
            raise invalid("audio must be a text in base64", "audio", "invalid_value")
        await self._hear(content)

    async def _commit(self, _: dict[str, Any]) -> None:
        stream = self._end_stream()
        if stream is None:
            raise nothing_to_commit()
        if stream.item is not None:
            await self.tell_committed(stream.item)
        await stream.end(committed=True)

    async def _clear(self, _: dict[str, Any]) -> None:
        stream = self._end_stream()
        if stream is not None:
            await stream.cancel()
        await self.send("input_audio_buffer.cleared")

    async def _hear(self, content: bytes) -> None:
        samples = _samples(content, self._settings.format.type)
        if not len(samples):
            return
        if self._stream is None:
            while len(self._under_way) >= _MAX_UNDER_WAY:
                await asyncio.wait({one.task for one in self._under_way}, return_when=asyncio.FIRST_COMPLETED)
            self._stream = Stream(self, self._settings, self._seconds)
            self._under_way.add(self._stream)
        await self._stream.feed(samples)

    def _end_stream(self) -> Stream | None:
        """The stream that takes audio, which takes no more: what comes begins another one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._seconds += stream.seconds
        return stream

    # What streams tell.

    async def send(self, kind: str, **fields: Any) -> None:
        """Sends an event."""
        event = {"type": kind, "event_id": f"event_{uuid.uuid4().hex[:24]}", **fields}
        # The client may have gone: whoever waits for its messages is told so, too.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._websocket.send_text(json_text(event))

    async def tell_committed(self, item: Item) -> None:
        """The audio of an item has ended."""
        item.committed = True
        before, self._last_item = self._last_item, item.id
        await self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)

    async def tell_failure(self, error: Exception, *, item: Item | None = None) -> None:
        """An item, or all of what is heard, came to nothing."""
        answer = errors.of(error)
        if answer.status >= 500 and answer is not error:
            log_failure(self._websocket.state.request_id, error)
        if item is None:
            await self.send("error", error={**answer.error, "event_id": None})
        else:
            await self.send(
                "conversation.item.input_audio_transcription.failed", item_id=item.id, content_index=0,
                error=answer.error,
            )  # fmt: skip

    def forget(self, stream: Stream) -> None:
        """A stream has ended, or failed."""
        self._under_way.discard(stream)
        if self._stream is stream:
            self._end_stream()


def _event(text: str) -> dict[str, Any]:
    """An event of a client.

    Raises:
        ApiError: It is none.
    """
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise invalid("an event must be an object in JSON", code="invalid_json")
    return event


def _samples(content: bytes, kind: str) -> npt.NDArray[np.int16]:
    """Sound as it is sent."""
    if kind != "audio/pcm":
        return _g711(kind == "audio/pcma")[np.frombuffer(content, np.uint8)]
    if len(content) % 2:
        raise invalid(
            f"audio cannot have {len(content)} bytes: a sample of audio/pcm is 16 bits, little-endian", "audio",
            "invalid_value",
        )  # fmt: skip
    return np.frombuffer(content, "<i2").astype(np.int16, copy=False)


@functools.cache
def _g711(a_law: bool) -> npt.NDArray[np.int16]:
    """The sample for each byte of ITU-T G.711: A-law, or mu-law."""
    code = np.arange(256) ^ (0x55 if a_law else 0xFF)
    exponent, mantissa = code >> 4 & 7, code & 15
    if a_law:
        magnitude = np.where(exponent, (mantissa * 16 + 264) << np.maximum(exponent - 1, 0), mantissa * 16 + 8)
        return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)
    magnitude = ((mantissa * 8 + 132) << exponent) - 132
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)

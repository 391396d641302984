"""The sound of a realtime session on its way to texts: utterances that a detector finds, or what is committed."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
import uuid
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pycrispasr.errors import ClosedError
from pycrispasr.live.async_session import AsyncSession
from pycrispasr.results.events import Event, Final, Partial, Silence, SpeechStarted
from pycrispasr.results.segment import Segment
from pycrispasr.server.capabilities import capabilities
from pycrispasr.server.errors import ApiError, invalid
from pycrispasr.server.realtime_settings import Settings
from pycrispasr.server.service import Service
from pycrispasr.server.transcriptions import complaint, logprob, usage
from pycrispasr.text import join, pieces, separator

ROUTE = "/v1/realtime"

_BLOCK_SECONDS = 1.0  # that are fed at once
_PATIENCE = 0.05  # seconds for which a final text waits to learn whether its utterance has ended, too
_TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Client(Protocol):
    """Who a stream tells what it hears."""

    service: Service

    async def send(self, kind: str, **fields: Any) -> None:
        """Sends an event."""

    async def tell_committed(self, item: Item) -> None:
        """The audio of an item has ended."""

    async def tell_failure(self, error: Exception, *, item: Item | None = None) -> None:
        """An item, or all of what is heard, came to nothing."""

    def forget(self, stream: Stream) -> None:
        """It takes no more audio."""


class Item:
    """An utterance, or what was committed at once, and its text so far.

    Attributes:
        id: What events call it.
        shown: All deltas joined.
        segments: Those that are final.
        committed: Its audio has ended, and the client knows.
        tentative: What was told to follow `shown`, and may change.
    """

    def __init__(self) -> None:
        self.id = f"item_{uuid.uuid4().hex[:24]}"
        self.shown = ""
        self.segments: list[Segment] = []
        self.committed = False
        self.tentative = ""
        self._part = ""  # of `shown`: the segment in progress

    def hear(self, committed: str) -> str:
        """The delta for a segment in progress, of which so much is committed."""
        return self._show(committed[len(self._part) :]) if committed.startswith(self._part) else ""

    def end_segment(self, segment: Segment) -> str:
        """The delta for the final text of a segment: what follows the words of it that were shown."""
        self.segments.append(segment)
        text = segment.text
        shown = len(self._part) if text.startswith(self._part) else None
        rest = text[shown:] if shown is not None else "".join(pieces(text)[len(pieces(self._part)) :])
        delta = self._show(rest)
        self._part = ""
        return delta

    def _show(self, more: str) -> str:
        if not more:
            return ""
        delta = (separator(self.shown, more) if not self._part else "") + more
        self._part += more
        self.shown += delta
        return delta

    @property
    def transcript(self) -> str:
        """The final text."""
        text = ""
        for segment in self.segments:
            text = join(text, segment.text)
        return text


class Stream:
    """Audio that is heard in one session of the library's: utterances until it ends, or one item.

    Attributes:
        settings: How it is heard.
        item: All of it, where no turns are detected.
        seconds: Of audio that was fed.
        task: The work.
    """

    def __init__(self, client: Client, settings: Settings, begins: float) -> None:
        self.settings, self.seconds = settings, 0.0
        self.item = Item() if settings.turn_detection is None else None
        self._client, self._begins = client, begins  # seconds of audio before it
        self._session: asyncio.Future[AsyncSession] = asyncio.get_running_loop().create_future()
        self._items: collections.deque[Item] = collections.deque()  # utterances whose text is not complete
        self._pending: Item | None = None  # the text is final; has the utterance ended, or was it too long for one?
        self._unstopped: Item | None = None  # is complete, and it was not told that its speech has ended
        self._ended_at: float | None = None
        self._committed = False  # by the client, and no item has come of it
        self._told_to_end = False  # by the client
        self._arrivals: collections.deque[tuple[float, float]] = collections.deque(maxlen=4096)
        self.task = asyncio.create_task(self._run())

    async def feed(self, samples: npt.NDArray[np.int16]) -> None:
        """Appends samples. Waits while the session has no room for them. A stream that has failed takes nothing."""
        rate = self.settings.format.sample_rate
        step = round(_BLOCK_SECONDS * rate)
        with contextlib.suppress(ClosedError):
            session = await self._session
            for first in range(0, len(samples), step):
                block = samples[first : first + step]
                await session.feed(block, sample_rate=rate)
                self.seconds += len(block) / rate
                self._arrivals.append((self.seconds, time.perf_counter()))

    async def end(self, *, committed: bool = False) -> None:
        """No more samples come.

        Args:
            committed: It is so because the client said it.
        """
        self._ended_at, self._committed = time.perf_counter(), committed
        self._told_to_end = committed
        with contextlib.suppress(ClosedError):
            (await self._session).end()

    async def cancel(self) -> None:
        """Forgets all of it."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        service, settings = self._client.service, self.settings
        try:
            async with (
                service.models.find(str(settings.transcription.model)).use() as model,
                model.session(
                    partial_every=settings.partial_every, **settings.keywords(capabilities(model))
                ) as session,
            ):
                self._session.set_result(session)
                await self._follow(session)
            if self.item is not None:
                await self._complete(self.item)
            elif self._committed:
                raise nothing_to_commit()
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told, and the connection goes on
            broken = [self.item] if self.item is not None else [*self._items]
            for item in broken:
                await self._client.tell_failure(error, item=item)
            if not broken:
                await self._client.tell_failure(error)
        finally:
            self._client.forget(self)
            if not self._session.done():
                self._session.set_exception(ClosedError("there is no session"))
                self._session.exception()  # nobody may be waiting for it
        if self._told_to_end:  # a commit may end several utterances, or none: nothing else tells that it was the last
            await self._client.send("pycrispasr.done")

    async def _follow(self, session: AsyncSession) -> None:
        """Tells what happens, until all is done."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        async def collect() -> None:
            try:
                async for event in session.events():
                    events.put_nowait(event)
            finally:
                events.put_nowait(None)

        collecting = asyncio.create_task(collect())
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), _PATIENCE if self._pending else None)
                except asyncio.TimeoutError:
                    await self._complete_pending()
                    continue
                if event is None:
                    break
                await self._tell(event)
            await self._complete_pending()
            await collecting
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)

    async def _tell(self, event: Event) -> None:
        if isinstance(event, Partial):
            await self._tell_partial(event)
        elif isinstance(event, Final):
            await self._tell_final(event.segment)
        elif self.item is None and isinstance(event, SpeechStarted):
            await self._complete_pending()
            self._items.append(Item())
            await self._client.send(
                "input_audio_buffer.speech_started", audio_start_ms=self._ms(event.time), item_id=self._items[-1].id
            )
        elif self.item is None and isinstance(event, Silence):
            await self._tell_silence(event)

    async def _tell_partial(self, event: Partial) -> None:
        item = self.item
        if item is None:
            await self._complete_pending()  # somebody speaks on: that segment was cut inside an utterance
            if not self._items or self._items[-1].committed:
                self._items.append(Item())
            item = self._items[-1]
        await self._tell_delta(item, item.hear(event.committed))
        if event.tentative != item.tentative:
            item.tentative = event.tentative
            await self._client.send("pycrispasr.tentative", item_id=item.id, text=event.tentative)

    async def _tell_final(self, segment: Segment) -> None:
        item = self.item
        if item is None:
            await self._complete_pending()
            item = next((one for one in self._items if not one.segments), None)
            if item is None:
                item = Item()
                self._items.append(item)
        await self._tell_delta(item, item.end_segment(segment))
        if item.committed and self.item is None:
            await self._complete(item)
        elif self.item is None:
            self._pending = item

    async def _tell_silence(self, event: Silence) -> None:
        """An utterance has ended: the first of those of which it was not told."""
        item = next((one for one in self._items if not one.committed), None)
        stopped, self._unstopped = item or self._unstopped, None
        if stopped is not None:
            await self._client.send(
                "input_audio_buffer.speech_stopped", audio_end_ms=self._ms(event.time), item_id=stopped.id
            )
        if item is not None:
            await self._client.tell_committed(item)
            if item is self._pending:
                self._pending = None
                await self._complete(item)

    async def _complete_pending(self) -> None:
        """The item whose text is final is no whole utterance, or the audio has ended."""
        item, self._pending = self._pending, None
        if item is not None:
            await self._client.tell_committed(item)
            await self._complete(item)
            self._unstopped = item

    async def _tell_delta(self, item: Item, delta: str) -> None:
        if delta:
            await self._client.send(f"{_TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=delta)

    async def _complete(self, item: Item) -> None:
        """All of an item's text is final."""
        with contextlib.suppress(ValueError):
            self._items.remove(item)
        self._committed = False
        seconds = self.seconds if self.item is not None else sum(s.end - s.start for s in item.segments)
        metrics = self._client.service.metrics
        heard = item.segments[-1].end if self.item is None else self.seconds
        metrics.final_text_seconds.labels(ROUTE).observe(self._since(heard))
        wrong = [complaint(segment) for segment in item.segments if segment.status != "ok"]
        if wrong and all(segment.status == "failed" for segment in item.segments):
            await self._client.tell_failure(ApiError(500, "; ".join(wrong), code="incomplete"), item=item)
            return
        tokens = [logprob(token) for segment in item.segments for token in segment.tokens]
        await self._client.send(
            f"{_TRANSCRIPTION}.completed", item_id=item.id, content_index=0, transcript=item.transcript,
            usage=usage(seconds), **({"logprobs": tokens} if self.settings.logprobs else {}),
        )  # fmt: skip
        for sentence in wrong:
            await self._client.send("pycrispasr.warning", item_id=item.id, message=sentence)

    def _ms(self, seconds: float) -> int:
        """From the beginning of all audio of the connection."""
        return round((self._begins + seconds) * 1000)

    def _since(self, seconds: float) -> float:
        """How long ago so much of the audio was there, or all of it."""
        now = time.perf_counter()
        came = next((at for heard, at in self._arrivals if heard >= seconds), now)
        return now - max(came, self._ended_at or 0.0 if self.item is not None else 0.0)


def nothing_to_commit() -> ApiError:
    """The answer to a commit of nothing."""
    return invalid("there is no speech to commit: append audio first", code="input_audio_buffer_commit_empty")

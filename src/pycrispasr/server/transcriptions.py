"""`POST /v1/audio/transcriptions`: a recording in, its text out, as OpenAI's API gives it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pycrispasr import audio
from pycrispasr.compat import common
from pycrispasr.decoding.job import Job, Progress
from pycrispasr.options import JobKeywords, Limits
from pycrispasr.results import formats
from pycrispasr.results.segment import Segment, Token
from pycrispasr.results.transcript import Transcript
from pycrispasr.server import errors
from pycrispasr.server.capabilities import Capabilities, capabilities
from pycrispasr.server.errors import ApiError, invalid
from pycrispasr.server.forms import TranscriptionForm, read_form
from pycrispasr.server.reporting import GONE, log_failure
from pycrispasr.server.service import Service
from pycrispasr.text import json_text, separator

_T = TypeVar("_T")
ROUTE = "/v1/audio/transcriptions"

_MAX_WARNINGS = 8
_MAX_WARNING_CHARS = 300


async def transcribe(request: Request) -> Response:
    """Answers one request."""
    service: Service = request.app.state.service
    service.models.check_ready()
    begun = time.perf_counter()

    def left() -> float:
        return max(0.0, service.options.timeout - (time.perf_counter() - begun))

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(service.admission.transcription())
        upload, form, warnings = await stack.enter_async_context(read_form(request, service.options))
        work = _Work(service, request, upload, form, warnings)
        if form.stream:
            events = work.events()
            stack.push_async_callback(events.aclose)
            first = await attended(request.receive, anext(events), left())
            return _EventStream(first, events, left, work.headers(), stack.pop_all())
        transcript = await attended(request.receive, work.transcript(), left())
    return work.answer(transcript)


async def attended(receive: Receive, work: Awaitable[_T], seconds: float) -> _T:
    """Does something as long as the client is there, and not for longer than so many seconds.

    Raises:
        ClientDisconnect: The client has gone away. The work has ended.
        ApiError: 504: it took too long. The work has ended.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, departure = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, departure}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if departure.done():
            raise ClientDisconnect
        raise ApiError(
            504, "it takes longer than this server allows: send a shorter recording", code="timeout",
            headers={"x-should-retry": "false"},
        )  # fmt: skip
    finally:
        for one in (task, departure):
            one.cancel()
        await asyncio.gather(task, departure, return_exceptions=True)


class _Work:
    """One transcription on its way.

    Args:
        service: The server.
        request: What it is for.
        upload: The recording.
        form: How it is to be transcribed.
        warnings: Sentences for the client; more are added as they become known.
    """

    def __init__(
        self, service: Service, request: Request, upload: BinaryIO, form: TranscriptionForm, warnings: list[str]
    ) -> None:
        self._service, self._state, self._upload, self._form = service, request.state, upload, form
        self._warnings = warnings
        self._able: Capabilities
        self._uploaded = time.perf_counter()
        self._begun = 0.0
        self._has_token = False

    async def transcript(self) -> Transcript:
        """All of it.

        Raises:
            ApiError: A field is wrong for this model, or the recording is too long.
            PycrispasrError: What `Model.job` raises, and its iteration.
        """
        async with self._job() as job:
            transcript = await _in_thread(job, lambda: next(job))
        self._measure(transcript.duration)
        self._check_segments(transcript.segments, transcript.duration)
        self._warnings += transcript.warnings
        return transcript

    def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream: token by token, or with verbose_json segment by segment, with their times.

        Raises:
            Exception: As `transcript`.
        """
        return self._segment_events() if self._form.response_format == "verbose_json" else self._token_events()

    async def _segment_events(self) -> AsyncGenerator[dict[str, Any], None]:
        """Each segment when it is final: its text as a delta, then its times."""
        text, seen = "", list[Segment]()
        async with self._job() as job:
            async for segment in _items(job, job.segments()):
                self._heard_token()
                if segment.text:
                    delta = separator(text, segment.text) + segment.text
                    text += delta
                    yield {"type": "transcript.text.delta", "delta": delta}
                times = {"start": segment.start, "end": segment.end, "text": segment.text}
                yield {"type": "transcript.text.segment", "id": str(len(seen)), **times}
                seen.append(segment)
            seconds = job.progress.seconds
        self._measure(seconds)
        self._check_segments(seen, seconds)
        done = {"type": "transcript.text.done", "text": text, "usage": usage(seconds)}
        yield {**done, **self._verbose(text, None, seconds, seen), **self._with_warnings()}

    async def _token_events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The text is that of the tokens: a segment of which some were sent is not tried again."""
        text, held, logprobs, all_logprobs = "", "", [], []
        seen: tuple[Segment, ...] = ()
        async with self._job() as job:
            async for token, finals in _items(job, ((token, job.progress.segments) for token in job.tokens())):
                self._heard_token()
                seen = finals or seen
                held += token.text
                logprobs += self._logprobs([token])
                if held.strip():
                    ready = held.rstrip()
                    delta, held = ready if text else ready.lstrip(), held[len(ready) :]
                    text += delta
                    yield {"type": "transcript.text.delta", "delta": delta, **self._with(logprobs)}
                    all_logprobs += logprobs
                    logprobs = []
            seconds = job.progress.seconds
        self._measure(seconds)
        self._check_segments(seen, seconds)
        done = {"type": "transcript.text.done", "text": text, **self._with(all_logprobs), "usage": usage(seconds)}
        yield {**done, **self._with_warnings()}

    @contextlib.asynccontextmanager
    async def _job(self) -> AsyncIterator[Job]:
        """The job, when its turn has come."""
        service, form = self._service, self._form
        async with service.models.find(form.model).use() as model:
            self._able = capabilities(model)
            self._warnings += form.warnings(self._able)
            if self._warnings and service.options.strict:
                raise invalid("; ".join(self._warnings), code="unsupported_parameter")
            await asyncio.to_thread(_check_length, self._upload, service.options.max_seconds)
            async with service.admission.turn():
                self._begun = time.perf_counter()
                service.metrics.queue_seconds.observe(self._begun - self._uploaded)
                options: JobKeywords = {
                    "allow": "data",
                    "limits": Limits(seconds=service.options.max_seconds),
                    "vad": form.vad,
                    "silence": form.silence,
                    "word_timestamps": form.words,
                }
                hints = self._able.hints(form.language, form.languages, form.prompt, form.keywords)
                options.update(cast(JobKeywords, hints))
                job = await asyncio.to_thread(
                    lambda: model.job([self._upload], errors="raise", progress=self._look, **options)
                )
                with job:
                    yield job

    def _look(self, progress: Progress) -> None:
        """From the thread that works."""
        if not self._has_token and (progress.text or progress.segments):
            self._heard_token()

    def _heard_token(self) -> None:
        if not self._has_token:
            self._has_token = True
            self._service.metrics.first_token_seconds.observe(time.perf_counter() - self._uploaded)

    def _measure(self, seconds: float) -> None:
        """Counts a transcription of so many seconds of audio."""
        now, metrics = time.perf_counter(), self._service.metrics
        self._state.audio_seconds = seconds
        metrics.final_text_seconds.labels(ROUTE).observe(now - self._uploaded)
        if seconds:
            metrics.real_time_factor.observe((now - self._begun) / seconds)

    def _check_segments(self, segments: Iterable[Segment], seconds: float) -> None:
        """Warns of segments whose text is not all of what was said.

        Raises:
            ApiError: 400: the recording turned out to be too long. 500: with `strict`, a segment is not complete.
        """
        found = [complaint(segment) for segment in segments if segment.status != "ok"]
        limit = self._service.options.max_seconds
        if found and seconds > limit - 0.5:
            raise _too_long(limit)
        if found and self._service.options.strict:
            raise ApiError(500, "; ".join(found), code="incomplete")
        self._warnings += found

    def _logprobs(self, tokens: Iterable[Token]) -> list[dict[str, Any]]:
        """As OpenAI's API has them; nothing where they were not asked for."""
        return list(map(logprob, tokens)) if self._form.logprobs else []

    def _with(self, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"logprobs": logprobs} if self._form.logprobs else {}

    def _with_warnings(self) -> dict[str, Any]:
        return {"warnings": self._warnings} if self._warnings else {}

    def headers(self) -> dict[str, str]:
        """Of the answer: the warnings that are known."""
        told = [sentence[:_MAX_WARNING_CHARS] for sentence in self._warnings[:_MAX_WARNINGS]]
        if len(self._warnings) > _MAX_WARNINGS:
            told.append(f"{len(self._warnings) - _MAX_WARNINGS} more")
        text = "; ".join(told).encode("ascii", "backslashreplace").decode()
        return {"x-warning": text} if text else {}

    def answer(self, transcript: Transcript) -> Response:
        """The answer that was asked for."""
        kind, headers = self._form.response_format, self.headers()
        if kind == "text":
            return PlainTextResponse(formats.to_txt(transcript) + "\n", headers=headers)
        if kind == "srt":
            return Response(formats.to_srt(transcript), media_type="application/x-subrip", headers=headers)
        if kind == "vtt":
            return Response(formats.to_vtt(transcript), media_type="text/vtt", headers=headers)
        content: dict[str, Any] = {"text": transcript.text, "usage": usage(transcript.duration)}
        if kind == "diarized_json":
            content |= {"task": "transcribe", "duration": transcript.duration}
            content["segments"] = list(_diarized_segments(transcript.segments))
        elif kind == "verbose_json":
            content |= self._verbose(transcript.text, transcript.language, transcript.duration, transcript.segments)
        else:
            content |= self._with(self._logprobs(t for segment in transcript.segments for t in segment.tokens))
        return JSONResponse(content, headers=headers)

    def _verbose(self, text: str, language: str | None, duration: float, segments: Sequence[Segment]) -> dict[str, Any]:
        language = language or self._form.language or common.script(text)[0] or ""
        names = self._able.languages or {}
        content: dict[str, Any] = {
            "task": "transcribe",
            "language": names.get(language.lower(), language).lower(),
            "duration": duration,
        }
        if self._form.segments:
            content["segments"] = list(_verbose_segments(segments))
        if self._form.words:
            content["words"] = [
                {"word": word.text, "start": word.start, "end": word.end}
                for segment in segments
                for word in segment.words or ()
            ]
        return content


def logprob(token: Token) -> dict[str, Any]:
    """A token as OpenAI's API has it. Its bytes are those of the characters that became complete with it."""
    return {
        "token": token.text,
        "bytes": list(token.text.encode()),
        "logprob": math.log(max(token.probability, 1e-10)),
    }


def usage(seconds: float) -> dict[str, Any]:
    """What was used: so much audio."""
    return {"type": "duration", "seconds": round(seconds, 3)}


def _verbose_segments(segments: Iterable[Segment]) -> Iterator[dict[str, Any]]:
    for place, segment in enumerate(segments):
        numbers: dict[str, Any] = {**common.numbers(segment)}
        if math.isnan(numbers["avg_logprob"]):  # the runtime does not tell it
            numbers["avg_logprob"] = 0.0
        yield {
            "id": place,
            "seek": round(segment.start * 100),  # in Whisper's frames
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            **numbers,
        }


def _diarized_segments(segments: Iterable[Segment]) -> Iterator[dict[str, Any]]:
    for place, segment in enumerate(segments):
        yield {
            "type": "transcript.text.segment",
            "id": f"seg_{place}",
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "speaker": segment.speaker or "",
        }


def complaint(segment: Segment) -> str:
    """What is wrong with a segment's text."""
    place = f"{segment.start:.1f}-{segment.end:.1f} s"
    if segment.status == "failed":
        return f"{place} could not be transcribed: {segment.error}"
    return f"{place}: the text was {'cut' if segment.status == 'truncated' else 'stopped, since it repeated itself'}"


def _check_length(upload: BinaryIO, limit: float) -> None:
    """Refuses what cannot be read, or is too long by its header, before its turn comes."""
    with audio.open(upload, allow="data", limits=Limits(seconds=math.inf)) as reader:
        if (reader.duration or 0) > limit:
            raise _too_long(limit)


def _too_long(limit: float) -> ApiError:
    return invalid(f"a recording may last {limit:g} s at most: send it in parts", "file", "audio_too_long")


async def _in_thread(job: Job, call: Callable[[], _T]) -> _T:
    """A call that works inside a job. A coroutine that is cancelled cancels the job, and waits for that."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(work)
    finally:
        if not work.done():
            job.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _items(job: Job, items: Iterable[_T]) -> AsyncIterator[_T]:
    """What an iterator over a job gives, which works in a thread."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[_T] | None] = asyncio.Queue()

    def work_through() -> None:
        try:
            for item in items:
                loop.call_soon_threadsafe(queue.put_nowait, (item,))
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, None)

    work = asyncio.ensure_future(asyncio.to_thread(work_through))
    try:
        while (item := await queue.get()) is not None:
            yield item[0]
        await work
    finally:
        if not work.done():
            job.cancel()
        await asyncio.gather(work, return_exceptions=True)


class _EventStream(Response):
    """Server-sent events. What goes wrong behind the first one is an event, and the end."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: dict[str, Any],
        events: AsyncIterator[dict[str, Any]],
        left: Callable[[], float],
        headers: dict[str, str],
        resources: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._first, self._events, self._left, self._resources = first, events, left, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all."""

        async def write(event: dict[str, Any]) -> None:
            line = f"data: {json_text(event)}\n\n"
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})

        async def write_rest() -> None:
            async for event in self._events:
                await write(event)

        async with self._resources:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await write(self._first)
            try:
                await attended(receive, write_rest(), self._left())
            except ClientDisconnect:
                scope["state"]["status"] = GONE
                return
            except Exception as error:  # noqa: BLE001  the client is told, in the only way that is left
                answer = errors.of(error)
                scope["state"]["status"] = answer.status
                if answer.status >= 500:
                    log_failure(scope["state"]["request_id"], error)
                await write({"type": "error", "error": answer.error})
            await send({"type": "http.response.body", "body": b""})

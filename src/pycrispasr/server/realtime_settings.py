"""What a realtime session can be told, and what it was told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from pycrispasr.options import SessionKeywords
from pycrispasr.server.capabilities import Capabilities
from pycrispasr.server.errors import invalid
from pycrispasr.server.forms import ServerVad

_RATES = {"audio/pcm": (24_000, 16_000), "audio/pcmu": (8_000,), "audio/pcma": (8_000,)}  # the first is the default
_SILENCE_MS = 500  # that ends an utterance unless told otherwise, as in OpenAI's API
_DELAYS = {"minimal": 0.25, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": None}
"""Seconds of audio between two looks at what is said so far; None: only what is final is told."""


class Format(BaseModel):
    """How sound is sent."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.rate or _RATES[self.type][0]

    def check(self) -> None:
        """Refuses other rates.

        Raises:
            ApiError: 400.
        """
        rates = _RATES[self.type]
        if self.sample_rate not in rates:
            known = " or ".join(map(str, rates))
            raise invalid(
                f"format.rate cannot be {self.rate}: send {self.type} at {known}", "session.audio.input.format.rate",
                "unsupported_value",
            )  # fmt: skip


class Transcription(BaseModel):
    """What hears it."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class TurnDetection(ServerVad):
    """How utterances are found."""

    type: Literal["server_vad"] = "server_vad"
    silence_duration_ms: int | None = Field(default=_SILENCE_MS, gt=0, le=60_000)
    idle_timeout_ms: int | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class _Input(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: Format | None = None
    transcription: Transcription | None = None
    noise_reduction: dict[str, Any] | None = None
    turn_detection: TurnDetection | None = None


class _Audio(BaseModel):
    model_config = ConfigDict(extra="allow")

    input: _Input = _Input()


class SessionUpdate(BaseModel):
    """The session of a `session.update`. Fields that it leaves away stay as they are."""

    model_config = ConfigDict(extra="allow")

    type: Literal["transcription"]
    audio: _Audio = _Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] = []


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a session was told: for the audio that comes from now on."""

    format: Format
    transcription: Transcription
    turn_detection: TurnDetection | None
    include: tuple[str, ...]

    @property
    def logprobs(self) -> bool:
        """Probabilities of tokens are asked for."""
        return "item.input_audio_transcription.logprobs" in self.include

    def keywords(self, able: Capabilities) -> SessionKeywords:
        """Of the library's session. Without turn detection segments are as long as can be."""
        turn, asked = self.turn_detection, self.transcription
        keywords: SessionKeywords = {"vad": "auto"} if turn is None else {"vad": "on", "silence": turn.silence}
        hints = able.hints(asked.language, asked.languages or [], asked.prompt, asked.keywords or [])
        keywords.update(cast(SessionKeywords, hints))
        return keywords

    @property
    def partial_every(self) -> float | None:
        """Of the library's session."""
        return _DELAYS[self.transcription.delay or "medium"]

    def updated(self, session: SessionUpdate) -> Settings:
        """With the fields that an update has."""
        given: dict[str, Any] = {
            name: getattr(session.audio.input, name)
            for name in ("format", "transcription", "turn_detection")
            if name in session.audio.input.model_fields_set
        }
        given = {name: value for name, value in given.items() if value is not None or name == "turn_detection"}
        if "transcription" in given and given["transcription"].model is None:
            given["transcription"] = given["transcription"].model_copy(update={"model": self.transcription.model})
        if "include" in session.model_fields_set:
            given["include"] = tuple(session.include)
        return dataclasses.replace(self, **given)

    def warnings(self, session: SessionUpdate) -> Iterator[str]:
        """What of an update has no effect."""
        for part in (session, session.audio, session.audio.input, session.audio.input.transcription):
            for name in (part.model_extra or {}) if part is not None else ():
                yield f"{name[:50]} has no effect: there is no such field"
        if session.audio.input.noise_reduction is not None:
            yield "noise_reduction has no effect: the model hears what is sent"
        turn = session.audio.input.turn_detection
        if turn is not None:
            yield from turn.warnings("turn_detection")
            for name in ("idle_timeout_ms", "create_response", "interrupt_response"):
                if getattr(turn, name):
                    yield f"turn_detection.{name} has no effect: nobody answers here"

    def describe(self, id: str) -> dict[str, Any]:  # noqa: A002
        """As events have it."""
        kind = self.format.model_dump(exclude_none=True)
        return {
            "id": id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {**kind, "rate": self.format.sample_rate} if kind["type"] == "audio/pcm" else kind,
                    "transcription": self.transcription.model_dump(exclude_none=True),
                    "noise_reduction": None,
                    "turn_detection": self.turn_detection and self.turn_detection.model_dump(exclude_none=True),
                }
            },
            "include": list(self.include),
        }

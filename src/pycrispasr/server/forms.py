"""What a transcription is asked for with: the multipart form, read to the disk, and its fields, checked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, BinaryIO, Literal, cast

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from pycrispasr.options import Vad
from pycrispasr.server.capabilities import Capabilities
from pycrispasr.server.errors import ApiError, invalid
from pycrispasr.server.settings import ServerOptions

_PATIENCE = 60.0  # seconds that an upload may stand still
_MAX_FIELDS = 200
_END = 1024  # bytes at the end of a form, in which its last boundary is
_LISTS = (
    "include", "keywords", "known_speaker_names", "known_speaker_references", "languages", "timestamp_granularities",
)  # fmt: skip
_PART = re.compile(r"(\w+)\[(\w*)\]")  # how clients write lists and objects as fields of a form


def _none_if_empty(value: Any) -> Any:
    """An empty field of a form stands for none."""
    return None if value == "" else value


class ServerVad(BaseModel):
    """How a voice activity detector divides audio."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["server_vad"]
    prefix_padding_ms: int | None = Field(default=None, ge=0, description="Has no effect: 300 ms stay before speech.")
    silence_duration_ms: int | None = Field(default=None, gt=0, le=60_000, description="Silence that ends a segment.")
    threshold: float | None = Field(default=None, ge=0, le=1, description="Has no effect.")

    @property
    def silence(self) -> float | None:
        """In seconds."""
        return None if self.silence_duration_ms is None else self.silence_duration_ms / 1000

    def warnings(self, name: str) -> Iterator[str]:
        """What of it has no effect."""
        if self.threshold not in (None, 0.5):
            yield f"{name}.threshold has no effect: the detector has its own"
        if self.prefix_padding_ms not in (None, 300):
            yield f"{name}.prefix_padding_ms has no effect: 300 ms stay before and after speech"


_Optional = BeforeValidator(_none_if_empty)


class TranscriptionForm(BaseModel):
    """The fields of `POST /v1/audio/transcriptions` beside the file."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="A model's id, from `GET /v1/models`.")
    language: Annotated[str | None, _Optional] = Field(
        default=None, description="ISO 639-1. One that the model does not know is an error."
    )
    languages: list[str] = Field(default=[], description="Languages that may be spoken, as for `language`.")
    prompt: Annotated[str | None, _Optional] = Field(
        default=None, description="Context, for models that have a place for it; else a warning."
    )
    keywords: list[str] = Field(default=[], description="As for `prompt`.")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"] = Field(
        default="json", description="diarized_json is an error for a model that does not tell speakers apart."
    )
    temperature: Annotated[float | None, _Optional] = Field(
        default=None, ge=0, le=1, description="0: the most probable token is taken. Above it is an error."
    )
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        default=[], description="With verbose_json; by default segments."
    )
    include: list[Literal["logprobs"]] = Field(default=[], description="With json, and in streams.")
    chunking_strategy: Annotated[Literal["auto"] | ServerVad | None, _Optional] = Field(
        default=None, description="How long audio is divided. An object may be a JSON text."
    )
    known_speaker_names: list[str] = Field(default=[], description="An error: no model here knows a voice again.")
    known_speaker_references: list[str] = Field(default=[], description="As for `known_speaker_names`.")
    stream: Annotated[bool | None, _Optional] = Field(
        default=None,
        description="Answer with server-sent events; with verbose_json a segment at a time, with its times.",
    )

    @property
    def logprobs(self) -> bool:
        """Probabilities of tokens are asked for."""
        return "logprobs" in self.include

    @property
    def words(self) -> bool:
        """Times of words are asked for."""
        return "word" in self.timestamp_granularities

    @property
    def segments(self) -> bool:
        """Segments are asked for."""
        return "segment" in self.timestamp_granularities or not self.words

    @property
    def vad(self) -> Vad:
        """As the library calls it."""
        return "auto" if self.chunking_strategy is None else "on"

    @property
    def silence(self) -> float | None:
        """As the library calls it."""
        return self.chunking_strategy.silence if isinstance(self.chunking_strategy, ServerVad) else None

    def check(self) -> None:
        """Refuses what no model here can do, and fields that do not go together.

        Raises:
            ApiError: 400.
        """
        for name in ("known_speaker_names", "known_speaker_references"):
            if getattr(self, name):
                raise invalid(f"{name}: no model here knows a voice again", name, "unsupported_parameter")
        if self.temperature:
            raise invalid(
                f"temperature cannot be {self.temperature}: the most probable token is taken at every step, send 0",
                "temperature",
                "unsupported_value",
            )
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise invalid(
                "timestamp_granularities needs response_format=verbose_json", "timestamp_granularities", "invalid_value"
            )
        if self.logprobs and self.response_format != "json":
            raise invalid("include=logprobs needs response_format=json", "include", "invalid_value")
        if self.stream and self.response_format not in ("json", "text", "verbose_json"):
            raise invalid(
                f"stream cannot be true with response_format={self.response_format}: ask for json or verbose_json",
                "stream", "invalid_value",
            )  # fmt: skip

    def warnings(self, able: Capabilities) -> list[str]:
        """What of it means nothing to a model, in sentences.

        Raises:
            ApiError: 400: the model does not know a language, or has no probabilities.
        """
        if self.response_format == "diarized_json" and not able.speakers:
            raise invalid(
                "response_format cannot be diarized_json: this model does not tell speakers apart", "response_format",
                "unsupported_value",
            )  # fmt: skip
        check_language(self.language, able, "language")
        for language in self.languages:
            check_language(language, able, "languages")
        if self.logprobs and not able.tokens:
            raise invalid("include=logprobs: this model tells no probabilities", "include", "unsupported_value")
        found = list(context_warnings(able, self.prompt, self.keywords))
        if (self.language or self.languages) and able.languages is None:
            found.append("language has no effect: this model finds it by itself")
        if isinstance(self.chunking_strategy, ServerVad):
            found += self.chunking_strategy.warnings("chunking_strategy")
        return found


def check_language(language: str | None, able: Capabilities, param: str) -> None:
    """Refuses a language that a model does not know.

    Raises:
        ApiError: 400.
    """
    if language and able.languages is not None and language.lower() not in able.languages:
        known = ", ".join(able.languages)
        raise invalid(f"{param} cannot be {language[:20]!r}: this model knows {known}", param, "unsupported_language")


def context_warnings(able: Capabilities, prompt: str | None, keywords: list[str]) -> Iterator[str]:
    """For a model without a place for text beside the audio."""
    for name, value in (("prompt", prompt), ("keywords", keywords)):
        if value and not able.prompt:
            yield f"{name} has no effect: this model takes no text beside the audio"


class _Upload:
    """An uploaded file without its name, which would stand in messages."""

    name = "upload"

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@contextlib.asynccontextmanager
async def read_form(
    request: Request, options: ServerOptions
) -> AsyncIterator[tuple[BinaryIO, TranscriptionForm, list[str]]]:
    """Reads a request: beyond a megabyte to a temporary file, which goes when the context is left.

    Returns:
        The file, the fields, and a sentence for each field that there is not.

    Raises:
        ApiError: The form is not well-formed (400), too large (413), too slow (408) or none (415).
        ClientDisconnect: The client has gone away.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise ApiError(415, "send a form: Content-Type multipart/form-data", code="unsupported_media_type")
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise ApiError(415, "send a form in UTF-8", code="unsupported_media_type")  # some of Python's codecs take ages
    too_large = ApiError(
        413, f"a request may have {options.max_upload:.15g} bytes at most", code="request_too_large", param="file"
    )
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length) > options.max_upload:
        raise too_large
    size, end, ends = 0, b"", time.monotonic() + options.timeout
    closing = b"--" + parameters.get(b"boundary", b"") + b"--"

    async def receive() -> Message:
        nonlocal size, end
        patience = min(_PATIENCE, ends - time.monotonic())
        try:
            message = await asyncio.wait_for(request.receive(), patience)
        except asyncio.TimeoutError:
            told = f"nothing came for {_PATIENCE:g} s" if patience == _PATIENCE else f"it took {options.timeout:g} s"
            raise ApiError(408, f"the upload is too slow: {told}", code="upload_timeout") from None
        body = message.get("body", b"")
        size, end = size + len(body), (end + body[-_END:])[-_END:]
        if size > options.max_upload:
            raise too_large
        if message["type"] == "http.request" and not message.get("more_body") and closing not in end:
            raise invalid("the form cannot be read: it breaks off, or has another boundary", code="invalid_form")
        return message

    try:
        form = await Request(request.scope, receive).form(max_files=1, max_fields=_MAX_FIELDS)
    except HTTPException as error:
        raise invalid(f"the form cannot be read: {error.detail}", code="invalid_form") from None
    try:
        yield _fields(form)
    finally:
        await form.close()


def _fields(form: FormData) -> tuple[BinaryIO, TranscriptionForm, list[str]]:
    """A form's file and fields."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise invalid("file is missing: send the recording as a file with a name", "file", "missing_parameter")
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in form.multi_items():
        if name == "file":
            continue
        if isinstance(value, UploadFile):
            raise invalid(f"{name[:50]} cannot be a file", name[:50], "invalid_value")
        base, inner = found.groups() if (found := _PART.fullmatch(name)) else (name, "")
        if base not in TranscriptionForm.model_fields:
            unknown.append(f"{name[:50]} has no effect: there is no such field")
        elif base in _LISTS:
            values.setdefault(base, []).append(value)
        elif inner:
            part = values.setdefault(base, {})
            if not isinstance(part, dict) or inner in part:
                raise invalid(f"{base} is there twice", base, "invalid_value")
            part[inner] = value
        elif base in values:
            raise invalid(f"{base} is there twice", base, "invalid_value")
        else:
            values[base] = _object(value) if base == "chunking_strategy" else value
    try:
        fields = TranscriptionForm.model_validate(values)
    except ValidationError as error:
        raise of_validation(error) from None
    fields.check()
    return cast("BinaryIO", _Upload(file.file)), fields, unknown


def _object(text: str) -> Any:
    """An object that is written as JSON; any other text stays what it is."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(text), dict):
            return value
    return text


def of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with fields."""
    first = error.errors(include_url=False, include_context=False)[0]
    names = [str(part) for part in first["loc"]]
    param = names[0] if names else None
    if first["type"] == "missing":
        return invalid(f"{'.'.join(names)} is missing", param, "missing_parameter")
    return invalid(f"{'.'.join(names)}: {first['msg'][:300]}", param, "invalid_value")


def form_schema() -> dict[str, Any]:
    """The form as OpenAPI describes it: lists with the brackets that clients write behind their names."""
    schema = TranscriptionForm.model_json_schema()
    definitions = schema.pop("$defs")
    file = {"type": "string", "format": "binary", "description": "The recording: any format that can be read."}
    properties: dict[str, Any] = {"file": file}
    for name, field in schema["properties"].items():
        choices = [one for one in field.pop("anyOf", ()) if one.get("type") != "null"]
        choices = [definitions[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in choices]
        field = {**field, **(choices[0] if len(choices) == 1 else {"anyOf": choices} if choices else {})}
        if field.get("default", "") is None:
            del field["default"]
        properties[f"{name}[]" if name in _LISTS else name] = field
    return {"type": "object", "properties": properties, "required": ["file", "model"]}

"""The server as an ASGI app: routes, keys, origins, errors, and the page for browsers."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from pycrispasr import __version__
from pycrispasr.errors import PycrispasrError
from pycrispasr.options import LoadingKeywords, check_names, takes
from pycrispasr.server import errors, realtime, transcriptions
from pycrispasr.server.errors import ApiError, invalid
from pycrispasr.server.forms import form_schema
from pycrispasr.server.reporting import Reporting, log_failure
from pycrispasr.server.served import ServedModel
from pycrispasr.server.service import Service
from pycrispasr.server.settings import ServerOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_OPEN = {*_PAGE, "/health", "/docs", "/docs/oauth2-redirect", "/openapi.json"}  # no key is asked for there


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class ModelAnswer(BaseModel):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    """The models that are served."""

    object: str
    data: list[ModelAnswer]


@takes(LoadingKeywords)
def create_app(
    models: Sequence[str], options: ServerOptions | None = None, **loading: Unpack[LoadingKeywords]
) -> FastAPI:
    """The server as an app for any ASGI server: uvicorn, hypercorn, granian.

    Args:
        models: What `Model` takes, or "ID=NAME" where clients are to call it by another name. The first one is loaded
            when the app starts, others at their first use.
        options: How it behaves. None: as `ServerOptions` says.
        **loading: See `LoadingOptions`.

    Raises:
        UsageError: There is no model, or two have the same name.
    """
    check_names("create_app", loading, LoadingKeywords)
    options = options or ServerOptions()
    service = Service(models, options, loading)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="pycrispasr", version=__version__, lifespan=lifespan, redoc_url=None,
        description="Speech to text with OpenAI's shapes.", separate_input_output_schemas=False,
    )  # fmt: skip
    app.state.service = service
    _add_routes(app, service)
    for kind in (ApiError, PycrispasrError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(_Guard, options=options)
    if options.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.cors, allow_methods=("GET", "POST"), allow_headers=("*",),
            expose_headers=("retry-after", "x-request-id", "x-warning"),
        )  # fmt: skip
    app.add_middleware(Reporting, metrics=service.metrics)
    describe = app.openapi
    app.openapi = lambda: _without_422(describe())  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    def failing(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": ErrorAnswer} for status in (*statuses, *((401,) if service.options.api_keys else ()))}

    app.add_api_route(
        transcriptions.ROUTE, transcriptions.transcribe, methods=["POST"], response_model=None,
        summary="Transcribe a recording", tags=["audio"],
        responses={
            200: {"description": "The text, in the format that was asked for.",
                  "content": {kind: {"schema": {}} for kind in (
                      "application/json", "text/plain", "application/x-subrip", "text/vtt", "text/event-stream")}},
            **failing(400, 403, 404, 408, 413, 415, 429, 500, 503, 504),
        },
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}
        },
    )  # fmt: skip

    app.add_api_websocket_route(realtime.ROUTE, realtime.realtime)

    @app.post("/v1/audio/translations", status_code=400, summary="Refused", tags=["audio"], responses=failing(400, 403))
    async def translate() -> None:
        """No model here translates."""
        raise invalid("no model here translates: POST /v1/audio/transcriptions writes what is said", code="unsupported")

    @app.get("/v1/models", summary="List the models", tags=["models"], responses=failing())
    async def list_models() -> ModelsAnswer:
        """The first one is taken by realtime sessions that name none."""
        return ModelsAnswer(object="list", data=[_model_answer(one) for one in service.models])

    @app.get("/v1/models/{model:path}", summary="Look at a model", tags=["models"], responses=failing(404))
    async def get_model(model: str) -> ModelAnswer:
        """Its id is all of the path's rest, slashes and colons included."""
        return _model_answer(service.models.find(model))

    @app.get("/health", summary="Is it ready?", tags=["server"], responses={503: {"model": ErrorAnswer}})
    async def health() -> dict[str, str]:
        """200 when the first model was loaded and warmed up, and the server is not being stopped; else 503."""
        try:
            if service.admission.ending.is_set():
                raise errors.ending()
            service.models.check_ready()
            if service.models.first.failure is not None:
                raise errors.of(service.models.first.failure)
        except ApiError as error:
            raise ApiError(503, error.message, code=error.code, retry_after=2) from None
        return {"status": "ok"}

    @app.get(
        "/metrics", summary="Numbers for Prometheus", tags=["server"], response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **failing()},
    )  # fmt: skip
    async def metrics() -> Response:
        """In its text format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    folder = resources.files("pycrispasr.server").joinpath("page")
    for path, (name, media_type) in _PAGE.items():
        if folder.joinpath(name).is_file():
            app.add_api_route(path, _file(folder.joinpath(name).read_bytes(), media_type), include_in_schema=False)


def _file(content: bytes, media_type: str) -> Any:
    async def get() -> Response:
        return Response(content, media_type=media_type, headers=_PAGE_HEADERS)

    return get


def _model_answer(served: ServedModel) -> ModelAnswer:
    return ModelAnswer(id=served.id, object="model", created=served.created, owned_by="pycrispasr")


class _Guard:
    """Lets in who has a key, where keys are asked for, and no page of somebody else."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app, self._origins = app, options.cors
        self._keys = [_digest(key.encode()) for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(HTTPConnection(scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, request: HTTPConnection) -> None:
        """Refuses a request.

        Raises:
            ApiError: 401, 403.
        """
        origin = request.headers.get("origin")
        harmless = request.scope.get("method") in ("GET", "HEAD", "OPTIONS")  # another site's page gets no answer
        own = origin is None or _host(origin) == request.headers.get("host")
        if not (own or harmless or {origin, "*"} & set(self._origins)):
            raise ApiError(403, f"pages of {str(origin)[:100]} may not use this server: see --cors", code="origin")
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if self._keys and path not in _OPEN and not self._knows(_key(request)):
            raise ApiError(
                401, "send a key of this server: Authorization: Bearer KEY", code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip

    def _knows(self, key: str) -> bool:
        digest = _digest(key.encode("utf-8", "surrogateescape"))
        return any(hmac.compare_digest(digest, known) for known in self._keys)


def _host(origin: str) -> str | None:
    """Host and port of an origin; None where it names none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _digest(key: bytes) -> bytes:
    """Of one length, so that a comparison does not tell it."""
    return hashlib.sha256(key).digest()


def _key(request: HTTPConnection) -> str:
    """What a client sends; browsers cannot set headers of a WebSocket, and send a subprotocol."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    offered: list[str] = request.scope.get("subprotocols", [])
    before = "openai-insecure-api-key."
    return next((one.removeprefix(before) for one in offered if one.startswith(before)), "")


async def _answer(request: Request, error: Exception) -> Response:
    """To whatever went wrong."""
    answer = _api_error(error)
    if answer.status >= 500 and answer is not error:
        log_failure(request.state.request_id, error)
    return answer.response()


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, HTTPException):
        messages = {
            404: ("there is nothing at this address: /docs lists what there is", "not_found"),
            405: ("this address takes another method: /docs tells which", "method_not_allowed"),
        }
        message, code = messages.get(error.status_code, (str(error.detail), None))
        return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return invalid(str(error.errors()[0].get("msg")), code="invalid_value")
    return errors.of(error)


def _without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """A description without the errors that FastAPI would send by itself."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema

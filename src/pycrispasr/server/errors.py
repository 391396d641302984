"""What clients are told when something goes wrong: one shape, OpenAI's, for every status."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from pycrispasr.errors import (
    AudioError,
    CancelledError,
    ClosedError,
    ModelFormatError,
    ModelNotFoundError,
    OutOfMemoryError,
    PycrispasrError,
    UnsupportedModelError,
    UnsupportedOperationError,
    UsageError,
)
from pycrispasr.text import printable

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: One sentence that names the value and the way out.
        code: A word for programs.
        param: The field that is wrong.
        retry_after: Seconds after which another try makes sense.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        # Both may quote what a client sent: whatever that is, it can be written as JSON.
        message, param = printable(message), param and printable(param)
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)

    @property
    def error(self) -> dict[str, str | None]:
        """As answers and events have it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self, **more: Any) -> JSONResponse:
        """The answer, with more fields beside "error"."""
        return JSONResponse({"error": self.error, **more}, self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The answer to a request that cannot be honoured."""
    return ApiError(400, message, param=param, code=code)


def ending() -> ApiError:
    """The answer while the server is being stopped."""
    return ApiError(503, "the server is stopping: try another one, or later", code="stopping", retry_after=5)


def of(error: BaseException) -> ApiError:
    """The answer for what the library raises. What it does not raise on purpose is told as little as possible."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AudioError):
        return invalid(str(error), "file", "invalid_audio")
    if isinstance(error, (CancelledError, ClosedError)):
        return ApiError(503, "the work was stopped: try again", code="stopped", retry_after=1)
    if isinstance(error, (UnsupportedOperationError, UsageError)):
        return invalid(str(error))
    if isinstance(error, (ModelNotFoundError, ModelFormatError, UnsupportedModelError)):
        return ApiError(500, "the model cannot be loaded: the server's log says why", code="model_not_loaded")
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, "the server has too little memory for this now", code="out_of_memory", retry_after=10)
    if isinstance(error, PycrispasrError):
        return ApiError(500, str(error))
    return ApiError(500, "the server failed: its log says where")

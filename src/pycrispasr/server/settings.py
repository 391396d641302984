"""The server's options: declared, documented and checked here."""

from __future__ import annotations

import dataclasses

from pycrispasr.errors import UsageError
from pycrispasr.options import check_count, check_seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        api_keys: Keys of which clients must send one. None given: no key is asked for.
        cors: Origins ("https://example.com") whose pages may use the server, or "*" for any. Pages that the server
            itself gives always may.
        max_upload: Bytes of one request.
        max_seconds: Seconds of sound of one recording.
        parallel: Transcriptions that are worked on at once.
        queue: Transcriptions that wait for their turn; more are refused with 429.
        sessions: Realtime sessions at once; more are refused with 429.
        timeout: Seconds that a transcription may take, the wait for its turn included, and as many for its upload; and
            seconds without a message after which a realtime session is closed.
        strict: A field that means nothing to the model is an error, not a warning.
        unload_after: Seconds without a request after which a model's memory is given back. None: never.
    """

    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    max_upload: float = 1e9
    max_seconds: float = 14_400.0
    parallel: int = 4
    queue: int = 100
    sessions: int = 64
    timeout: float = 3600.0
    strict: bool = False
    unload_after: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_seconds", "timeout"):
            check_seconds(name, getattr(self, name))
        if self.unload_after is not None:
            check_seconds("unload_after", self.unload_after)
        for name in ("parallel", "sessions"):
            check_count(name, getattr(self, name))
        if not self.max_upload > 0:
            raise UsageError(f"max_upload cannot be {self.max_upload}: it must be a positive number of bytes")
        if self.queue < 0:
            raise UsageError(f"queue cannot be {self.queue}: it must be at least 0")
        if any(not key.isascii() or not key or " " in key for key in self.api_keys):
            raise UsageError("an API key must be letters and digits of ASCII, without spaces")

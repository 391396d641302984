"""The models of a server: found by name, loaded when they are needed, unloaded when nobody needs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np

from pycrispasr.audio import SAMPLE_RATE
from pycrispasr.errors import UsageError
from pycrispasr.model import Model
from pycrispasr.options import LoadingKeywords
from pycrispasr.server import errors
from pycrispasr.server.errors import ApiError

_logger = logging.getLogger("pycrispasr.server")

_ALIAS = re.compile(r"([\w.:/-]+)=(.+)")


class ServedModel:
    """A model that is loaded at its first use. Belongs to one event loop.

    Attributes:
        id: What clients call it.
        created: When the server took it up: a Unix time in seconds.
        model: It, while it is loaded.
        ready: It has been loaded once.
        failure: Why it could not be loaded the last time.
    """

    def __init__(self, id: str, name: str, loading: LoadingKeywords) -> None:  # noqa: A002  as in OpenAI's API
        self.id, self.created = id, int(time.time())
        self.model: Model | None = None
        self.ready = False
        self.failure: BaseException | None = None
        self._name, self._loading = name, loading
        self._work: asyncio.Task[Model] | None = None
        self._users = 0
        self._left = time.monotonic()  # when the last user went

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Model]:
        """Keeps it loaded; loads it first if need be.

        Raises:
            PycrispasrError: It cannot be loaded.
        """
        self._users += 1
        try:
            yield self.model or await self.load()
        finally:
            self._users -= 1
            self._left = time.monotonic()

    async def load(self) -> Model:
        """Loads it, and works with it once, so that the first request does not wait for what is made only once.

        All who come meanwhile wait for the same work, which goes on when they leave.

        Raises:
            PycrispasrError: It cannot be loaded.
        """
        if self._work is None:
            self._work = asyncio.ensure_future(self._load())
        return await asyncio.shield(self._work)

    async def _load(self) -> Model:
        begun = time.perf_counter()
        try:
            self.model = await asyncio.to_thread(_open, self._name, self._loading)
        except Exception as error:
            self.failure = error
            _logger.error("%s cannot be loaded: %s", self.id, error)  # noqa: TRY400  it says what to do
            raise
        finally:
            self._work = None
        self.failure, self.ready = None, True
        _logger.info("%s loaded in %.1f s", self.id, time.perf_counter() - begun)
        return self.model

    def unload_if_idle(self, seconds: float) -> None:
        """Gives its memory back when nobody has used it for so long."""
        if self.model is not None and not self._users and time.monotonic() - self._left >= seconds:
            self.close()
            _logger.info("%s unloaded", self.id)

    def close(self) -> None:
        """Gives its memory back as soon as what runs has ended."""
        model, self.model = self.model, None
        if model is not None:
            model.close()


class ServedModels:
    """The models of a server, the first of which is loaded when it starts.

    Args:
        names: What `Model` takes; or "ID=NAME", where clients are to call it by another name.
        loading: Of each of them.

    Raises:
        UsageError: There is none, or two have the same name.
    """

    def __init__(self, names: Sequence[str], loading: LoadingKeywords) -> None:
        self._models: dict[str, ServedModel] = {}
        for name in names:
            alias = None if os.path.exists(name) else _ALIAS.fullmatch(name)
            id, source = alias.groups() if alias else (name, name)  # noqa: A001
            if id in self._models:
                raise UsageError(f"there are two models called {id!r}: give one of them another name, NAME=MODEL")
            self._models[id] = ServedModel(id, source, loading)
        if not self._models:
            raise UsageError("there is no model to serve: name at least one")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def first(self) -> ServedModel:
        """The one that is loaded when the server starts."""
        return next(iter(self))

    def find(self, id: str, param: str | None = "model") -> ServedModel:  # noqa: A002
        """The model that a client names.

        Raises:
            ApiError: 404: there is none.
        """
        found = self._models.get(id)
        if found is None:
            raise ApiError(
                404,
                f"there is no model {id[:100]!r} here: GET /v1/models lists those that there are",
                code="model_not_found",
                param=param,
            )
        return found

    def check_ready(self) -> None:
        """Refuses work until the first model has been loaded.

        Raises:
            ApiError: 503: it is being loaded. 500: it cannot be.
        """
        if not self.first.ready:
            if self.first.failure is not None:
                raise errors.of(self.first.failure)
            raise ApiError(503, "the model is being loaded: try again soon", code="loading", retry_after=2)


def _open(name: str, loading: LoadingKeywords) -> Model:
    model = Model(name, **loading)
    model.transcribe(np.zeros(SAMPLE_RATE, np.float32), sample_rate=SAMPLE_RATE, vad="off")
    return model

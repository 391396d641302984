"""What the parts of a server share: its options, models, queue and metrics; and how it starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pycrispasr.options import LoadingKeywords
from pycrispasr.server.admission import Admission
from pycrispasr.server.metrics import Metrics
from pycrispasr.server.served import ServedModels
from pycrispasr.server.settings import ServerOptions

_MORE_THREADS = 8  # for models that are loaded, and for files that are looked at
_LOOK_AFTER = 1.0  # seconds between two looks for models that nobody uses


class Service:
    """A server, without the web around it. Belongs to one event loop.

    Attributes:
        options: How it behaves.
        models: What it serves.
        admission: Who may come in.
        metrics: What it counts.
    """

    def __init__(self, names: Sequence[str], options: ServerOptions, loading: LoadingKeywords) -> None:
        self.options = options
        self.models = ServedModels(names, loading)
        self.admission = Admission(options)
        self.metrics = Metrics(self.admission, self.models)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Around all requests: loads the first model meanwhile, and closes all in the end."""
        threads = ThreadPoolExecutor(
            self.options.parallel + self.options.sessions + _MORE_THREADS, thread_name_prefix="pycrispasr-server"
        )
        # Sessions and jobs work in `asyncio.to_thread`, whose usual few threads they would wait for.
        asyncio.get_running_loop().set_default_executor(threads)
        tasks = [asyncio.ensure_future(self._load_first()), asyncio.ensure_future(self._unload_idle())]
        try:
            yield
        finally:
            self.admission.ending.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for served in self.models:
                served.close()
            threads.shutdown(wait=False, cancel_futures=True)

    async def _load_first(self) -> None:
        with contextlib.suppress(Exception):  # `ServedModel.failure` has it
            await self.models.first.load()

    async def _unload_idle(self) -> None:
        seconds = self.options.unload_after
        while seconds is not None:
            await asyncio.sleep(min(seconds, _LOOK_AFTER))
            for served in self.models:
                served.unload_if_idle(seconds)

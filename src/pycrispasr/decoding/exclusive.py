"""What only one thread may use at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from pycrispasr.errors import BusyError, UsageError


class Exclusive:
    """Lets one thread in at a time, in the process that made it.

    Args:
        what: Its name in errors.
    """

    def __init__(self, what: str) -> None:
        self._what, self._process = what, os.getpid()
        self._lock = threading.Lock()

    @property
    def is_forked(self) -> bool:
        """True in a child of the process that made it, which has none of the library's threads."""
        return self._process != os.getpid()

    def check_process(self) -> None:
        """For calls from any thread, which wait for locks or for other threads: here nobody would let go of these.

        Raises:
            UsageError: This process was forked from the one that made it.
        """
        if self.is_forked:
            raise UsageError(f"this {self._what} belongs to the process that was forked: make another one here")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Around a call.

        Raises:
            BusyError: Another thread is inside.
            UsageError: This process was forked from the one that made it.
        """
        self.check_process()
        if not self._lock.acquire(blocking=False):
            raise BusyError(f"another thread is using this {self._what}: give each thread a {self._what} of its own")
        try:
            yield
        finally:
            self._lock.release()

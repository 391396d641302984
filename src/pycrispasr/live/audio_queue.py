"""Bounded queue between capture and decoding."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from pycrispasr.audio import Samples

_PATIENCE = 0.5  # seconds between looks at the clock, since some systems do not interrupt a wait


class AudioQueue:
    """A bounded queue of blocks of samples. Any thread may use it.

    Args:
        seconds: How much audio it holds.
        listener: Called at each change, from the thread that makes it.
    """

    def __init__(self, seconds: float, listener: Callable[[], object] | None = None) -> None:
        self.listener = listener
        self._seconds = seconds
        self._changed = threading.Condition()
        self._blocks: collections.deque[Samples | int] = collections.deque()  # or the number of samples that were lost
        self._samples = 0
        self._rate = 0
        self._ended = self._stopped = False

    @property
    def rate(self) -> int:
        """Samples per second of what was pushed, or 0 before anything was."""
        return self._rate

    @property
    def seconds(self) -> float:
        """How much audio it holds."""
        return self._samples / self._rate if self._rate else 0.0

    @property
    def ended(self) -> bool:
        """True after `end`."""
        return self._ended

    def push(self, samples: Samples, rate: int, *, wait: bool) -> bool:
        """Appends a block, which is kept as it is.

        Without room it is lost, and as many samples of silence take its place, unless this call waits for room. A
        block always finds room in an empty queue.

        Args:
            samples: Mono.
            rate: Samples per second, the same in each call.
            wait: Wait for room.

        Returns:
            False when the block was lost, or the audio has ended, or was stopped meanwhile.
        """
        with self._changed:
            self._rate = rate
            while wait and not (self._ended or self._stopped or self._fits(len(samples), rate)):
                self._changed.wait(_PATIENCE)
            if self._ended or self._stopped:
                return False
            fits = self._fits(len(samples), rate)
            if fits:
                self._blocks.append(samples)
                self._samples += len(samples)
            elif self._blocks and isinstance(self._blocks[-1], int):
                self._blocks[-1] += len(samples)
            else:
                self._blocks.append(len(samples))
            self._tell()
            return fits

    def has_room(self, samples: int, rate: int) -> bool:
        """True when a push of so many samples would not have to wait."""
        with self._changed:
            return self._ended or self._stopped or self._fits(samples, rate)

    def end(self) -> None:
        """Nothing more will be pushed."""
        with self._changed:
            self._ended = True
            self._tell()

    def stop(self) -> None:
        """Wakes all who wait, for good."""
        with self._changed:
            self._stopped = True
            self._tell()

    def take(self) -> Samples | int | None:
        """The next block, or the number of samples that were lost there; None when it is empty."""
        with self._changed:
            if not self._blocks:
                return None
            block = self._blocks.popleft()
            if not isinstance(block, int):
                self._samples -= len(block)
            self._changed.notify_all()
            return block

    def ready(self) -> bool:
        """True when something is in it, or nothing more will come."""
        with self._changed:
            return bool(self._blocks) or self._ended or self._stopped

    def wait(self) -> None:
        """Returns when it is ready."""
        with self._changed:
            while not (self._blocks or self._ended or self._stopped):
                self._changed.wait(_PATIENCE)

    def _fits(self, samples: int, rate: int) -> bool:
        return not self._samples or self._samples + samples <= self._seconds * rate

    def _tell(self) -> None:
        self._changed.notify_all()
        if self.listener:
            self.listener()

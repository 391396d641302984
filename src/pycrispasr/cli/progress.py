"""How far `transcribe` is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pycrispasr.cli.common import complain, tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_LINE_EVERY = 30.0  # seconds


class Progress:
    """Shows on stderr how far the work is, and prints text on stdout beside it. A context manager.

    Args:
        jobs: Number of recordings.
        lines: Where stderr is no terminal, tell of each recording, and every half minute how far it is.
    """

    def __init__(self, jobs: int, *, lines: bool) -> None:
        self._jobs = jobs
        self._terminal = sys.stderr.isatty()
        self._lines = lines and not self._terminal
        self._start = self._told = time.perf_counter()
        self._console: Console | None = None
        self._live: Live | None = None
        self._open_line = False  # on stdout

    def __enter__(self) -> Progress:
        if self._terminal:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(stderr=True)
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._open_line:
            print(flush=True)

    def update(self, seconds: float, name: str, *, jobs: int, known: tuple[float, int], text: str) -> None:
        """Shows how far the work is.

        Args:
            seconds: Of audio that is done.
            name: What is worked on.
            jobs: Recordings that are done.
            known: Seconds of audio, and recordings, whose length is known.
            text: What is being written.
        """
        now = time.perf_counter()
        speed = seconds / (now - self._start) if now > self._start else 0.0
        total = known[0] / known[1] * self._jobs if known[1] else 0.0  # as if the others were as long
        left = (total - seconds) / speed if speed else None
        many = f"{jobs} of {self._jobs} recordings, " if self._jobs > 1 else ""
        about = "about " if known[1] < self._jobs else ""
        state = f"{many}{clock(seconds)} of {about}{clock(max(total, seconds))}, {speed:.1f}x"
        rest = f", {clock(left)} left" if left is not None and seconds else ""
        if self._live is not None and self._console is not None:
            from rich.progress_bar import ProgressBar
            from rich.table import Table
            from rich.text import Text

            width = self._console.width
            head = Table.grid(padding=(0, 1))
            head.add_row(Text(_tail(name, 30)), ProgressBar(max(total, 1e-9), seconds, width=20), Text(state + rest))
            picture = Table.grid()
            if text:
                picture.add_row(Text(_tail(text, width - 1), "dim", no_wrap=True))
            picture.add_row(head)
            self._live.update(picture, refresh=True)
        elif self._lines and now - self._told >= _LINE_EVERY:
            self._told = now
            tell(f"{name}: {state}{rest}")

    def print(self, text: str, *, gap: str = "") -> None:
        """Prints a segment on stdout: on a terminal as a line of its own, else behind `gap` in the same one."""
        if not text:
            return
        if sys.stdout.isatty():
            self._above(text + "\n")
        else:
            self._open_line = True
            sys.stdout.write(gap + text)
            sys.stdout.flush()

    def end_line(self) -> None:
        """The text of a recording is complete."""
        if not sys.stdout.isatty():
            self._open_line = False
            print(flush=True)

    def write(self, content: str) -> None:
        """Prints whole lines on stdout."""
        self._above(content)

    def tell(self, message: str) -> None:
        """Says on stderr, where lines are wanted, what is done."""
        if self._lines:
            tell(message)

    def complain(self, message: str) -> None:
        """Says on stderr what went wrong."""
        if self._live is not None:
            self._live.update("", refresh=True)
        complain(message)

    def _above(self, content: str) -> None:
        if self._live is not None and sys.stdout.isatty():
            self._live.update("", refresh=True)  # it is drawn again below the text
        sys.stdout.write(content)
        sys.stdout.flush()


def clock(seconds: float) -> str:
    """A time for people: "4.2 s", "3 min 5 s", "1 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]

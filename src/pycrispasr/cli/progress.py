"""How far `transcribe` is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pycrispasr.cli.common import complain, is_terminal, plain, printable, tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_DRAW_EVERY = 0.1  # seconds
_LINE_EVERY = 30.0
_BAR = 12  # letters


class Progress:
    """Shows on stderr how far the work is, and prints text on stdout beside it. A context manager.

    On a terminal there is a bar. Elsewhere a line for each recording, and one every half minute, where files are
    written or `verbose` is set.

    Args:
        jobs: Number of recordings.
        verbose: Lines for the recordings on a terminal, too.
        files: Files are written.
    """

    def __init__(self, jobs: int, *, verbose: bool, files: bool) -> None:
        self._jobs = jobs
        self._terminal = is_terminal(sys.stderr)
        self._lines = verbose or (files and not self._terminal)
        self._start = self._told = time.perf_counter()
        self._drawn = 0.0
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

    def update(self, name: str, seconds: float, *, jobs: int, known: tuple[float, int], text: str) -> None:
        """Shows how far the work is. It may be called as often as one likes.

        Args:
            name: What is worked on.
            seconds: Of audio that is done.
            jobs: Recordings that are done.
            known: Seconds of audio, and recordings, whose length is known.
            text: What is being written, or was written last.
        """
        now = time.perf_counter()
        if self._live is not None and now - self._drawn >= _DRAW_EVERY:
            self._drawn = now
            self._draw(printable(name), seconds, self._state(seconds, jobs, known), plain(text))
        elif self._lines and self._live is None and now - self._told >= _LINE_EVERY:
            self._told = now
            tell(f"{name}: {self._state(seconds, jobs, known)[1]}")

    def _state(self, seconds: float, jobs: int, known: tuple[float, int]) -> tuple[float, str]:
        """The seconds of all audio, and the state in words: "3 of 7, 0:15 of about 0:32, 58x, 0:01 left"."""
        took = time.perf_counter() - self._start
        total = max(seconds, known[0] / known[1] * self._jobs if known[1] else 0.0)  # as if the others were as long
        state = f"{jobs} of {self._jobs}, " if self._jobs > 1 else ""
        state += f"{_digits(seconds)} of {'about ' * (known[1] < self._jobs)}{_digits(total)}"
        if seconds:
            state += f", {_speed(seconds / took)}x, {_digits((total - seconds) / seconds * took)} left"
        return total, state

    def _draw(self, name: str, seconds: float, state: tuple[float, str], text: str) -> None:
        """Two lines, however wide the terminal is: the text, and the name, a bar and the state."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._live is None or self._console is None:
            return
        total, words = state
        room = self._console.width - 1 - len(words)
        cells: list[Text | ProgressBar] = [Text(words, no_wrap=True, overflow="crop")]
        line = Table.grid(padding=(0, 1))
        if room >= _BAR + 2:
            cells.insert(0, ProgressBar(max(total, 1e-9), seconds, width=_BAR))
        if room >= 2 * _BAR + 2:
            cells.insert(0, Text(_tail(name, min(len(name), room - _BAR - 2)), no_wrap=True))
        line.add_row(*cells)
        picture = Table.grid()
        if text:
            picture.add_row(Text(_tail(text, self._console.width - 1), "dim", no_wrap=True))
        picture.add_row(line)
        self._live.update(picture, refresh=True)

    def print(self, text: str, *, gap: str = "") -> None:
        """Prints a segment on stdout: on a terminal as a line of its own, else behind `gap` in the same one."""
        text = plain(text)
        if not text:
            return
        if is_terminal(sys.stdout):
            self._above(text + "\n")
        else:
            self._open_line = True
            sys.stdout.write(gap + text)
            sys.stdout.flush()

    def end_line(self) -> None:
        """The text of a recording is complete."""
        if not is_terminal(sys.stdout):
            self._open_line = False
            print(flush=True)

    def write(self, content: str) -> None:
        """Prints whole lines on stdout."""
        self._above(content)

    def tell(self, message: str) -> None:
        """Says on stderr, where lines are wanted, what is done."""
        if self._lines:
            self._clear()
            tell(message)

    def complain(self, message: str) -> None:
        """Says on stderr what went wrong."""
        self._clear()
        complain(message)

    def _above(self, content: str) -> None:
        if is_terminal(sys.stdout):
            self._clear()
        sys.stdout.write(content)
        sys.stdout.flush()

    def _clear(self) -> None:
        """Takes the bar away; the next update draws it again, below what is printed meanwhile."""
        if self._live is not None:
            self._live.update("", refresh=True)
            self._drawn = 0.0


def clock(seconds: float) -> str:
    """A time for people: "4.2 s", "3 min 5 s", "1 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _digits(seconds: float) -> str:
    """A time in the least space: "0:04", "3:05", "1:02:00"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _speed(times: float) -> str:
    return f"{times:.1f}" if times < 10 else f"{times:.0f}"


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]

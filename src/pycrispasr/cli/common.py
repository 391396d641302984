"""What the commands share: options, and what they say on stderr."""

from __future__ import annotations

import contextlib
import enum
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from pycrispasr.formats import bytes_text as bytes_text
from pycrispasr.result import Token

app = typer.Typer(
    help="Speech to text with MOSS-Transcribe.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Runtime(str, enum.Enum):
    """What computes."""

    auto = "auto"
    pycrispasr = "pycrispasr"
    crispasr = "crispasr"


class Precision(str, enum.Enum):
    """What products with the model's matrices are computed in."""

    auto = "auto"
    f32 = "f32"
    bf16 = "bf16"


Device = Annotated[str, typer.Option(help='"auto", or a name that `pycrispasr devices` lists.')]
ComputedIn = Annotated[
    Precision, typer.Option("--precision", help="f32: nothing is rounded; bf16; auto: the fastest with the same texts.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_tokens(tokens: Iterable[Token]) -> None:
    """Prints text as it comes, without the whitespace at its ends."""
    held, begun = "", False
    for token in tokens:
        held += token.text
        ready = held.rstrip()
        if ready:
            print(ready if begun else ready.lstrip(), end="", flush=True)
            held, begun = held[len(ready) :], True


def until_interrupted(work: Callable[[], None], *steps: Callable[[], object]) -> None:
    """Runs something in a thread, so that Ctrl-C is obeyed at once, also while the library computes.

    Args:
        work: What to run.
        steps: The first Ctrl-C calls the first one, and so on. One more leaves the work alone.

    Raises:
        KeyboardInterrupt: There were more than `steps`.
        BaseException: What `work` raises.
    """
    failures: list[BaseException] = []
    done = threading.Event()  # an interrupted Thread.join takes the thread for dead: python/cpython#90882

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            failures.append(error)
        done.set()

    threading.Thread(target=guarded, name="pycrispasr-work", daemon=True).start()
    left = iter(steps)
    while not done.is_set():
        try:
            done.wait(0.1)
        except KeyboardInterrupt:
            step = next(left, None)
            if step is None:
                raise
            step()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def writing(out: str) -> Iterator[Callable[[float, float], object] | None]:
    """Around the making of a file: what shows its progress, a bar on stderr or nothing where that is no terminal.

    A signal to stop goes the way of an exception, so that no unfinished file stays.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="pycrispasr: %(message)s")
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with bar(out) as progress:
        yield progress
    tell(f"{out}: {bytes_text(Path(out).stat().st_size)}")


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[float, float], object] | None]:
    """What shows (done, total) on stderr, or None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def tell(message: str) -> None:
    """Prints a line on stderr."""
    print(message, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Says on stderr what went wrong."""
    tell(f"pycrispasr: {message}")

"""What the commands share: options, and what they say on stderr."""

from __future__ import annotations

import contextlib
import enum
import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import typer
from typer.core import TyperGroup

from pycrispasr.errors import AudioError
from pycrispasr.options import MAX_NEW_TOKENS
from pycrispasr.results.segment import Token
from pycrispasr.terminal import is_terminal as is_terminal
from pycrispasr.text import bytes_text as bytes_text
from pycrispasr.text import plain as plain
from pycrispasr.text import printable as printable

TRANSCRIBE, SERVE = "Transcribe", "Serve"
MAKE, MEASURE = "Make and shrink models", "Look at models and measure"
"""The groups of commands, in the order of use."""

_ORDER = (
    "transcribe", "live", "align", "models", "serve",
    "convert", "quantize", "imatrix", "align-heads",
    "info", "devices", "bench", "diff",
)  # fmt: skip


class _InOrder(TyperGroup):
    """Commands in the order of use, not in that of the modules that define them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    help="Speech to text with MOSS-Transcribe and Qwen3-ASR.",
    cls=_InOrder,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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


Isolate = Annotated[
    bool | None,
    typer.Option("--isolate/--no-isolate", help="CrispASR's library in a process of its own. Default: where possible."),
]
Mmap = Annotated[
    bool, typer.Option("--mmap/--no-mmap", help="Map the model's file, or read it: for one that others may write to.")
]
Device = Annotated[str, typer.Option(help='"auto", or a name that `pycrispasr devices` lists.')]
ComputedIn = Annotated[
    Precision, typer.Option("--precision", help="f32: nothing is rounded; bf16; auto: the fastest with the same texts.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each physical core.")]
TokenLimit = Annotated[
    int | None, typer.Option(min=1, help=f"Where the text of a segment is cut. Default: {MAX_NEW_TOKENS}.")
]
Language = Annotated[
    str | None,
    typer.Option(metavar="CODE", help='The language that is spoken, "fr" or "French", for models that take one.'),
]
Context = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A name, a term or a text to expect, again for more, for models that take it."),
]
ContextFile = Annotated[str | None, typer.Option(metavar="FILE", help="A text file of what to expect, as it stands.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_tokens(tokens: Iterable[Token]) -> None:
    """Prints text as it comes, without the whitespace at its ends."""
    held, begun = "", False
    for token in tokens:
        held += plain(token.text)
        ready = held.rstrip()
        if ready:
            print(ready if begun else ready.lstrip(), end="", flush=True)
            held, begun = held[len(ready) :], True


def read_context(terms: list[str] | None, file: str | None) -> list[str] | None:
    """What --context and --context-file say together.

    Raises:
        typer.BadParameter: The file cannot be read.
    """
    found = list(terms or ())
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise typer.BadParameter(
                f"{file!r} cannot be read as text ({reason})", param_hint="--context-file"
            ) from None
        found += [text.strip()]
    return found or None


_SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if (number := getattr(signal, name, None))]


@contextlib.contextmanager
def obeying_signals(handler: Callable[[int, Any], object] | None = None) -> Iterator[None]:
    """Takes the signals that ask a program to stop, as long as the block goes on.

    Those that it was started to ignore (`nohup`, `&`) stay ignored. With a handler of its own a program is also stopped
    by them where it is the first of a container (PID 1).

    Args:
        handler: None: the program ends silently, with the status 128 + n, after cleaning up. Nothing is taken outside
            the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in _SIGNALS if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler or _exit) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_signals() -> None:
    """For the very end of the program: one more signal would only change its exit status."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


def until_stopped(work: Callable[[], None], *steps: Callable[[], object]) -> int:
    """Runs something in a thread, so that signals are obeyed at once, also while the library computes.

    Args:
        work: What to run.
        steps: The first signal that asks to stop calls the first one, and so on. One more leaves the work alone, and so
            does one that returns something true.

    Returns:
        The number of the first signal; 0 where none came.

    Raises:
        BaseException: What `work` raises.
    """
    failures: list[BaseException] = []
    came: list[int] = []
    done = threading.Event()
    all_steps: list[Callable[[], object]] = [*steps, lambda: True]

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            failures.append(error)
        done.set()

    with obeying_signals(lambda number, _: came.append(number)):
        threading.Thread(target=guarded, name="pycrispasr-work", daemon=True).start()
        obeyed = 0
        while not done.wait(0.05):
            for step in all_steps[obeyed : len(came)]:
                obeyed += 1
                if step():
                    return came[0]
    if failures:
        raise failures[0]
    return came[0] if came else 0


@contextlib.contextmanager
def writing(out: str) -> Iterator[Callable[[float, float], object] | None]:
    """Around the making of a file: what shows its progress, a bar on stderr or nothing where that is no terminal.

    A signal to stop goes the way of an exception, so that no unfinished file stays.
    """
    log_to_stderr(logging.WARNING, "pycrispasr: %(message)s")
    with obeying_signals(), bar(out) as progress:
        yield progress
    tell(f"{out}: {bytes_text(Path(out).stat().st_size)}")


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[float, float], object] | None]:
    """What shows (done, total) on stderr, or None where that is no terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(Path(title).name), total=None)  # a long path would leave no room for the bar
        yield lambda done, total: bar.update(task, completed=done, total=total)


def standard_input() -> BinaryIO:
    """Standard input, unbuffered: Python cannot end while a thread waits inside a buffer."""
    if sys.stdin is None:
        raise AudioError("there is no standard input: name a file")
    return io.FileIO(sys.stdin.fileno(), closefd=False)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def log_to_stderr(level: int, form: str = "%(message)s") -> None:
    """Shows what this package logs, without control characters. Of others, who log whole addresses, only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter(form))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pycrispasr").setLevel(level)


def tell(message: str) -> None:
    """Prints a line on stderr, if there is one. Control characters are escaped: servers and files have a say in it."""
    if sys.stderr is not None:
        print(printable(message), file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Says on stderr what went wrong."""
    tell(f"pycrispasr: {message}")

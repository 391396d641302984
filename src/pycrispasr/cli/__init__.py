"""The command line. Text goes to stdout, everything else to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 128 + n by another signal.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Annotated

import typer

from pycrispasr import __version__
from pycrispasr.cli import align, files, live, machine, models, serve, transcribe  # noqa: F401 - each adds its commands
from pycrispasr.cli.common import app, complain, log_to_stderr, obeying_signals
from pycrispasr.errors import PycrispasrError, UsageError
from pycrispasr.runtimes import native


def main() -> None:
    """Runs the command line, and ends the process."""
    with obeying_signals():
        try:
            _open_standard_streams()
            app(prog_name="pycrispasr")
        except PycrispasrError as error:
            complain(str(error))
            sys.exit(2 if isinstance(error, UsageError) else 1)


def _open_standard_streams() -> None:
    """Gives a program that was started without standard streams ones that lead nowhere.

    A file that is opened would take the number of a closed one, and get what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pycrispasr {__version__} (ggml {native.versions()[1]})")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if native.TRACE:
        log_to_stderr(logging.DEBUG)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop

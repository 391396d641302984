"""The command line, called as a person calls it: in a process of its own, and on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable

COMMAND = (sys.executable, "-m", "pycrispasr")


def run(*arguments: object, process: bool = False, **options: object) -> subprocess.CompletedProcess[str]:
    """A command and what it prints.

    Args:
        arguments: Of the command.
        process: In a process of its own; with options it always is. Else in this one, which starts no interpreter.
        options: Of `subprocess.run`.
    """
    command = [*map(str, arguments)]
    if arguments[0] == "transcribe" and "-m" in arguments:
        command += ["--threads", "1"]  # quick however busy the machine is
    if not process and not options:
        return _run_here(command)
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, *command], capture_output=True, encoding="utf-8", timeout=120, check=False, **options
    )


def _run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    from pycrispasr.cli import main

    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    before, sys.argv = sys.argv, ["pycrispasr", *command]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        finally:
            sys.argv = before
    written = []
    for stream in (stdout, stderr):
        stream.flush()
        written.append(stream.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, code, *written)


def begin(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """A command that goes on while the test does."""
    return subprocess.Popen([*COMMAND, *map(str, arguments), "--threads", "1"], **options)  # type: ignore[call-overload,no-any-return]


def on_terminal(
    *arguments: object, columns: int = 80, stdout: int | None = None, until: Callable[[], bool] | None = None
) -> tuple[int, str]:
    """The exit status of a command, and all that it writes on a terminal of that many columns.

    Args:
        arguments: Of the command.
        columns: Of the terminal.
        stdout: Where standard output goes; by default to the terminal, too.
        until: Sends Ctrl-C as soon as it is true.
    """
    import fcntl
    import pty
    import struct
    import termios

    process, terminal = pty.fork()
    if process == 0:
        if stdout is not None:
            os.dup2(stdout, 1)
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            environment.pop(name, None)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execve(sys.executable, [*COMMAND, *map(str, arguments), "--threads", "1"], environment)
    shown = b""
    while True:
        try:
            shown += (part := os.read(terminal, 65536))
        except OSError:  # how Linux tells that nobody is left on the other side
            break
        if not part:
            break
        if until is not None and until():
            os.write(terminal, b"\x03")
            until = None
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()


def unboxed(text: str) -> str:
    """What the command line says on stderr, without the boxes that it draws around errors, in one line."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def pictures(shown: str) -> list[str]:
    """What stood in each line of a terminal, at one time or another, without colours and movements of the cursor."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown)) if line]

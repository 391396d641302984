"""`python -m pycrispasr`, and what the installed command calls: the command line."""

import os
import sys


def _leave_out_current_folder() -> None:
    """Takes the current folder, where `python -m` looks for modules first, out of `sys.path`: it may hold downloads.

    It stays where this package itself lies in it.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        here = os.getcwd()
    except OSError:  # it has been removed
        here = ""
    if sys.path[:1] in ([""], [here]) and here != home:
        del sys.path[0]


if __name__ == "__main__":
    _leave_out_current_folder()

import signal  # noqa: E402  after that: a file signal.py of the current folder is none of ours


def main() -> None:
    """Runs the command line, and ends the process. Ctrl-C is silent from here on, while modules load, too."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _: sys.exit(128 + number))
    from pycrispasr.cli import main as run
    from pycrispasr.cli.common import ignore_signals

    try:
        run()
    finally:
        ignore_signals()


if __name__ == "__main__":
    main()

"""`python -m pycrispasr`, and what the installed command calls: the command line."""

import signal
import sys


def main() -> None:
    """Runs the command line, and ends the process. Ctrl-C is silent from here on, while modules load, too."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _: sys.exit(128 + number))
    from pycrispasr.cli import main as run

    run()


if __name__ == "__main__":
    main()

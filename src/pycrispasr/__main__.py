"""`python -m pycrispasr`: the command line."""

from pycrispasr.cli import main

if __name__ == "__main__":
    main()

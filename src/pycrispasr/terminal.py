"""Whether somebody looks at a stream."""

from __future__ import annotations

from typing import TextIO


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at it. A program without a console has no standard streams, or closed ones."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False

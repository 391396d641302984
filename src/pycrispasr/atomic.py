"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a file to write that takes the place of `path` when the block ends, and is gone when it fails.

    On Linux the file has no name of its own meanwhile, so that not even a killed process leaves it behind.
    """
    part = path.with_name(f".{secrets.token_hex(6)}.part")  # short: the path's own name may be as long as names can be
    unnamed: int | None = None
    with contextlib.suppress(AttributeError, OSError):  # another system, or a file system that cannot do it
        unnamed = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    try:
        if unnamed is None:
            yield part
        else:
            # Writers append and open the file a second time, so the descriptor itself will not do.
            handle = Path(f"/proc/self/fd/{unnamed}")
            yield handle
            os.link(handle, part, src_dir_fd=unnamed)  # with the argument, linkat() follows the symbolic link
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        if unnamed is not None:
            os.close(unnamed)

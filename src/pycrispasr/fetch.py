"""Makes a seekable file of what is none: web addresses, pipes and other streams."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any, BinaryIO, cast

from pycrispasr.errors import AudioError, AudioNotFoundError

_IN_MEMORY = 16 << 20  # bytes; what is longer goes to a temporary file
_PIECE = 1 << 18
_TIMEOUT = 60.0  # seconds without a byte


def spool(stream: Any) -> BinaryIO:
    """All that a stream still gives, as a seekable file: in memory while it is short, else in a temporary file.

    Args:
        stream: Anything with `read(size)` that gives bytes.

    Raises:
        AudioError: The stream gives no bytes, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        file = _temporary_file(stack)
        for piece in iter(lambda: stream.read(_PIECE), b""):
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise AudioError(
                    f"a file object for audio must give bytes, not {type(piece).__name__}: open it with 'rb'"
                )
            _write(file, piece)
        stack.pop_all()
        return file


def download(url: str) -> BinaryIO:
    """What is at a web address, http or https, as a seekable file. Redirects are followed.

    Raises:
        AudioNotFoundError: The server says that there is no such file.
        AudioError: It cannot be fetched, or not to its end.
    """
    import http.client
    import urllib.error
    import urllib.request

    from pycrispasr import __version__

    received, size = 0, None
    with contextlib.ExitStack() as stack:
        file = _temporary_file(stack)
        try:
            request = urllib.request.Request(url, headers={"User-Agent": f"pycrispasr/{__version__}"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310  the caller checked the scheme
                size = answer.headers.get("Content-Length")
                while piece := answer.read(_PIECE):
                    received += len(piece)
                    _write(file, piece)
        except urllib.error.HTTPError as error:
            with error:
                kind = AudioNotFoundError if error.code in (404, 410) else AudioError
                raise kind(f"cannot be fetched: the server answers {error.code} {error.reason}") from None
        except AudioError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            after = f" after {received} bytes" if received else ""
            raise AudioError(f"cannot be fetched: {reason}{after}") from error
        if size is not None and size.isdecimal() and received < int(size):
            raise AudioError(f"cannot be fetched: the connection ended after {received} of {size} bytes, so try again")
        stack.pop_all()
        return file


def path_of(url: str) -> str:
    """The path that a file:// address means.

    Raises:
        AudioError: It names another machine.
    """
    import urllib.parse
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise AudioError(f"a file on {parts.netloc!r} cannot be read: write file:///path, with three slashes")
    return urllib.request.url2pathname(parts.path)


def _temporary_file(stack: contextlib.ExitStack) -> BinaryIO:
    return cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY)))


def _write(file: BinaryIO, piece: bytes | bytearray | memoryview) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise AudioError(
            f"cannot be kept in the folder for temporary files, {tempfile.gettempdir()!r} ({error.strerror}): "
            "make room there, or set TMPDIR"
        ) from error

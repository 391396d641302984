"""Makes a seekable file of what is none: web addresses, pipes and other streams."""

from __future__ import annotations

import contextlib
import re
import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pycrispasr.errors import AudioError, AudioNotFoundError

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

_IN_MEMORY = 16 << 20  # bytes; what is longer goes to a temporary file
_PIECE = 1 << 18
_USER = re.compile(r"^(\s*[A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)@")
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
    """What is at a web address, http or https, as a seekable file.

    As curl does: spaces and letters beyond ASCII are allowed, "user:password@" is sent to that host only, redirects are
    followed, answers that come compressed are unpacked.

    Raises:
        AudioNotFoundError: The server says that there is no such file.
        AudioError: It cannot be fetched, or not to its end.
    """
    import requests

    from pycrispasr import __version__

    statuses: list[int] = []
    with contextlib.ExitStack() as stack:
        file = _temporary_file(stack)
        answer = None
        try:
            with requests.Session() as session:
                session.mount("https://", _adapter())
                session.hooks["response"].append(lambda answer, **_: statuses.append(answer.status_code))
                # Sound is compressed already.
                session.headers.update({"User-Agent": f"pycrispasr/{__version__}", "Accept-Encoding": "identity"})
                answer = session.get(shown(url.strip()), auth=_user(url), stream=True, timeout=_TIMEOUT)
                with answer:
                    if answer.status_code >= 400:
                        kind = AudioNotFoundError if answer.status_code in (404, 410) else AudioError
                        raise kind(f"cannot be fetched: the server answers {answer.status_code} {answer.reason}")
                    for piece in answer.iter_content(_PIECE):
                        _write(file, piece)
        except AudioError:
            raise
        except requests.exceptions.InvalidSchema:
            raise AudioError(f"cannot be fetched: the server answers {statuses[-1]} with no web address") from None
        except (OSError, ValueError) as error:  # those of requests and urllib3 are of these kinds
            received = 0 if answer is None else answer.raw.tell()
            size = "" if answer is None else answer.headers.get("Content-Length", "")
            if size.isdecimal() and received < int(size):
                raise AudioError(
                    f"cannot be fetched: the connection ended after {received} of {size} bytes, so try again"
                ) from error
            after = f" after {received} bytes" if received else ""
            raise AudioError(f"cannot be fetched: {_reason(error)}{after}") from error
        stack.pop_all()
        return file


def shown(url: str) -> str:
    """An address as it may be shown: without "user:password@". What is no address stays as it is."""
    return _USER.sub(r"\1", url)


def _user(url: str) -> Any:
    """The name and the password in an address, in UTF-8."""
    import urllib.parse

    found = _USER.match(url)
    if found is None:
        return None
    user, _, password = found[2].partition(":")
    return urllib.parse.unquote_to_bytes(user), urllib.parse.unquote_to_bytes(password)


def _adapter() -> HTTPAdapter:
    """Trusts the certificates that the system trusts, beside those that requests brings along."""
    import ssl

    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, ssl_context=ssl.create_default_context(), **options)

    return Adapter()


def _reason(error: BaseException) -> str:
    """Of a chain of errors the innermost one that says something, without the address."""
    while (inner := error.__cause__ or error.__context__) is not None and str(inner):
        error = inner
    return re.sub(r"://[^/\s]*@", "://", str(error)) or type(error).__name__


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

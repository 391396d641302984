"""Makes a seekable file of what is none: web addresses, pipes and other streams."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
import socket
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pycrispasr.errors import AudioError, AudioNotFoundError
from pycrispasr.options import Limits
from pycrispasr.text import printable

if TYPE_CHECKING:
    from requests import Response, Session

_IN_MEMORY = 16 << 20  # bytes; what is longer goes to a temporary file
_PIECE = 1 << 18
_ADDRESS = re.compile(
    r"(?P<scheme>\s*[A-Za-z][A-Za-z0-9+.-]*://)"
    # A slash in a password should have been escaped: where it was not, what is before it looks like a wrong port.
    r"(?:(?P<user>[^/?#]*)@|[^/?#\[]*:(?!\d*[/?#])[^@]*@)?"
    r"(?P<place>[^?#]*)(?P<query>[^#]*)(?:#.*)?",
    re.DOTALL,
)
_FINGERPRINT = re.compile(r"\?<[0-9a-f]{8}>")
_TIMEOUT = 60.0  # seconds without a byte
_MAX_REDIRECTS = 20
_UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: all else of IPv6 is for something else than hosts anywhere
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an address of IPv4
_6TO4 = ipaddress.ip_network("2002::/16")  # RFC 7526: given up; has an address of IPv4 in it


def spool(stream: Any, limits: Limits) -> BinaryIO:
    """All that a stream still gives, as a seekable file: in memory while it is short, else in a temporary file.

    Args:
        stream: Anything with `read(size)` that gives bytes.
        limits: Its `download_bytes` holds.

    Raises:
        AudioError: The stream gives no bytes, or too many, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        file = _temporary_file(stack)
        for piece in iter(lambda: stream.read(_PIECE), b""):
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise AudioError(
                    f"a file object for audio must give bytes, not {type(piece).__name__}: open it with 'rb'"
                )
            _write(file, piece, limits)
        stack.pop_all()
        return file


def download(url: str, limits: Limits, *, public: bool = False) -> BinaryIO:
    """What is at a web address, http or https, as a seekable file.

    As curl does: spaces and letters beyond ASCII are allowed, "user:password@" is sent to that host only, redirects are
    followed, answers that come compressed are unpacked. No redirect leads from https to http, to another scheme, or
    from a public host to one that is not.

    Args:
        url: The address.
        limits: Its `download_bytes` and `download_seconds` hold.
        public: Refuse every host that is not public, and send no password that is not in the address (of `.netrc`).

    Raises:
        AudioNotFoundError: The server says that there is no such file.
        AudioError: It cannot be fetched, or not to its end, or it is beyond a limit.
    """
    deadline = time.monotonic() + limits.download_seconds
    with contextlib.ExitStack() as stack:
        file = _temporary_file(stack)
        answer = None
        try:
            with _session(url, deadline, public=public) as session:
                answer = _answer(session, url)
                with answer:
                    if answer.status_code >= 400:
                        kind = AudioNotFoundError if answer.status_code in (404, 410) else AudioError
                        reason = printable(str(answer.reason))
                        raise kind(f"cannot be fetched: the server answers {answer.status_code} {reason}")
                    if _length(answer) > limits.download_bytes:
                        raise limits.exceeded("download_bytes", f"it is {_length(answer)} bytes long,")
                    for piece in answer.iter_content(_PIECE):
                        _write(file, piece, limits)
                        _wait(deadline)
        except AudioError:
            raise
        except (OSError, ValueError) as error:  # those of requests and urllib3 are of these kinds
            # None of them is kept as the cause: an address with all that is secret in it may stand there.
            if time.monotonic() >= deadline:
                raise limits.exceeded("download_seconds", "it takes") from None
            received = 0 if answer is None else answer.raw.tell()
            if answer is not None and received < _length(answer):
                raise AudioError(
                    f"cannot be fetched: the connection ended after {received} of {_length(answer)} bytes, so try again"
                ) from None
            after = f" after {received} bytes" if received else ""
            raise AudioError(f"cannot be fetched: {_reason(error)}{after}") from None
        stack.pop_all()
        return file


def shown(url: str) -> str:
    """An address as it may be shown and stored; what is no address stays as it is, and so does what was shown before.

    "user:password@" and the fragment are left out. A fingerprint stands for the query, which may hold keys, so that
    addresses that differ there only can be told apart.
    """
    found = _ADDRESS.fullmatch(url)
    if found is None:
        return url
    query = found["query"].rstrip()
    if query and not _FINGERPRINT.fullmatch(query):
        query = f"?<{hashlib.sha256(query.encode(errors='surrogatepass')).hexdigest()[:8]}>"
    return f"{found['scheme']}{found['place']}{query}"


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's, and not of this machine, a private network or a group.

    One of IPv6 that only stands for one of IPv4 is what that one is.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip.ipv4_mapped is not None or ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in _UNICAST and ip not in _6TO4 and ip.is_global


def path_of(url: str) -> str:
    """The path that a file:// address means.

    Raises:
        AudioError: It names another machine.
    """
    import urllib.parse
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise AudioError(f"a file on {parts.hostname!r} cannot be read: write file:///path, with three slashes")
    return urllib.request.url2pathname(parts.path)


def _answer(session: Session, url: str) -> Response:
    """The answer at the end of all redirects. Their bodies are not read."""
    import urllib.parse

    import requests

    found = _ADDRESS.fullmatch(url.strip())
    user: Any = None  # requests takes bytes, too
    if found is not None and found["user"] is not None:
        name, _, password = found["user"].partition(":")
        user = urllib.parse.unquote_to_bytes(name), urllib.parse.unquote_to_bytes(password)  # in UTF-8
        url = found["scheme"] + found["place"] + found["query"]
    for _ in range(_MAX_REDIRECTS + 1):
        answer = session.get(url.strip(), auth=user, stream=True, timeout=_TIMEOUT, allow_redirects=False)
        target = requests.Session.get_redirect_target(session, answer)
        if target is None:
            return answer
        answer.close()
        url = urllib.parse.urljoin(answer.url, target)
        old, new = urllib.parse.urlsplit(answer.url).scheme, urllib.parse.urlsplit(url).scheme
        if new not in ("https", old):
            raise AudioError(
                f"cannot be fetched: the server answers {answer.status_code} and leads from {old}:// to "
                f"{printable(new)}://, which is not followed: pass that address itself"
            )
        if session.should_strip_auth(answer.url, url):
            user = None
    raise AudioError(f"cannot be fetched: one redirect follows another, more than {_MAX_REDIRECTS}")


def _session(url: str, deadline: float, *, public: bool) -> Session:
    """A session that waits no longer than to a deadline, and once at a public host goes to no other one.

    A host is looked up once: what was checked is connected to. Behind a proxy it is the proxy that looks it up.
    """
    import ssl
    import urllib.parse

    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    from pycrispasr import __version__

    # The certificates that the system trusts, beside those that requests brings along.
    context = ssl.create_default_context()
    context.sslsocket_class = _timed(ssl.SSLSocket, deadline)
    plain = _timed(socket.socket, deadline)
    only_public = public

    def check(host: str, addresses: list[str]) -> None:
        if only_public and not all(map(is_public, addresses)):
            raise AudioError(
                f"cannot be fetched: {host!r} is no public host, to which neither a public one nor an address with "
                "allow='public' leads: pass its address itself, with allow='all'"
            )

    def connect(connection: Any, *, checked: bool = True) -> socket.socket:
        nonlocal only_public
        failure: Exception = OSError("its host has no address")
        for found in socket.getaddrinfo(connection._dns_host, connection.port, type=socket.SOCK_STREAM):
            address = str(found[4][0])
            try:
                if checked:
                    check(connection._dns_host, [address])
                connected = _connected(plain, found, deadline)
            except (AudioError, OSError) as error:
                failure = error
            else:
                only_public = is_public(address) if checked else only_public
                return connected
        raise failure

    def pools(new: Callable[[Any], socket.socket]) -> dict[str, type]:
        http = type("Http", (HTTPConnection,), {"_new_conn": new})
        https = type("Https", (HTTPSConnection,), {"_new_conn": new})
        return {
            "http": type("HttpPool", (HTTPConnectionPool,), {"ConnectionCls": http}),
            "https": type("HttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
        }

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, ssl_context=context, **options)
            self.poolmanager.pool_classes_by_scheme = pools(connect)

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            manager = super().proxy_manager_for(proxy, ssl_context=context, **options)
            if not proxy.lower().startswith("socks"):
                manager.pool_classes_by_scheme = pools(lambda proxy: connect(proxy, checked=False))  # may be anywhere
            return manager

        def send(self, request: Any, *arguments: Any, **options: Any) -> Response:
            nonlocal only_public
            if requests.utils.select_proxy(request.url, options.get("proxies")):
                host, addresses = urllib.parse.urlsplit(request.url).hostname or "", list[str]()
                with contextlib.suppress(OSError):  # perhaps only the proxy knows the host
                    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
                check(host, addresses)
                only_public = all(map(is_public, addresses))
            return super().send(request, *arguments, **options)

    class OneAnswer(requests.Session):
        def get_redirect_target(self, resp: Response) -> None:
            """None: it does not look for the next one, for which it would read the body of this one."""

    session = OneAnswer()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    # Sound is compressed already.
    session.headers.update({"User-Agent": f"pycrispasr/{__version__}", "Accept-Encoding": "identity"})
    if public:
        session.trust_env = False
        session.proxies = requests.utils.get_environ_proxies(url)
    return session


def _connected(kind: Any, found: tuple[Any, ...], deadline: float) -> socket.socket:
    """A connection to what `getaddrinfo` found."""
    connection: socket.socket = kind(*found[:3])
    try:
        connection.settimeout(_wait(deadline))
        connection.connect(found[4])
    except BaseException:
        connection.close()
        raise
    return connection


def _timed(kind: Any, deadline: float) -> Any:
    """A class of sockets that do not wait for a byte beyond a deadline, however slowly others come."""

    def recv_into(connection: Any, *arguments: Any, **options: Any) -> Any:
        connection.settimeout(_wait(deadline))
        return kind.recv_into(connection, *arguments, **options)

    return type("Timed", (kind,), {"recv_into": recv_into})


def _wait(deadline: float) -> float:
    """Seconds to wait for a byte.

    Raises:
        TimeoutError: The deadline has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return min(left, _TIMEOUT)


def _length(answer: Response) -> int:
    """Bytes that an answer announces; 0 where it does not, or no number of them."""
    told = answer.headers.get("Content-Length", "")
    return int(told) if re.fullmatch("[0-9]{1,18}", told) else 0


def _reason(error: BaseException) -> str:
    """Of a chain of errors the innermost one that says something, without the address."""
    while (inner := error.__cause__ or error.__context__) is not None and str(inner):
        error = inner
    return printable(re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", "the address", str(error))) or type(error).__name__


def _temporary_file(stack: contextlib.ExitStack) -> BinaryIO:
    return cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY)))


def _write(file: BinaryIO, piece: bytes | bytearray | memoryview, limits: Limits) -> None:
    if file.tell() + len(piece) > limits.download_bytes:
        raise limits.exceeded("download_bytes", "it has")
    try:
        file.write(piece)
    except OSError as error:
        raise AudioError(
            f"cannot be kept in the folder for temporary files, {tempfile.gettempdir()!r} ({error.strerror}): "
            "make room there, or set TMPDIR"
        ) from error

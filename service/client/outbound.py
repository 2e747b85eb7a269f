"""One request to an external host, for the action `http`: redirects, bounds, and vetted addresses.

A request has a connection of its own, so nothing of one (a cookie, a login) reaches another. An
untrusted address is looked up once, vetted, and connected to as it was vetted: what a name says a
moment later does not count. Each redirect is a request of its own, vetted again, and carries what
the author gave (headers, body) only within one origin. Not here: retries, what an answer comes to.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import zlib
from asyncio import to_thread
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from turnout.service.domain.addresses import is_public
from turnout.service.domain.errors import TurnoutError

if TYPE_CHECKING:
    import ssl

    import httpx

UNTRUSTED_PORTS = frozenset({80, 443, 8080, 8443})
"""Ports allowed for untrusted addresses: not mail, databases and shells."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 64 * 1024
_HARMLESS = frozenset({"accept", "accept-language", "user-agent"})
"""The headers that a redirect to another origin keeps."""


class NoAnswer(TurnoutError):
    """Raised when a request gets no answer, or not all of it; a retry may succeed."""


class RefusedAddress(TurnoutError):
    """Raised for an address that a request must not go to; trying again changes nothing."""


class TooLarge(TurnoutError):
    """Raised for an answer that is larger than its bound."""


Receive = Callable[[bytes], Awaitable[None]]
"""Gets the parts of an answer's body."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request; `redirects` is how many may be followed, of GET and HEAD only."""

    method: str
    url: str
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    max_bytes: int = 0
    redirects: int = 0
    untrusted: bool = False


@dataclass(frozen=True, slots=True)
class Incoming:
    """An answer, whose body went to its receiver; header names are in lower case."""

    status_code: int
    headers: Mapping[str, str]
    url: str


async def exchange(
    request: Outgoing, open_body: Callable[[int, Mapping[str, str]], Receive]
) -> Incoming:
    """Send a request and follow redirects; `open_body` gets status and headers, and takes the body.

    Raises `NoAnswer`, `RefusedAddress`, `TooLarge`, and what the receiver raises.
    """
    trust = await to_thread(_load)
    import httpx

    try:
        url = httpx.URL(request.url)
        if request.params:
            url = url.copy_merge_params(dict(request.params))
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise RefusedAddress(
            f"it is no address such as https://example.com/path: {error}"
        ) from None
    try:
        # Not a client: that keeps cookies, and reads redirects by itself.
        async with httpx.AsyncHTTPTransport(verify=trust, trust_env=False) as transport:
            return await _follow(transport, request, url, open_body)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise RefusedAddress(f"it is no address that can be asked: {error}") from None
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | socket.gaierror):
            raise  # the receiver's: a full disk
        detail = str(error) or type(error).__name__
        raise NoAnswer(f"no answer: {detail}") from None


@cache
def _load() -> ssl.SSLContext:
    """Import the client, and return the authorities of the system: what would block the loop."""
    import ssl

    import_module("anyio._backends._asyncio")  # which it would import at its first connection
    import_module("httpx")
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every address
    return ssl.create_default_context()


async def _follow(
    transport: httpx.AsyncHTTPTransport,
    request: Outgoing,
    url: httpx.URL,
    open_body: Callable[[int, Mapping[str, str]], Receive],
) -> Incoming:
    left = request.redirects if request.method in ("GET", "HEAD") else 0
    while True:
        sent = await _prepared(request, url)
        answer = await transport.handle_async_request(sent)
        try:
            headers = dict(answer.headers)
            location = headers.get("location")
            if answer.status_code not in _REDIRECTS or location is None or not left:
                receive = open_body(answer.status_code, headers)
                if request.method != "HEAD":
                    await _read(answer, receive, request.max_bytes)
                return Incoming(answer.status_code, headers, str(url))
        finally:
            await answer.aclose()
        left -= 1
        target = _joined(url, location)
        if url.scheme == "https" and target.scheme != "https":
            raise RefusedAddress(f"it redirects from https to {target.scheme}")
        if _origin(target) != _origin(url):
            request = replace(request, headers=_harmless(request.headers), body=None)
            target = target.copy_with(userinfo=b"")
        url = target


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    import httpx

    try:
        return url.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise RefusedAddress(f"it redirects to what is no address: {error}") from None


def _origin(url: httpx.URL) -> tuple[str, bytes, int]:
    return url.scheme, url.raw_host, _port(url)


def _port(url: httpx.URL) -> int:
    return {"http": 80, "https": 443}.get(url.scheme, 0) if url.port is None else url.port


def _harmless(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


async def _prepared(request: Outgoing, url: httpx.URL) -> httpx.Request:
    """Return the request for one hop; an untrusted one goes to the address that was vetted."""
    import httpx

    if url.scheme not in ("http", "https") or not url.raw_host:
        raise RefusedAddress(f"it is not http or https: {url.scheme[:20] or 'no scheme'}")
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "turnout"}
    given = {name.lower() for name in request.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in given}
    headers |= request.headers
    if url.userinfo and "authorization" not in given:
        login = f"{url.username}:{url.password}".encode()
        headers["Authorization"] = f"Basic {b64encode(login).decode()}"
    extensions: dict[str, Any] = {}
    target = url
    if request.untrusted:
        address = await _vetted(url)
        headers["Host"] = url.netloc.decode("ascii")
        extensions["sni_hostname"] = url.raw_host.decode("ascii")
        target = url.copy_with(host=address)
    return httpx.Request(
        request.method, target, headers=headers, content=request.body, extensions=extensions
    )


async def _vetted(url: httpx.URL) -> str:
    """Return the address to connect to; raises `RefusedAddress` if any of a host is not public."""
    if url.userinfo:
        raise RefusedAddress("an untrusted address has no user name in it")
    if _port(url) not in UNTRUSTED_PORTS:
        raise RefusedAddress(f"an untrusted address has a port of the web, not {_port(url)}")
    host = url.raw_host.decode("ascii").strip("[]")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, _port(url), type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise NoAnswer(f"the host is not found: {error}") from None
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not is_public(address):
            raise RefusedAddress(f"the host is at {address}, which is not a public address")
    if not addresses:
        raise NoAnswer("the host has no address")
    return addresses[0]


async def _read(answer: httpx.Response, receive: Receive, max_bytes: int) -> None:
    """Hand on the body, decoded and within its bound."""
    announced = answer.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise TooLarge(f"it has {int(announced):,} bytes")
    total = 0
    async for part in _decoded(answer):
        total += len(part)
        if total > max_bytes:
            raise TooLarge(f"it has more than {max_bytes:,} bytes")
        await receive(part)


async def _decoded(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body in parts of a bounded size, also where few bytes unpack to many."""
    coding = answer.headers.get("content-encoding", "identity").strip().lower()
    raw = answer.aiter_raw(_CHUNK_BYTES)
    if coding in ("identity", ""):
        async for part in raw:
            yield part
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise NoAnswer(f"the answer is packed as {coding[:20]!r}, which was not asked for")
    async for part in _unpacked(raw):
        yield part


async def _unpacked(raw: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    unpack, is_empty = _unpacker(), True
    try:
        async for packed in raw:
            part, is_empty = packed, False
            while True:
                if unpack.eof:  # the next of several; an ended one would hold all that follows
                    part = part.lstrip(b"\0")
                    if not part:
                        break
                    unpack = _unpacker()
                made = unpack.decompress(part, _CHUNK_BYTES)
                yield made
                part = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
                if not part and len(made) < _CHUNK_BYTES:
                    break
    except zlib.error as error:
        raise NoAnswer(f"the answer cannot be unpacked: {error}") from None
    if not (unpack.eof or is_empty):
        raise NoAnswer("the answer ended before it was complete")


def _unpacker() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip, as it says

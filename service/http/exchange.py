"""Reading one request and sending one reply over ASGI, within bounds.

A body is never read past its limit. A refusal that leaves a body unread closes the connection, but
first reads and drops a little of it: closing with unread bytes resets the connection, and the
reset may overtake the answer. Not here: routes (`ingest`), deadlines (`server`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from turnout.service.domain import problems
from turnout.service.domain.trigger import Reply
from turnout.service.telemetry.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LINGER_SECONDS = 1.0
LINGER_BYTES = 64 * 1024
"""How long and how much of a refused body is read and dropped."""

_Header = tuple[bytes, bytes]
_CONTENT_TYPES: Mapping[str, _Header] = {
    content_type: (b"content-type", content_type.encode())
    for content_type in ("application/json", problems.CONTENT_TYPE, METRICS_CONTENT_TYPE)
}
_text = partial(str, encoding="latin-1")
_CLOSE = ("connection", "close")


# ---------------------------------------------------------------- reading


class TooLarge(Exception):
    """Raised when a body exceeds its limit or declares that it will."""


class Disconnected(Exception):
    """Raised when the sender disconnects before its request is complete."""


def by_name(headers: Sequence[_Header]) -> Mapping[str, Sequence[bytes]]:
    """Return every value of each header, in order, by lower-case name."""
    if not headers:
        return {}
    names, values = zip(*headers, strict=True)
    texts = list(map(_text, names))
    by_text = dict(zip(texts, zip(values, strict=True), strict=True))  # each a tuple of one value
    if len(by_text) == len(texts):
        return by_text
    found: dict[str, list[bytes]] = {text: [] for text in by_text}
    for text, value in zip(texts, values, strict=True):
        found[text].append(value)
    return found


async def read_body(headers: Mapping[str, Sequence[bytes]], limit: int, receive: Receive) -> bytes:
    """Return the whole body; raises `TooLarge` before reading what is declared too large."""
    declared = headers.get("content-length")
    if declared is not None and _length(declared[0]) > limit:
        raise TooLarge
    chunks: list[bytes] = []
    left = limit
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        left -= len(chunk)
        if left < 0:
            raise TooLarge
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


def _length(declared: bytes) -> int:
    """Return a declared length; an invalid one counts as too long."""
    return int(declared) if declared.isdigit() and len(declared) < 20 else 2**63


# ---------------------------------------------------------------- answering


async def answer(reply: Reply, send: Send, *, with_body: bool = True) -> None:
    """Send a reply; without its body to a HEAD request."""
    await send(_start(reply))
    await send({"type": "http.response.body", "body": reply.body if with_body else b""})


def _start(reply: Reply) -> Message:
    headers: list[_Header] = []
    if reply.status != 204:  # 204 has neither header (RFC 9110 section 8.6)
        content_type = _CONTENT_TYPES.get(reply.content_type)
        if content_type is None:
            content_type = (b"content-type", reply.content_type.encode("latin-1"))
        headers = [content_type, (b"content-length", b"%d" % len(reply.body))]
    for name, value in reply.headers:
        headers.append((name.encode("latin-1"), value.encode("latin-1")))
    return {"type": "http.response.start", "status": reply.status, "headers": headers}


async def refuse(reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request without reading its body: answer, drop a little of it, close."""
    if not _has_body(scope["headers"]):
        await answer(reply, send, with_body=scope["method"] != "HEAD")
        return
    await send(_start(replace(reply, headers=(*reply.headers, _CLOSE))))
    body = b"" if scope["method"] == "HEAD" else reply.body
    await send({"type": "http.response.body", "body": body, "more_body": True})
    left = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
                left -= len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b""})


async def busy(send: Send, detail: str) -> None:
    """Ask the sender to retry on another connection."""
    reply = problem(503, detail, ("retry-after", "5"), _CLOSE)
    await send(_start(reply))
    await send({"type": "http.response.body", "body": reply.body})


def _has_body(headers: Iterable[_Header]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )


def problem(status: int, detail: str, *headers: tuple[str, str]) -> Reply:
    """Return a problem document (RFC 9457) as a reply."""
    return Reply(
        status=status,
        body=problems.document(status, detail),
        content_type=problems.CONTENT_TYPE,
        headers=headers,
    )

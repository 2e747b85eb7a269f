"""One request and its answer on a connection: uvicorn's ASGI cycle, with the answer in one write.

The head waits for the first of the body, so that an ordinary answer is one packet and one call of
the system: the second write alone measured as a twelfth of the loop's time under load. Header
lines are checked and put together once for each value seen. Not here: deadlines (`connection`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGIReceiveEvent,
        ASGISendEvent,
        HTTPResponseBodyEvent,
        HTTPResponseStartEvent,
    )

_BODILESS = frozenset({204, 304})


class Cycle(RequestResponseCycle):
    """A request being answered; see uvicorn for what its attributes mean."""

    _head: bytes = b""
    _taken: bool = False

    async def receive(self) -> ASGIReceiveEvent:
        """Return the body, at once if it has arrived whole; then wait for the peer to leave."""
        if self._taken or self.more_body or self.disconnected or self.response_complete:
            return await super().receive()
        self._taken = True
        self.message_event.clear()
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}

    async def send(self, message: ASGISendEvent) -> None:
        """Take one ASGI message; raises `RuntimeError` for one that is out of turn or place."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self._start(message)
        elif message["type"] == "http.response.body" and self.response_started:
            if self.response_complete:
                raise RuntimeError("the response is complete already")
            self._continue(message)
        else:
            raise RuntimeError(f"ASGI message {message['type']!r} is out of turn")

    def _start(self, message: HTTPResponseStartEvent) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        status = message["status"]
        lines = [STATUS_LINE[status]]
        closes = False
        for name, value in (*self.default_headers, *message.get("headers", ())):
            line = _line(name, value)
            lines.append(line)
            if line.startswith(b"content-length:"):
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif line.startswith(b"connection:") and b"close" in value.lower():
                closes = True
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and not self._is_bodiless(status):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def _is_bodiless(self, status: int) -> bool:
        return self.scope["method"] == "HEAD" or status in _BODILESS

    def _continue(self, message: HTTPResponseBodyEvent) -> None:
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the response is longer than its Content-Length")
        if self._head or body:
            self.transport.write(self._head + body)
            self._head = b""
        if not more:
            self._complete()

    def _complete(self) -> None:
        if self.expected_content_length != 0:
            raise RuntimeError("the response is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


@lru_cache(maxsize=1024)
def _line(name: bytes, value: bytes) -> bytes:
    """Return a header as it is sent; raises `RuntimeError` for what could forge another one."""
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise RuntimeError(f"the header {name!r} cannot be sent")
    return name.lower() + b": " + value + b"\r\n"

"""One request and its answer on a connection: an ASGI cycle, with the answer in one write.

The head is sent with the first piece of the body, so that an ordinary answer is one packet and one
system call: a second write took a twelfth of the loop's time under load. Header lines are checked
and built once for each value. Not here: deadlines (`connection`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

from turnout.service.domain.errors import FOREIGN
from turnout.service.http.exchange import App, Message, Scope, answer, busy, problem

_BODILESS = frozenset({204, 304})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger("uvicorn.error")


class Cycle:
    """A request being received and answered."""

    __slots__ = (
        "_changed",
        "_default_headers",
        "_expected",
        "_flow",
        "_head",
        "_is_chunked",
        "_is_disconnected",
        "_is_taken",
        "_is_whole",
        "_on_response",
        "_pieces",
        "_scope",
        "_transport",
        "_wants_continue",
        "is_complete",
        "is_started",
        "keep_alive",
        "logger",
        "waiting_bytes",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        *,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        wants_continue: bool,
        keep_alive: bool,
        on_response: Callable[[], None],
    ) -> None:
        self.keep_alive = keep_alive
        self.is_started = False
        self.is_complete = False
        self.logger = _log
        self.waiting_bytes = 0
        self._scope = scope
        self._transport = transport
        self._flow = flow
        self._default_headers = default_headers
        self._wants_continue = wants_continue
        self._on_response = on_response
        self._changed: asyncio.Event | None = None  # made by the first wait
        self._pieces: list[bytes] = []
        self._is_whole = False
        self._is_taken = False
        self._is_disconnected = False
        self._head = b""
        self._is_chunked: bool | None = None
        self._expected = 0  # bytes of the answer still to be sent

    # ---- the connection's side

    def take(self, content: bytes, *, is_whole: bool) -> None:
        """Take a piece of the body; what comes after the answer is dropped."""
        if self.is_complete:
            return
        if content:
            self._pieces.append(content)
            self.waiting_bytes += len(content)
        self._is_whole = is_whole
        self._wake()

    def disconnect(self) -> None:
        """Tell the application that the peer has disconnected."""
        if not self.is_complete:
            self._is_disconnected = True
        self._wake()

    async def run(self, app: App) -> None:
        """Run the application; an unexpected error is logged and answered with 500."""
        try:
            await app(self._scope, self.receive, self.send)
        except MemoryError:
            self._pieces.clear()
            if not self.is_started:
                await busy(self.send, "out of memory; send the request again later")
        except FOREIGN:  # custom triggers and signature schemes run here
            self.logger.exception("an unexpected error in the HTTP application")
            await self._fail()
        else:
            if not self.is_complete and not self._is_disconnected:
                self.logger.error("the HTTP application did not answer a request")
                await self._fail()

    async def _fail(self) -> None:
        if self.is_started:
            self._transport.close()
        else:
            self.keep_alive = False
            await answer(problem(500, "an unexpected error; see the log"), self.send)

    async def _until_changed(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    # ---- the application's side

    async def receive(self) -> Message:
        """Return the next piece of the body; after the last, wait for the peer to disconnect."""
        if self._is_taken:
            while not (self._is_disconnected or self.is_complete):
                await self._until_changed()
            return {"type": "http.disconnect"}
        if self._wants_continue and not self._transport.is_closing():
            self._transport.write(_CONTINUE)
            self._wants_continue = False
        while not (self._pieces or self._is_whole or self._is_disconnected or self.is_complete):
            self._flow.resume_reading()
            await self._until_changed()
        if self._is_disconnected or self.is_complete:
            return {"type": "http.disconnect"}
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.waiting_bytes = 0
        self._is_taken = self._is_whole
        return {"type": "http.request", "body": body, "more_body": not self._is_whole}

    async def send(self, message: Message) -> None:
        """Take one ASGI message; raises `RuntimeError` for one out of order."""
        if self._flow.write_paused and not self._is_disconnected:
            await self._flow.drain()
        if self._is_disconnected:
            return
        if message["type"] == "http.response.start" and not self.is_started:
            self._start(message)
        elif message["type"] == "http.response.body" and self.is_started:
            if self.is_complete:
                raise RuntimeError("the response is complete already")
            self._continue(message)
        else:
            raise RuntimeError(f"ASGI message {message['type']!r} is out of order")

    def _start(self, message: Message) -> None:
        self.is_started = True
        self._wants_continue = False
        status = message["status"]
        headers = _encoded((*self._default_headers, *message.get("headers", ())))
        if headers.content_length is not None:
            self._expected = headers.content_length
            self._is_chunked = False
        if headers.closes:
            self.keep_alive = False
        ending = b"\r\n" if self.keep_alive or headers.closes else b"connection: close\r\n\r\n"
        if self._is_chunked is None and not self._is_bodiless(status):
            self._is_chunked = True
            ending = b"transfer-encoding: chunked\r\n" + ending
        self._head = STATUS_LINE[status] + headers.lines + ending

    def _is_bodiless(self, status: int) -> bool:
        return self._scope["method"] == "HEAD" or status in _BODILESS

    def _continue(self, message: Message) -> None:
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if self._scope["method"] == "HEAD":
            self._expected = 0
            body = b""
        elif self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        else:
            self._expected -= len(body)
            if self._expected < 0:
                raise RuntimeError("the response is longer than its Content-Length")
        if self._head or body:
            self._transport.write(self._head + body)
            self._head = b""
        if not more:
            self._complete()

    def _complete(self) -> None:
        if self._expected != 0:
            raise RuntimeError("the response is shorter than its Content-Length")
        self.is_complete = True
        self._wake()
        if not self.keep_alive:
            self._transport.close()
        self._on_response()


class _Headers(NamedTuple):
    """The headers of an answer as they are sent, and what they say about its end."""

    lines: bytes
    content_length: int | None
    closes: bool


@lru_cache(maxsize=1024)
def _encoded(headers: tuple[tuple[bytes, bytes], ...]) -> _Headers:
    """Return headers as they are sent; raises `RuntimeError` for one that could inject another."""
    lines: list[bytes] = []
    content_length = None
    closes = False
    for name, value in headers:
        if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            raise RuntimeError(f"the header {name!r} cannot be sent")
        lines.append(name.lower() + b": " + value + b"\r\n")
        if lines[-1].startswith(b"content-length:"):
            content_length = int(value)
        elif lines[-1].startswith(b"connection:") and b"close" in value.lower():
            closes = True
    return _Headers(b"".join(lines), content_length, closes)

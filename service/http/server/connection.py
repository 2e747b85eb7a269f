"""One HTTP connection: its requests one after the other, with deadlines.

A peer that sends its headers or body slowly, is idle, or reads its answer slowly is disconnected. A
request starts when the previous one is answered; what arrives meanwhile waits, so a refusal never
replaces a pending answer. A peer that closes its side after a request still gets its answer. A
request that arrives in one piece needs no timer. Not here: parsing (`request_parser`), the
number of connections (`peers`).
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TimerHandle
from http import HTTPStatus
from typing import Literal, cast
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from turnout.service.domain import problems
from turnout.service.http.exchange import App, Receive, Scope, Send, busy

from .cycle import Cycle
from .peers import Peers
from .request_parser import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    Head,
    Refused,
    RequestParser,
)

HEADERS_SECONDS = 5.0
"""From the first byte (or the connection) to the end of a request's headers."""

BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 1000
"""The least rate of a body that takes longer than `BODY_SECONDS`, measured over that time."""

IDLE_SECONDS = 5
"""Between an answer and the next request on a connection."""

WRITE_SECONDS = 30.0
"""How long a peer may leave an answer unread once its window is full."""

LAST_REQUEST_SECONDS = 0.25
"""How long a connection without a request is still read once the server stops.

A peer may have sent its next request before it could see the connection close.
"""

LINGER_SECONDS = 1.0
"""How long a refused connection is still read, so that the refusal arrives before the reset."""

_REFUSALS = {
    400: "this is not HTTP/1.1 (RFC 9112)",
    408: "the request did not arrive in time",
    414: f"a URL is at most {MAX_URL_BYTES} bytes",
    431: f"a request has at most {MAX_HEADERS} headers, {MAX_HEADER_BYTES} bytes together, "
    "trailers and chunk extensions among them",
    501: "a body comes as it is, or in the chunked coding alone",
    503: "out of memory; send the request again later",
}

_Part = Literal["head", "body"]
_silent = logging.Logger("silent", level=logging.CRITICAL + 1)


class State:
    """What the connections of one server share."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.tasks: dict[Cycle, asyncio.Task[None]] = {}
        self.default_headers: list[tuple[bytes, bytes]] = []
        self.closing = False
        """Whether each answer is the last of its connection."""
        self.draining = False
        """Whether connections without a request are closed."""


class Connection(asyncio.Protocol):
    """A connection to one peer."""

    transport: asyncio.Transport
    flow: FlowControl

    def __init__(self, config: Config, state: State, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._app = cast("App", config.loaded_app)
        self._asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self._state = state
        self._loop = loop
        self._reader = RequestParser()
        self._cycle: Cycle | None = None  # the request being received or answered, or the last one
        self._part: _Part | None = "head"  # what the peer sends; None: it awaits an answer
        self._watched: _Part | None = None
        self._deadline: TimerHandle | None = None
        self._write_deadline: TimerHandle | None = None
        self._idle_since: float | None = None
        self._idle_deadline: TimerHandle | None = None
        self._arrived = 0  # bytes since the deadline was set
        self._has_spoken = False
        self._has_closed = False  # its own side
        self._ended = False

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a peer, or refuse it if there are too many."""
        self.transport = cast("asyncio.Transport", transport)
        self.flow = FlowControl(self.transport)
        self._server = get_local_addr(self.transport)
        self._client = get_remote_addr(self.transport)
        self._is_secure = is_ssl(self.transport)
        admission = self._state.peers.enter(self, self._address)
        if admission == "refused":
            self.abandon()
            return
        if admission == "busy":
            self._app = _only_health(self._app)
        self._watch()
        if self._state.draining:
            self.shutdown()

    @property
    def _address(self) -> str:
        return "" if self._client is None else self._client[0]

    @property
    def is_quiet(self) -> bool:
        """Whether no request is being received or answered."""
        return self._part == "head" and not self._ended

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what belongs to the connection."""
        self._state.peers.leave(self, self._address)
        self._ended = True
        self._disconnect()
        self.flow.resume_writing()
        for deadline in (self._deadline, self._write_deadline, self._idle_deadline):
            if deadline is not None:
                deadline.cancel()

    def data_received(self, data: bytes) -> None:
        """Read what came, then set the deadline for what is missing."""
        if self._ended:
            return
        self._idle_since = None
        self._has_spoken = True
        self._arrived += len(data)
        try:
            self._reader.feed(data)
        except MemoryError:
            self._end(503)
        else:
            self._read_on()

    def eof_received(self) -> bool:
        """Answer the last request and read no more; returns whether to stay open."""
        if self._ended or self._is_secure or self._part is not None or self._is_streaming():
            return False
        self._has_closed = True
        self._close_after_last()
        return True

    def pause_writing(self) -> None:
        """Set a deadline for a peer that does not read its answer."""
        self.flow.pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self._loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Clear the deadline once the peer reads."""
        self.flow.resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def shutdown(self) -> None:
        """Close after the pending answer, or that to a request which is on its way now."""
        if self._cycle is None or self._cycle.is_complete:
            self._loop.call_later(LAST_REQUEST_SECONDS, self._close_if_quiet)
        else:
            self._cycle.keep_alive = False

    def _close_if_quiet(self) -> None:
        """Close, unless a request has come, whose answer is the last."""
        if not self._has_spoken or (self.is_quiet and self._idle_since is not None):
            self.transport.close()

    def abandon(self) -> None:
        """Drop the connection at once; its request ends without a log line."""
        self._ended = True
        if self._cycle is not None:
            self._cycle.logger = _silent
        self.transport.abort()

    # ---- requests

    def _read_on(self) -> None:
        """Read as far as the received bytes allow."""
        try:
            while self._read():
                pass
        except Refused as refused:
            self._end(refused.status)
        except MemoryError:
            self._end(503)
        else:
            self._watch()

    def _read(self) -> bool:
        """Read the next head or more of the body; False if nothing more can be read now."""
        if self._part is None:  # the previous request is answered first
            self.flow.pause_reading()
            return False
        if self._part == "head":
            head = self._reader.head()
            if head is None:
                return False
            self._begin(head)
        assert self._cycle is not None
        self._cycle.take(self._reader.body(), is_whole=self._reader.is_whole)
        if not self._reader.is_whole:
            if self._cycle.waiting_bytes > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            return False
        self._part = None
        self._close_after_last()
        if self._cycle.is_complete:
            self._await_next()
        return self._reader.holds_more

    def _begin(self, head: Head) -> None:
        """Start the application for a request."""
        path = head.path.decode("ascii")
        scope: Scope = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": head.version,
            "server": self._server,
            "client": self._client,
            "scheme": "https" if self._is_secure else "http",
            "method": head.method,
            "root_path": self._config.root_path,
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": {},
        }
        self._part = "body"
        self._stop_watching()
        self._cycle = Cycle(
            scope,
            transport=self.transport,
            flow=self.flow,
            default_headers=self._state.default_headers,
            wants_continue=head.expects_continue,
            keep_alive=head.keep_alive and not self._state.closing,
            on_response=self._answered,
        )
        self._state.tasks[self._cycle] = self._loop.create_task(self._respond(self._cycle))

    async def _respond(self, cycle: Cycle) -> None:
        try:
            await cycle.run(self._app)
        finally:  # a done callback would cost one more turn of the loop
            del self._state.tasks[cycle]

    def _close_after_last(self) -> None:
        """Make this answer the last if the peer closed its side after the request."""
        if self._has_closed and not self._reader.holds_more and self._cycle is not None:
            self._cycle.keep_alive = False

    def _answered(self) -> None:
        """Start the next request, or wait for one."""
        if self.transport.is_closing() or self._ended:
            return
        self.flow.resume_reading()
        if self._part == "body":  # answered before the body was complete
            return
        self._await_next()
        if self._reader.holds_more:
            self._idle_since = None
            self._read_on()
        if self._has_closed and self._part is not None:  # the rest will not come
            self.transport.close()

    def _await_next(self) -> None:
        self._part = "head"
        self._idle_since = self._loop.time()
        if self._idle_deadline is None:
            self._idle_deadline = self._loop.call_later(self._config.timeout_keep_alive, self._idle)

    # ---- deadlines

    def _watch(self) -> None:
        """Keep one timer for what the peer has to send; none while it has to send nothing."""
        expected = None if self._part == "head" and self._idle_since is not None else self._part
        if expected == self._watched:
            return
        self._stop_watching()
        self._watched = expected
        self._arrived = 0
        if expected == "head":
            self._deadline = self._loop.call_later(HEADERS_SECONDS, self._head_late)
        elif expected == "body":
            self._deadline = self._loop.call_later(BODY_SECONDS, self._body_late)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._watched = None

    def _idle(self) -> None:
        """Close if nothing came since the last answer; one timer serves all requests."""
        self._idle_deadline = None
        if self._idle_since is None:
            return
        left = self._idle_since + self._config.timeout_keep_alive - self._loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._idle_deadline = self._loop.call_later(left, self._idle)

    def _head_late(self) -> None:
        self._end(408)

    def _body_late(self) -> None:
        # While reading is paused here, the peer is not late.
        if self.flow.read_paused or self._arrived >= BODY_SECONDS * BODY_BYTES_PER_SECOND:
            self._stop_watching()
            self._watch()
        else:
            self._end(408)

    # ---- the end

    def _end(self, status: int) -> None:
        """Stop reading and close; refuse unless an answer has started or nothing was sent."""
        self._stop_watching()
        self._ended = True
        has_answer = self._part == "body" and self._cycle is not None and self._cycle.is_started
        if has_answer or not self._has_spoken:
            self.transport.close()
        else:
            self._refuse(status)

    def _refuse(self, status: int) -> None:
        body = problems.document(status, f"{_REFUSALS[status]}; the connection closes")
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: {problems.CONTENT_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._disconnect()  # the body will not come
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._loop.call_later(LINGER_SECONDS, self.transport.close)

    def _disconnect(self) -> None:
        if self._cycle is not None:
            self._cycle.disconnect()

    def _is_streaming(self) -> bool:
        return self._cycle is not None and self._cycle.is_started


_HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


def _only_health(app: App) -> App:
    """Answer 503 to all but health and metrics: a busy service is not a dead one."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _HEALTH_PATHS:
            await app(scope, receive, send)
        else:
            await busy(send, "too many connections; try again later")

    return limited

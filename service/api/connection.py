"""One HTTP connection with deadlines and bounds: uvicorn's protocol, minus its patience.

A peer that is slow with its headers, slow with its body, idle, or slow to read its answer is let
go; a request line or header beyond the bounds is answered 414 or 431. An answer still owed to an
earlier request on the connection is never replaced by a later one's refusal: a sender would take
it for the answer to what was accepted. A request that arrives whole costs no timer.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TimerHandle
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from . import problems
from .cycle import Cycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

HEADERS_SECONDS = 5.0
"""From the first byte (or the connection) to the end of a request's headers."""

BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 1000
"""A body not whole after `BODY_SECONDS` goes on only at this rate, measured over as long."""

IDLE_SECONDS = 5
"""Between an answer and the next request on a connection."""

WRITE_SECONDS = 30.0
"""How long a peer may leave an answer unread once its window is full."""

LINGER_SECONDS = 1.0
"""How long a refused connection is still read, so that the refusal arrives before the end."""

MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100

_REFUSALS = {
    400: "this is not HTTP/1.1 as RFC 9112 has it",
    408: "the request did not arrive in time",
    414: f"a URL is at most {MAX_URL_BYTES} bytes",
    431: f"a request has at most {MAX_HEADERS} headers, {MAX_HEADER_BYTES} bytes together",
}

_Part = Literal["headers", "body"]
_silent = logging.Logger("silent", level=logging.CRITICAL + 1)


class State(ServerState):
    """What the connections of one server share; `emptied` is set when the last one is gone."""

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.emptied = asyncio.Event()


class _RefusedError(Exception):
    """Raised inside a parser callback to stop reading; the status is on the connection."""


class Connection(HttpToolsProtocol):
    """A connection to one peer."""

    server_state: State

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._receiving: _Part | None = "headers"
        self._watched: _Part | None = None
        self._deadline: TimerHandle | None = None
        self._write_deadline: TimerHandle | None = None
        self._idle_since: float | None = None
        self._idle_deadline: TimerHandle | None = None
        self._arrived = 0  # bytes of the part being received
        self._refusal = 400
        self._ended = False
        self._running: RequestResponseCycle | None = None
        self._latest: RequestResponseCycle | None = None

    # ---- the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a peer, or turn it away when there are too many."""
        super().connection_made(transport)
        limit = self.server_state.max_connections
        if len(self.connections) > limit + limit // 8:
            transport.abort()
        elif len(self.connections) > limit:
            self.app = _spare(self.app)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the peer."""
        super().connection_lost(exc)
        self._ended = True
        for deadline in (self._deadline, self._write_deadline, self._idle_deadline):
            if deadline is not None:
                deadline.cancel()
        if not self.connections:
            self.server_state.emptied.set()

    def data_received(self, data: bytes) -> None:
        """Parse what came, then see what the peer still owes and by when."""
        if self._ended:
            return
        self._idle_since = None
        if self._receiving is not None:
            self._arrived += len(data)
        super().data_received(data)
        if self._ended:  # by what the parser met
            return
        if self._receiving == "headers" and self._arrived > MAX_URL_BYTES + MAX_HEADER_BYTES:
            self._end(431 if self.headers else 414)
        if not self._ended:
            self._watch()

    def pause_writing(self) -> None:
        """Give a peer that does not read its answer a bounded time."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on once the peer reads."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def abandon(self) -> None:
        """Drop the connection at once; whatever still runs for it ends without a log line."""
        if self._running is not None:
            self._running.logger = _silent
        self.transport.abort()

    # ---- the parser's side

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._receiving = "headers"

    def on_headers_complete(self) -> None:
        """Refuse what is out of bounds, else start the application."""
        self._stop_watching()
        if len(self.url) > MAX_URL_BYTES:
            self._refusal = 414
            raise _RefusedError
        if len(self.headers) > MAX_HEADERS or (
            sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES
        ):
            self._refusal = 431
            raise _RefusedError
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):  # 0.9 has no headers to judge
            raise _RefusedError
        self._begin(version)
        self._receiving = "body"
        self._arrived = 0

    def _begin(self, version: str) -> None:
        """Start the application on this request, or queue it behind the one being answered."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = self.scope
        scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before = self._latest
        self.cycle = self._latest = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            # No parser goes on after an upgrade, done or not.
            keep_alive=version != "1.0"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_message_complete(self) -> None:
        """End a request."""
        super().on_message_complete()
        self._receiving = None
        self._arrived = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self.tasks.add(self.loop.create_task(self._respond(cycle, app)))

    async def _respond(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        try:
            await cycle.run_asgi(app)
        finally:  # here, not in a callback of the task, which would be one more turn of the loop
            self.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idle_deadline is None:
            self._idle_deadline = self.loop.call_later(self.timeout_keep_alive, self._idle)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, or what a callback refused."""
        self._end(self._refusal)

    # ---- deadlines

    def _watch(self) -> None:
        """Keep one timer for what the peer owes; none while it owes nothing."""
        owed = self._receiving
        if owed is None and self._is_quiet():  # stray bytes between requests stop uvicorn's timer
            owed = "headers"
        if owed == self._watched:
            return
        self._stop_watching()
        self._watched = owed
        if owed == "headers":
            self._deadline = self.loop.call_later(HEADERS_SECONDS, self._headers_late)
        elif owed == "body":
            self._arrived = 0
            self._deadline = self.loop.call_later(BODY_SECONDS, self._body_late)

    def _is_quiet(self) -> bool:
        return self._idle_since is None and (
            self._running is None or self._running.response_complete
        )

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._watched = None

    def _idle(self) -> None:
        """Close if nothing came since the last answer: one timer, however many requests."""
        self._idle_deadline = None
        if self._idle_since is None:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._idle_deadline = self.loop.call_later(left, self._idle)

    def _headers_late(self) -> None:
        self._end(408)

    def _body_late(self) -> None:
        # While we hold the reading back, the peer is not to blame.
        if self.flow.read_paused or self._arrived >= BODY_SECONDS * BODY_BYTES_PER_SECOND:
            self._stop_watching()
            self._watch()
        else:
            self._end(408)

    # ---- the end

    def _end(self, status: int) -> None:
        """Read no more, and close: after the answers still owed, or with a refusal."""
        self._stop_watching()
        self._ended = True
        broken = self.cycle if self._receiving == "body" else None
        if broken is not None and self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None and last is not broken and not last.response_complete:
            last.keep_alive = False
        elif (broken is not None and broken.response_started) or self._is_untouched():
            self.transport.close()
        else:
            self._refuse(status)

    def _is_untouched(self) -> bool:
        """Whether the peer has sent nothing at all that would want an answer."""
        return self._running is None and self._arrived == 0

    def _refuse(self, status: int) -> None:
        body = problems.document(status, f"{_REFUSALS[status]}; the connection ends here")
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: {problems.CONTENT_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # its body will not come
            self._running.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


_SPARED = frozenset({"/healthz", "/readyz", "/metrics"})


def _spare(app: ASGI3Application) -> ASGI3Application:
    """Answer 503, but to who asks whether the service is alive: a full house is no dead one."""

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] in _SPARED:
            await app(scope, receive, send)
            return
        body = problems.document(503, "too many connections; try again later")
        headers = [
            (b"content-type", problems.CONTENT_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"5"),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return busy

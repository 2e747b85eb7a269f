"""A server on a socket, peers that speak to it byte by byte, and a hook that keeps what it gets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.http import exchange
from turnout.service.http.exchange import App
from turnout.service.http.ingest import Ingest
from turnout.service.http.server import connection
from turnout.service.http.server.listening import listen
from turnout.service.http.server.server import Server
from turnout.service.settings import Settings, load
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.webhook import webhook

SETTINGS = load(port=0)
PATIENCE_SECONDS = 5.0


class Peer:
    """The other end: writes bytes as they are, reads what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next answer's status, headers and body."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.strip().split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
            }
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body

    async def until(self, text: bytes) -> bytes:
        """Read up to `text`, which comes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._reader.readuntil(text)

    async def is_closed(self) -> bool:
        """Wait until the server has closed; False when it sends something more instead."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self._reader.read(1) == b""
            except ConnectionResetError:
                return True

    def finish(self) -> None:
        """Close this side only."""
        self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


class Site:
    """A running server and its address."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self._peers: list[Peer] = []

    async def connect(
        self, tls: ssl.SSLContext | None = None, *, source: str = "127.0.0.1"
    ) -> Peer:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=tls, local_addr=(source, 0)
        )
        self._peers.append(Peer(reader, writer))
        return self._peers[-1]

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


@asynccontextmanager
async def serving(server: Server, sock: socket.socket) -> AsyncIterator[Site]:
    """Run a server until exit; stop it and wait for its end."""
    port = sock.getsockname()[1]
    site = Site(server, port)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(4 * PATIENCE_SECONDS):
        task = tasks.create_task(server.run())
        try:
            yield site
        finally:
            site.close()
            server.stop()
            await asyncio.wait([task])


async def nothing() -> App:
    raise AssertionError("nothing here is for the REST application")


class Hook:
    """A server with one webhook, /hooks/orders, and a socket for it."""

    def __init__(
        self,
        settings: Settings = SETTINGS,
        drain_seconds: float = 5.0,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.emit = RecordingEmitter()
        ingest = Ingest(
            [(webhook("/orders", max_body="64KiB"), self.emit)],
            settings=settings,
            metrics=Metrics(),
            problems=list,
            rest=nothing,
        )
        self.sock = listen(settings)
        self.server = Server(
            ingest, self.sock, settings, started=started, drain_seconds=drain_seconds
        )

    def running(self) -> AbstractAsyncContextManager[Site]:
        return serving(self.server, self.sock)


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every deadline a fraction of a second."""
    for name, seconds in (("HEADERS", 0.2), ("BODY", 0.2), ("WRITE", 0.2), ("LINGER", 0.1)):
        monkeypatch.setattr(connection, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(exchange, "LINGER_SECONDS", 0.1)


def post(body: bytes = b'{"a": 1}', *headers: str, path: str = "/hooks/orders") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


CHUNKED = post().replace(b"content-length: 8", b"transfer-encoding: chunked")[:-8]
"""The head of a request whose body comes in chunks."""

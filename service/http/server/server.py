"""The HTTP server: a listening socket and its connections, on the service's loop.

`run` ends when asked to stop (no new connections, requests in flight finish within a bound) or at
once when cancelled. Signals, logs, restarts and the loop itself belong to `app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config

from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import utc_now
from turnout.service.http.clients import Proxies
from turnout.service.http.exchange import App
from turnout.service.settings import Settings

from . import connection
from .connection import Connection, State
from .listening import BACKLOG
from .peers import MAX_CONNECTIONS, Peers

DRAIN_SECONDS = 5.0
"""How long requests in flight may take once the server is asked to stop."""


class Server:
    """Serves one ASGI application on one socket."""

    def __init__(
        self,
        app: App,
        sock: socket.socket,
        settings: Settings,
        *,
        started: Callable[[], None] = lambda: None,
        drain_seconds: float = DRAIN_SECONDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._sock = sock
        self._started = started
        self._drain_seconds = drain_seconds
        self._now = now
        self._config = _configure(app, settings)
        self.peers = Peers(_max_connections(), Proxies(settings.trusted_proxies))
        self._state = State(self.peers)
        self._stopping = asyncio.Event()

    def close_connections(self) -> None:
        """Make each answer the last of its connection, while connections are still accepted.

        So that a peer finds its next request on a connection that nobody is about to close.
        """
        self._state.closing = True

    def stop(self) -> None:
        """Ask `run` to accept nothing new, finish what is in flight, and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until stopped or cancelled; no connection and no task outlives it."""
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if self._config.ssl is not None:
            tls = {"ssl": self._config.ssl, "ssl_handshake_timeout": connection.HEADERS_SECONDS}
        listener = await loop.create_server(
            lambda: Connection(self._config, self._state, loop),
            sock=self._sock,
            backlog=BACKLOG,
            **tls,
        )
        try:
            self._started()
            await self._tick()
            listener.close()
            self._state.draining = self._state.closing = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_seconds):
                    await self._drain()
        finally:
            listener.close()
            await self._abandon()

    async def _tick(self) -> None:
        """Keep the Date header right until asked to stop."""
        while not self._stopping.is_set():
            date = formatdate(self._now().timestamp(), usegmt=True).encode()
            self._state.default_headers = [(b"date", date)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()

    async def _drain(self) -> None:
        peers = self.peers
        for peer in peers.all():
            peer.shutdown()
        while self._state.tasks or len(peers):
            if self._state.tasks:
                await asyncio.wait(set(self._state.tasks.values()))
            else:
                peers.emptied.clear()
                await peers.emptied.wait()

    async def _abandon(self) -> None:
        for peer in self.peers.all():
            peer.abandon()
        await asyncio.sleep(0)  # transports notify their connections in the next turn
        tasks = set(self._state.tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def serve(
    app: App, sock: socket.socket, settings: Settings, *, started: Callable[[], None]
) -> None:
    """Serve `app` on `sock` until cancelled."""
    await Server(app, sock, settings, started=started).run()


def _configure(app: App, settings: Settings) -> Config:
    if settings.tls_key is not None and settings.tls_certificate is None:
        raise SetupError("TURNOUT_TLS_KEY needs TURNOUT_TLS_CERTIFICATE beside it")
    config = Config(
        app=app,
        interface="asgi3",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=connection.IDLE_SECONDS,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise SetupError(
            f"cannot use the TLS files {settings.tls_certificate} and {settings.tls_key}: {error}"
        ) from None
    return config


def _max_connections() -> int:
    """Leave a quarter of the process's file descriptors for files and the journal."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft < 0 else max(1, min(MAX_CONNECTIONS, soft * 3 // 4))

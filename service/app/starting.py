"""What is answered while the journal is upgraded, which may take minutes: why nobody serves yet.

A start without an upgrade answers nobody meanwhile: those who connect wait, and are served.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from turnout.service.http.server.server import Server
from turnout.service.http.starting import starting
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger

log = get_logger("turnout")


@asynccontextmanager
async def answered_meanwhile(
    settings: Settings, sock: socket.socket
) -> AsyncIterator[Callable[[str], None]]:
    """Answer on a socket from the first time that the yielded function is told what is done.

    It may be called in any thread. The socket stays open for the service.
    """
    loop = asyncio.get_running_loop()
    doing = ""
    server: Server | None = None
    serving: asyncio.Task[None] | None = None

    def show(now_doing: str) -> None:
        nonlocal doing, server, serving
        doing = now_doing
        if server is None:
            log.info("journal.upgrading", doing=doing)
            server = Server(starting(lambda: doing), sock.dup(), settings)
            serving = loop.create_task(server.run())

    try:
        yield lambda now_doing: _in_loop(loop, show, now_doing)
    finally:
        if server is not None and serving is not None:
            server.stop()
            await serving


def _in_loop(loop: asyncio.AbstractEventLoop, show: Callable[[str], None], doing: str) -> None:
    loop.call_soon_threadsafe(show, doing)

"""A network that fails: a TCP proxy on loopback that cuts, refuses and delays."""

from __future__ import annotations

import asyncio

from .ports import free_port


class Proxy:
    """A TCP proxy on loopback that may cut, refuse and slow down connections."""

    def __init__(self, upstream_port: int, port: int | None = None) -> None:
        self.delay_seconds = 0.0
        self.connections = 0
        self._upstream_port = upstream_port
        self._port = free_port() if port is None else port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self._port}"

    async def heal(self) -> None:
        """Accept connections (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    def cut(self) -> None:
        """Abort all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            upstream, down = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(down)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pump(reader, down))
            tasks.create_task(self._pump(upstream, writer))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(1 << 18):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                target.write(chunk)
                await target.drain()
        except OSError:
            pass
        finally:
            self._open.discard(target)
            target.close()

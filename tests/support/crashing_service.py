"""A service inside a test that may lose its power: it ends without a stop, and starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from turnout.service.app.process import Process
from turnout.service.domain.flow import Flow
from turnout.service.journal.open import open_journal
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics


class PowerCut(Exception):
    """Ends a process without its stop."""


class CrashingService:
    """One process after the other on the journal of one folder; only HTTP and signals are missing.

    `process` is the last one, and `serving` is done when that has ended.
    """

    process: Process
    serving: asyncio.Task[None]

    def __init__(self, settings: Settings, tasks: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._tasks = tasks
        self._end: asyncio.Future[bool]

    async def start(self, flows: Sequence[Flow[..., Any]]) -> None:
        """Start a process that serves `flows`."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        ready = loop.create_future()
        self.serving = self._tasks.create_task(self._serve(flows, ready))
        await asyncio.wait([ready, self.serving], return_when=asyncio.FIRST_COMPLETED)

    async def stop(self, *, cut: bool) -> None:
        """End the process, by a power cut or as on SIGTERM."""
        self._end.set_result(cut)
        await self.serving

    async def _serve(self, flows: Sequence[Flow[..., Any]], ready: asyncio.Future[None]) -> None:
        metrics = Metrics()
        try:
            async with AsyncExitStack() as stack:
                journal = await open_journal(
                    self._settings.data, metrics=metrics, synchronous="normal",
                    max_unfinished_runs=100_000, min_free_bytes=0,
                )  # fmt: skip
                stack.push_async_callback(journal.close)
                async with asyncio.TaskGroup() as tasks:
                    process = Process(self._settings, Project.of(flows), journal, metrics, tasks)
                    self.process = process
                    stack.push_async_callback(process.resources.stop)
                    stack.callback(process.pools.close)
                    await process.start()
                    ready.set_result(None)
                    if await self._end:
                        raise PowerCut
                    await process.stop()
        except* PowerCut:
            pass

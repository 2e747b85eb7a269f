"""A process's parts, running on a real journal inside a test: everything but HTTP and signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from tests.support import inside
from turnout.service.app.process import ManualTrigger, Process
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.domain.trigger import Receipt
from turnout.service.domain.units import utc_now
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Filter
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

PATIENCE_SECONDS = 60.0


class Running:
    """A running process and what tests do to it."""

    def __init__(self, process: Process, emitter: TriggerEmitter) -> None:
        self.process = process
        self.emitter = emitter

    async def send(self, data: Any = None, *, event_id: str | None = None) -> Receipt:
        """Emit one JSON event to every flow."""
        return (await self.emitter([make_event(data, event_id)]))[0]

    async def finished(self, run_id: str) -> Run:
        """Wait until a run has finished."""
        outcome = await self.process.waiters.result(run_id, PATIENCE_SECONDS)
        assert outcome is not None, f"run {run_id} did not finish"
        return await self.run(run_id)

    async def run(self, run_id: str) -> Run:
        """Return a run as it is now."""
        run = await self.process.journal.run(run_id)
        assert run is not None
        return run

    async def until(self, run_id: str, state: RunState) -> None:
        """Wait until a run is in a state on disk."""

        async def is_in_it() -> bool:
            return (await self.run(run_id)).state is state

        await eventually(is_in_it)

    async def all_finished(self) -> list[Run]:
        """Wait until no run is unfinished; return them all, oldest first."""
        runs: list[Run] = []

        async def quiet() -> bool:
            if any(self.process.journal.counts()[0].values()):
                return False
            runs[:] = await self.process.journal.runs(Filter(limit=10_000))
            return all(run.state in FINISHED for run in runs)  # they are counted a moment later

        await eventually(quiet)
        return runs[::-1]


def make_event(data: Any = None, event_id: str | None = None) -> Event:
    """Return a JSON event with a minted id, or with `event_id` as a sender would give it."""
    return Event(
        id=event_id or mint_id(),
        source="/test",
        type="test",
        time=datetime.now(UTC),
        body=orjson.dumps(data),
        trigger="test",
        minted=event_id is None,
    )


async def eventually(fact: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `fact` is true; fail after a bound."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await fact():  # noqa: ASYNC110  a fact in a journal has no event to wait on
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(
    folder: Path,
    flows: Sequence[Flow[..., Any]],
    *,
    now: Callable[[], datetime] = utc_now,
    **chosen: Any,
) -> AsyncIterator[Running]:
    """Run flows on a journal in `folder`; leaving stops as SIGTERM does, with a short grace.

    A run that is sent starts before the next one is sent, if its gates are open.
    """
    chosen = {"grace": timedelta(seconds=2), "min_free_bytes": 0, **chosen}
    settings = Settings(data=folder, **chosen)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        journal = await open_journal(
            folder,
            metrics=metrics,
            synchronous="normal",
            max_unfinished_runs=settings.max_unfinished_runs,
            min_free_bytes=settings.min_free_bytes,
        )
        stack.push_async_callback(journal.close)
        async with asyncio.TaskGroup() as tasks:
            process = Process(settings, Project.of(flows), journal, metrics, tasks, now=now)
            stack.push_async_callback(process.resources.stop)
            await process.start()
            everything = tuple(flows)
            emitter = process.emitter(ManualTrigger("test", "test"), lambda _event: everything)
            process.emitters["test"] = emitter
            await inside.queues_read(process)
            try:
                yield Running(process, emitter)
            finally:
                await process.stop()

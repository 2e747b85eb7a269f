"""One flow, a real journal and the real executor: what tests of steps and pools stand on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from turnout.service.dispatch.executor import Executor
from turnout.service.domain.event import NO_BODY, Event
from turnout.service.domain.resource import Resources
from turnout.service.domain.run import Outcome, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import Claim, ClaimedRun, Entry, NewRun, StepRecord
from turnout.service.pools import Pools
from turnout.service.settings import Settings
from turnout.service.steps.attempt_state import AttemptState
from turnout.service.steps.services import Sleep
from turnout.service.telemetry.metrics import Metrics

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


def an_event(data: Any = None, **attributes: Any) -> Event:
    body = NO_BODY if data is None else orjson.dumps(data)
    chosen: dict[str, Any] = {"id": "e1", "source": "/test", "type": "test", "time": NOW}
    return Event(**(chosen | {"body": body, "trigger": "webhook:/test"} | attributes))


@dataclass
class Attempts:
    """Runs attempts of one run, the way the service would."""

    journal: OpenJournal
    pools: Pools
    resources: Resources
    metrics: Metrics
    settings: Settings
    now: Callable[[], datetime] = utc_now
    sleep: Sleep = asyncio.sleep
    claimed: ClaimedRun | None = None

    async def first(self, flow: Any, data: Any = None, **attributes: Any) -> Outcome:
        """Append an event and run the first attempt of its run."""
        await self.new_run(flow, data, **attributes)
        return await self.execute(flow)

    async def new_run(self, flow: Any, data: Any = None, **attributes: Any) -> ClaimedRun:
        event = an_event(data, **attributes)
        run = NewRun(
            id=f"run-of-{event.id}",
            flow=flow.name,
            state=RunState.RUNNING,
            code_version=flow.code_version,
        )
        appended = (await self.journal.append([Entry(event=event, runs=[run])], now=NOW))[0]
        self.claimed = ClaimedRun(
            claim=Claim(run.seq, run.id, 1), flow=run.flow, event_seq=appended.event_seq,
            event=event, attempt=1, crashes=0, replay=0, order_key=None, keys=None,
            due_at=NOW,
        )  # fmt: skip
        return self.claimed

    async def execute(self, flow: Any) -> Outcome:
        assert self.claimed is not None
        executor = Executor(
            self.journal, self.pools, self.resources, self.settings, self.metrics,
            now=self.now, sleep=self.sleep,
        )  # fmt: skip
        state = AttemptState(self.claimed)
        outcome = await executor.execute(self.claimed, flow, state)
        await self.journal.record(
            self.claimed, outcome, started_at=NOW, now=NOW, has_waits=state.has_waits,
            changed=state.changed, progress=state.progress,
        )  # fmt: skip
        return outcome

    async def again(self, flow: Any) -> Outcome:
        """Claim the run again (it is retrying) and run its next attempt."""
        await self.reclaim()
        return await self.execute(flow)

    async def reclaim(self) -> ClaimedRun:
        assert self.claimed is not None
        later = utc_now() + timedelta(days=365)
        (self.claimed,) = await self.journal.claim([self.claimed.claim.run_seq], now=later)
        return self.claimed

    async def crash(self) -> ClaimedRun:
        """Do what a restart does to a run that was running: requeue and claim it again."""
        await self.journal.rescue(now=NOW)
        return await self.reclaim()

    async def until_recorded(self, key: str) -> None:
        """Wait until a step is in the journal, in whatever state."""
        async with asyncio.timeout(5):
            while key not in await self.steps():  # noqa: ASYNC110  the fact is in the journal
                await asyncio.sleep(0)

    async def steps(self) -> dict[str, StepRecord]:
        assert self.claimed is not None
        return {step.key: step for step in await self.journal.steps(self.claimed.claim.run_seq)}


@asynccontextmanager
async def attempts(
    folder: Path,
    *,
    threads: int = 4,
    processes: int = 1,
    now: Callable[[], datetime] = utc_now,
    sleep: Sleep = asyncio.sleep,
    **settings: Any,
) -> AsyncIterator[Attempts]:
    metrics = Metrics()
    journal = await open_journal(
        folder / "data",
        metrics=metrics,
        synchronous="normal",
        max_unfinished_runs=1000,
        min_free_bytes=0,
    )
    pools = Pools(threads, processes)
    resources = Resources()
    try:
        yield Attempts(journal, pools, resources, metrics, Settings(**settings), now, sleep)
    finally:
        await resources.stop()
        pools.close()
        await journal.close()

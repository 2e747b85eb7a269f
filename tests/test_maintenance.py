"""What is old goes, in small batches; what is unfinished, failed lately or remembered stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.running import running
from turnout import flow
from turnout.service.event import Event
from turnout.service.journal.contract import Filter
from turnout.service.maintenance import Maintenance
from turnout.service.run import RunState


@flow
async def work(event: Event) -> None:
    if event.data == "bad":
        raise ValueError("bad")


async def test_finished_runs_are_pruned_by_age_and_failed_ones_kept_longer(tmp_path: Path) -> None:
    at = [datetime(2026, 1, 1, tzinfo=UTC)]
    async with running(tmp_path, [work], now=lambda: at[0]) as service:
        process = service.process
        maintenance = Maintenance(
            process.journal, process.effects, process.settings, process.metrics, now=process.now
        )
        for data in ("good", "bad"):
            await service.finished((await service.send(data)).runs[0])
        seen = await service.send("good", event_id="sender's")
        await service.finished(seen.runs[0])
        assert await maintenance.run_once() == 0

        at[0] += timedelta(days=6, hours=23)
        assert await maintenance.run_once() == 0
        assert (await service.send("good", event_id="sender's")).duplicate

        at[0] += timedelta(hours=2)
        await maintenance.run_once()
        left = await process.journal.runs(Filter())
        assert [run.state for run in left] == [RunState.FAILED]
        fresh = await service.send("good", event_id="sender's")  # the window has passed
        assert not fresh.duplicate

        at[0] += timedelta(days=31)
        await maintenance.run_once()
        assert not await process.journal.runs(Filter())
        assert await process.journal.events(Filter()) == []

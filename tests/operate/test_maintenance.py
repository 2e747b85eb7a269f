"""What is old goes, in small batches; what is unfinished, failed lately or remembered stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from tests.support.running import eventually, running
from turnout import current, event, flow, notify, sleep, wait_for
from turnout.service.domain.clock import WallClock
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.operate.maintenance import Maintenance
from turnout.service.operate.verbs import Emit
from turnout.testing import serve


@flow
async def work(event: Event) -> None:
    if event.data == "bad":
        raise ValueError("bad")


async def test_finished_runs_are_pruned_by_age_and_failed_ones_kept_longer(tmp_path: Path) -> None:
    at = [datetime(2026, 1, 1, tzinfo=UTC)]
    async with running(tmp_path, [work], now=lambda: at[0]) as service:
        process = service.process
        maintenance = Maintenance(
            process.journal, process.after_run_actions, process.settings, process.metrics,
            now=process.now,
            clock=WallClock(process.now, elapsed=lambda: process.now().timestamp()),
        )  # fmt: skip
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
        await service.finished(fresh.runs[0])

        at[0] += timedelta(days=31)
        await maintenance.run_once()
        assert not await process.journal.runs(Filter())
        assert await process.journal.events(Filter()) == []


@flow(ordered_by=lambda event: event.data)
async def keeps(event: Event) -> None:
    current().state.set(event.data)


async def test_the_state_of_a_key_goes_when_it_was_not_used_for_long(tmp_path: Path) -> None:
    at = [datetime(2026, 1, 1, tzinfo=UTC)]
    async with running(tmp_path, [keeps], now=lambda: at[0]) as service:
        process = service.process
        maintenance = Maintenance(
            process.journal, process.after_run_actions, process.settings, process.metrics,
            now=process.now,
            clock=WallClock(process.now, elapsed=lambda: process.now().timestamp()),
        )  # fmt: skip

        async def kept_after(days: int) -> list[str]:
            at[0] += timedelta(days=days)
            await maintenance.run_once()
            return [one.key for one in await process.journal.flow_states(None, 9)]

        for key in ("acme", "globex"):
            await service.finished((await service.send(key)).runs[0])
        assert await kept_after(days=89) == ["acme", "globex"]
        await service.finished((await service.send("globex")).runs[0])
        assert await kept_after(days=30) == ["acme", "globex"]
        assert await kept_after(days=2) == ["globex"]
        assert await kept_after(days=90) == []


paid = event("order.paid")


@flow(awaits=paid)
async def waits_late(data: dict[str, str]) -> str:
    await sleep("10d")
    return str((await wait_for(paid, match={"order": data["order"]})).data["by"])


@flow(on=paid)
async def books() -> None:
    pass


@pytest.mark.parametrize("booked", [False, True])
async def test_what_an_unfinished_run_may_come_to_wait_for_is_kept(
    tmp_path: Path, booked: bool
) -> None:
    at = [datetime(2026, 1, 1, tzinfo=UTC)]
    flows: list[Any] = [waits_late, books] if booked else [waits_late]
    async with running(tmp_path, flows, now=lambda: at[0]) as service:
        process = service.process
        maintenance = Maintenance(
            process.journal, process.after_run_actions, process.settings, process.metrics,
            now=process.now,
            clock=WallClock(process.now, elapsed=lambda: process.now().timestamp()),
        )  # fmt: skip
        service.emitter.flows = lambda _event: (waits_late,)
        run_id = (await service.send({"order": "7"})).runs[0]
        await service.until(run_id, RunState.WAITING)
        at[0] += timedelta(days=1)
        for order in ("7", "8"):
            await process.operator.do(Emit(a_payment(order, at[0])))

        async def all_booked() -> bool:
            done = await process.journal.runs(Filter(flow="books", state=RunState.SUCCEEDED))
            return len(done) == (2 if booked else 0)

        await eventually(all_booked)
        at[0] += timedelta(days=8)
        await maintenance.run_once()
        assert len(await process.journal.events(Filter())) == 3, "kept, with its own run or without"
        at[0] += timedelta(days=2)
        process.dispatcher.recheck_due()
        run = await service.finished(run_id)
        assert run.result == b'"card"', run
        at[0] += timedelta(days=1)
        await maintenance.run_once()
        await maintenance.run_once()
        left = await process.journal.events(Filter())
        assert [stored.event.type for stored in left] == ["test"], "nobody can wait for it any more"


def a_payment(order: str, at: datetime) -> Event:
    return Event(
        id=mint_id(), source="/bank", type="order.paid", time=at,
        body=orjson.dumps({"order": order, "by": "card"}), trigger="api", minted=True,
    )  # fmt: skip


@flow(on_failure=notify("https://chat.example/hook"))
async def told(event: Event) -> None:
    if event.data == "bad":
        raise ValueError("bad")


@pytest.mark.parametrize(("keep_failed", "kept_days"), [("3d", 3), ("1m", 1)])
async def test_alerts_and_messages_go_with_failed_runs_once_they_have_ended(
    keep_failed: str, kept_days: int
) -> None:
    async with serve(told, keep_failed=keep_failed) as service:

        def counts(database: apsw.Connection) -> tuple[int, int]:
            """Return how many alerts and messages there are."""
            alerts = database.execute("SELECT count(*) FROM alerts").get
            return int(alerts), int(database.execute("SELECT count(*) FROM alert_messages").get)

        async def rows() -> tuple[int, int]:
            journal = service.journal
            assert isinstance(journal, SqliteJournal)
            return await journal.read(counts)

        await service.run(told, "bad")
        assert await rows() == (1, 1)
        await service.advance(timedelta(days=40))
        assert await rows() == (1, 0), "the alert is open, its message was sent long ago"
        await service.run(told, "good")
        await service.advance("10m")
        assert await rows() == (1, 1), "it has recovered"
        await service.advance(timedelta(days=kept_days, minutes=-20))
        assert await rows() == (1, 1)
        await service.advance("1h")
        assert await rows() == (0, 0)

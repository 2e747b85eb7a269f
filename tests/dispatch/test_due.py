"""Due runs go first, in their order, however many there are."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit, sleep
from turnout.service.dispatch import due
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Entry, NewRun, Queued
from turnout.service.operate.verbs import Cancel, Retry, SetLimit
from turnout.testing.clock import START, Clock

AT_ONCE = 20


async def add_due(service: Running, count: int) -> None:
    """Add runs that are due, each a little later than the one before."""
    now = utc_now()
    for number in range(count):
        run = NewRun(
            id=mint_id(), flow="work", state=RunState.SCHEDULED,
            due_at=now - timedelta(hours=1) + timedelta(milliseconds=number),
        )  # fmt: skip
        await service.process.journal.append([Entry(event=make_event(number), runs=[run])], now=now)
    service.process.dispatcher.recheck_due()

    async def are_known() -> bool:
        return len(service.process.dispatcher.known_due) == count

    await eventually(are_known)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [4 * AT_ONCE, 2_000])
async def test_a_raised_limit_lets_no_new_run_overtake_what_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, count: int
) -> None:
    """It starts more runs than one read of the journal returns."""
    if count < due.BATCH:
        monkeypatch.setattr(due, "BATCH", AT_ONCE)
    elif not full:
        pytest.skip("as many as one reads at once are left to --full")
    started: list[int] = []
    gate, slots = asyncio.Event(), count * 3 // 4

    @flow(concurrency=1)
    async def work(event: Event) -> None:
        started.append(event.data)
        await gate.wait()

    async def have_started() -> bool:
        return len(started) == 1 + slots

    async with running(tmp_path, [work], concurrency=2 * count) as service:
        await service.send(-1)
        await add_due(service, count)
        await service.emitter([make_event(count + number) for number in range(count)])
        journal = service.process.journal
        read = journal.due

        async def read_slowly(*asked: Any, **more: Any) -> list[Queued]:
            rows = await read(*asked, **more)
            with suppress(TimeoutError):  # nothing should start before all are read
                async with asyncio.timeout(count / 1_000):
                    await eventually(have_started)
            return rows

        monkeypatch.setattr(journal, "due", read_slowly)
        lasts = timedelta(hours=1)
        await service.process.operator.do(SetLimit("flow:work/limit", 1 + slots, lasts))
        await eventually(have_started)
        first = started[1:]
        gate.set()
        await service.all_finished()
    were_due = [number for number in first if number < count]
    assert len(were_due) >= slots // 2, "new runs take turns with them"
    assert [number for number in started if 0 <= number < count] == [*range(count)]


async def test_what_ended_while_due_runs_were_read_is_remembered_no_longer(tmp_path: Path) -> None:
    @flow
    async def work() -> None: ...

    async with running(tmp_path, [work]) as service:
        service.process.dispatcher.pause("work")
        run_id = (await service.send()).runs[0]
        scheduler = inside.scheduler(service.process)
        queue = scheduler.queue("work")
        (waits,) = queue.rows()
        epochs = scheduler.start_reading_due()
        await service.process.operator.do(Cancel(run_id))
        assert not queue.is_queued(waits)
        scheduler.due_read(epochs)

        async def is_forgotten() -> bool:  # once the service's own read is over, too
            return queue.is_queued(waits)

        await eventually(is_forgotten)


class HeldRead:
    """The next read of due runs that finds any: it is `done`, and waits with its answer."""

    def __init__(self, journal: Any, patch: pytest.MonkeyPatch) -> None:
        self.done, self.may_answer, self.read_again = (asyncio.Event() for _ in range(3))
        self._read = journal.due
        patch.setattr(journal, "due", self._due)

    async def _due(self, *asked: Any, **more: Any) -> list[Queued]:
        if self.may_answer.is_set():
            self.read_again.set()  # so what the read before has found is in its queue
        rows: list[Queued] = await self._read(*asked, **more)
        if rows and not self.done.is_set():
            self.done.set()
            await self.may_answer.wait()
        return rows

    async def answer(self, service: Running) -> None:
        """Answer, and wait until the queue has the runs."""
        self.may_answer.set()
        service.process.dispatcher.recheck_due()
        await self.read_again.wait()


@pytest.mark.parametrize("is_retried", [False, True])
async def test_a_run_that_is_cancelled_while_due_runs_are_read_does_not_start_and_blocks_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_retried: bool
) -> None:
    """It waits for its limit, where it would hold its ordering key; it runs if it is retried."""
    clock, gate = Clock(START), asyncio.Event()
    started: list[str] = []
    begun: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("holds", "next")}

    @flow(
        ordered_by=lambda event: event.data["order"],
        concurrency=limit(1, per=lambda event: event.data["limit"]),
    )
    async def work(event: Event) -> None:
        name = event.data["name"]
        if name == "sleeps" and not is_over:
            await sleep("1h")
        started.append(name)
        if name in begun:
            begun[name].set()
        if name == "holds":
            await gate.wait()

    is_over = False
    async with running(tmp_path, [work], now=clock.now) as service:
        (sleeps,) = (await service.send({"name": "sleeps", "order": "x", "limit": "a"})).runs
        await service.until(sleeps, RunState.WAITING)
        await service.send({"name": "holds", "order": "y", "limit": "a"})
        await begun["holds"].wait()
        read = HeldRead(service.process.journal, monkeypatch)
        clock.set(START + timedelta(hours=1))
        service.process.clock_set()
        await read.done.wait()
        is_over = True
        await service.process.operator.do(Cancel(sleeps))
        if is_retried:
            await service.process.operator.do(Retry(sleeps))
        await read.answer(service)
        await service.send({"name": "next", "order": "x", "limit": "b"})
        if not is_retried:
            await begun["next"].wait()
        gate.set()
        await service.all_finished()
    assert started == ["holds", *(["sleeps"] if is_retried else []), "next"]

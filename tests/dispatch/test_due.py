"""Due runs go first, in their order, however many there are."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import flow
from turnout.service.dispatch import due
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Entry, NewRun, Queued
from turnout.service.operate.verbs import SetLimit

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

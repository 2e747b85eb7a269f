"""More runs than memory holds: they wait in the journal and run in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, make_event, running
from turnout import flow, limit, sleep
from turnout.service.dispatch.memory import WINDOW
from turnout.service.domain.event import Event
from turnout.service.journal.records import Filter, Queued


async def check_memory(service: Running) -> None:
    queue = inside.scheduler(service.process).queue("slow")
    assert inside.window(queue) + queue.blocked.count <= 2 * WINDOW


@pytest.mark.slow
async def test_a_backlog_stays_in_the_journal(tmp_path: Path) -> None:
    gate = asyncio.Event()

    @flow(concurrency=limit(1, per=lambda event: event.data % 3))
    async def slow(event: Event) -> None:
        await gate.wait()

    async with running(tmp_path, [slow]) as service:
        inside.keep_only_windows(service.process)
        async with asyncio.TaskGroup() as tasks:
            for number in range(WINDOW * 8):
                tasks.create_task(service.send(number))
        await check_memory(service)
        gate.set()
        await service.all_finished()
        runs = await service.process.journal.runs(Filter(limit=10_000))
        assert len({run.id for run in runs}) == WINDOW * 8


async def test_a_backlog_of_keys_runs_once_and_as_many_at_once_as_a_key_may(
    tmp_path: Path,
) -> None:
    started: Counter[int] = Counter()
    now: Counter[int] = Counter()
    last: dict[int, int] = {}  # the newest run of a key that was not alone

    @flow(concurrency=limit(2, per=lambda event: event.data % 7))
    async def fair(event: Event) -> None:
        key = event.data % 7
        started[event.data] += 1
        now[key] += 1
        if now[key] == 2:
            last[key] = event.data
        await asyncio.sleep(0.001)
        now[key] -= 1

    async with running(tmp_path, [fair]) as service:
        for first in range(0, 3000, 100):
            await service.emitter([make_event(number) for number in range(first, first + 100)])
        await service.all_finished()
    assert started == Counter(range(3000))
    assert min(last.values()) > 2500


async def test_a_run_claimed_while_due_runs_are_read_is_not_queued_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake, gate = asyncio.Event(), asyncio.Event()

    @flow(ordered_by=lambda event: "key")
    async def naps(event: Event) -> str:
        await sleep("20ms")
        awake.set()
        await gate.wait()
        await sleep("20ms")
        return "rested"

    async with running(tmp_path, [naps]) as service:
        read = service.process.journal.due
        before: list[list[Queued]] = []

        async def read_slowly(at: datetime, limit: int, **after: Any) -> list[Queued]:
            if before:  # a later read that still answers as of before the claim
                await awake.wait()
                asyncio.get_running_loop().call_later(0.02, gate.set)
                return before.pop()
            found = await read(at, limit, **after)
            if found and not awake.is_set():
                before.append(found)
            return found

        monkeypatch.setattr(service.process.journal, "due", read_slowly)
        run = await service.finished((await service.send(1)).runs[0])
        assert run.result == b'"rested"'


async def test_a_flow_whose_runs_arrived_while_every_slot_was_taken_runs(
    tmp_path: Path,
) -> None:
    busy, free = asyncio.Event(), asyncio.Event()

    @flow
    async def holds() -> None:
        busy.set()
        await free.wait()

    @flow
    async def comes_later() -> str:
        return "here"

    async with running(tmp_path, [holds, comes_later], concurrency=1) as service:
        service.emitter.flows = lambda event: (holds,) if event.data == 1 else (comes_later,)
        await service.send(1)
        await busy.wait()
        late = (await service.send(2)).runs[0]
        free.set()
        assert (await service.finished(late)).result == b'"here"'

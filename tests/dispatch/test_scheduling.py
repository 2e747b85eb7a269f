"""Runs with an ordering key and a limit key keep to both, whichever blocks them first."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import current, flow, limit, retry, sleep
from turnout.service.dispatch import memory
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Queued
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.operate.verbs import Cancel, Replay, Retry, SetLimit
from turnout.testing.clock import START, Clock


class Seen:
    """Records the starts of runs; each run ends when its gate is opened."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}

    def gate(self, number: int) -> asyncio.Event:
        return self.gates.setdefault(number, asyncio.Event())

    async def run(self, number: int) -> None:
        self.started.append(number)
        await self.gate(number).wait()

    async def until(self, number: int) -> None:
        async def started() -> bool:
            return number in self.started

        await eventually(started)

    def open(self, count: int) -> None:
        for number in range(count):
            self.gate(number).set()


def ordered_and_limited(seen: Seen) -> Flow[..., Any]:
    """Return a flow whose events are (number, ordering key, limit key), one at once for each."""

    @flow(
        ordered_by=lambda event: event.data[1],
        concurrency=limit(1, per=lambda event: event.data[2]),
    )
    async def both(event: Event) -> None:
        await seen.run(event.data[0])

    return both


def one_at_once(seen: Seen) -> Flow[..., Any]:
    """Return a flow whose events are (number, ordering key), one at once of all."""

    @flow(ordered_by=lambda event: event.data[1], concurrency=1)
    async def one(event: Event) -> None:
        await seen.run(event.data[0])

    return one


async def send(service: Running, *data: Any) -> list[str]:
    receipts = await service.emitter([make_event(one) for one in data])
    return [receipt.runs[0] for receipt in receipts]


async def test_a_run_that_waits_for_a_limit_is_not_overtaken_on_its_ordering_key(
    tmp_path: Path,
) -> None:
    seen = Seen()
    async with running(tmp_path, [ordered_and_limited(seen)]) as service:
        await send(
            service, (0, "x", "A"), (1, "y", "A"), (2, "z", "A"), (3, "z", "B"), (4, "w", "C")
        )
        await seen.until(4)
        assert seen.started == [0, 4]
        seen.open(5)
        await service.all_finished()
    assert [number for number in seen.started if number in (2, 3)] == [2, 3]


async def test_a_limit_passes_over_a_cancelled_run_that_lost_its_ordering_key(
    tmp_path: Path,
) -> None:
    seen = Seen()
    async with running(tmp_path, [ordered_and_limited(seen)]) as service:
        ids = await send(service, (0, "x", "A"), (1, "y", "A"), (2, "y", "B"), (3, "z", "A"))
        await seen.until(0)
        await service.process.operator.do(Cancel(ids[1]))
        await seen.until(2)
        seen.gate(0).set()
        await seen.until(3)
        seen.open(4)
        await service.all_finished()
    assert seen.started == [0, 2, 3]


async def test_a_retried_older_run_and_the_holder_of_its_key_do_not_deadlock(
    tmp_path: Path,
) -> None:
    seen = Seen()
    async with running(tmp_path, [one_at_once(seen)]) as service:
        seen.gate(0).set()
        (older,) = await send(service, (0, "x"))
        await service.finished(older)
        await send(service, (1, "y"))
        await send(service, (2, "x"))

        async def holds_its_key() -> bool:
            return bool(service.process.dispatcher.holders("one", "x"))

        await eventually(holds_its_key)
        await service.process.operator.do(Retry(older))
        seen.open(3)
        await service.all_finished()
    assert seen.started == [0, 1, 2, 0]


async def test_a_cancelled_run_holds_no_key_after_its_queue_is_reread(tmp_path: Path) -> None:
    seen = Seen()
    async with running(tmp_path, [one_at_once(seen)]) as service:
        seen.gate(0).set()
        (done,) = await send(service, (0, "z"))
        await service.finished(done)
        await send(service, (1, "y"))
        (cancelled,) = await send(service, (2, "x"))

        async def has_its_key() -> bool:
            return bool(service.process.dispatcher.holders("one", "x"))

        await eventually(has_its_key)
        await service.process.operator.do(Cancel(cancelled))
        await send(service, (3, "x"))
        await eventually(has_its_key)  # it takes the key again, since it is still in memory
        await service.process.operator.do(Retry(done))
        seen.open(4)
        await service.all_finished()
    assert seen.started == [0, 1, 3, 0]


async def test_keys_evicted_by_order_and_by_limit_lose_and_duplicate_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "WINDOW", 4)
    seen = Seen()
    count = 60
    seen.open(count)
    keys = [("abc"[n % 3], "xy"[n * n % 5 % 2]) for n in range(count)]
    async with running(tmp_path, [ordered_and_limited(seen)], concurrency=3) as service:
        await send(service, *((n, *keys[n]) for n in range(count)))
        await service.all_finished()
    assert sorted(seen.started) == list(range(count))
    for key in "abc":
        started = [n for n in seen.started if keys[n][0] == key]
        assert started == sorted(started)


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_backlog_that_its_key_blocks_is_passed_over_and_starts_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """After a start, too: it is read in a few parts, and what is free in it starts at once."""
    monkeypatch.setattr(memory, "WINDOW", 4)
    count, free, seen = 400, {90, 91, 200, 399}, Seen()

    def key(event: Event) -> str:
        return "free" if event.data in free else "busy"

    per_key: dict[str, Any] = {"ordered_by": key} if ordered else {"concurrency": limit(1, per=key)}

    @flow(**per_key)
    async def work(event: Event) -> None:
        await seen.run(event.data)

    reads: list[int] = []
    async with running(tmp_path, [work], concurrency=3) as service:
        service.process.dispatcher.pause("work")
        await send(service, *range(count))
    for read in ("queued", "queued_past"):
        asked = getattr(SqliteJournal, read)

        def counted(self: Any, flow: str, after: int, *more: Any, asked: Any = asked) -> Any:
            reads.append(after)
            return asked(self, flow, after, *more)

        monkeypatch.setattr(SqliteJournal, read, counted)
    for number in free:
        seen.gate(number).set()
    async with running(tmp_path, [work], concurrency=3) as service:
        await seen.until(399)
        assert len(reads) < 20, "each part of four is read only to be evicted"
        assert seen.started == [0, *sorted(free)]
        await send(service, count)
        seen.open(count + 1)
        await service.all_finished()
    assert sorted(seen.started) == list(range(count + 1)), "none is lost, none comes twice"
    busy = [number for number in seen.started if number not in free]
    assert busy == sorted(busy)


async def test_a_run_that_is_due_before_its_attempt_has_ended_starts(tmp_path: Path) -> None:
    """Its outcome is on disk, and read as due, before it has left the gates."""
    seen = Seen()
    async with running(tmp_path, [ordered_and_limited(seen)]) as service:
        (run_id,) = await send(service, (0, "x", "A"))
        await seen.until(0)
        scheduler = inside.scheduler(service.process)
        (attempt,) = scheduler.queue("both").gates.inside.values()
        again = Queued(
            seq=1, arrival=1, id=run_id, flow="both", order_key="x", keys={"limit": "B"},
            due_at=utc_now(), queued_at=utc_now(), isolated=False,
        )  # fmt: skip
        scheduler.add_due(again, scheduler.queue("both"))
        assert scheduler.choose(utc_now()) == [], "its attempt holds the key"
        scheduler.leave(attempt, keeps_key=True)
        assert scheduler.choose(utc_now()) == [again]
        scheduler.leave(again)
        scheduler.queue("both").gates.enter(attempt, utc_now())
        seen.open(1)


async def test_a_limit_that_is_raised_starts_the_due_run_before_newer_ones(tmp_path: Path) -> None:
    seen, clock = Seen(), Clock(START)

    @flow(concurrency=1)
    async def work(number: int) -> None:
        if number == 0:
            await sleep("1h")  # another run has its place when it is due
        await seen.run(number)

    async with running(tmp_path, [work], now=clock.now) as service:
        await send(service, 0, 1, 2, 3)
        await seen.until(1)
        clock.set(START + timedelta(hours=1))
        service.process.clock_set()

        async def due() -> bool:
            return bool(service.process.dispatcher.known_due)

        await eventually(due)
        await service.process.operator.do(SetLimit("work", 2, timedelta(hours=1)))

        async def two_started() -> bool:
            return len(seen.started) == 2

        await eventually(two_started)
        assert seen.started == [1, 0]
        seen.open(4)
        await service.all_finished()


async def test_held_keys_are_read_as_of_one_moment_among_the_writes(tmp_path: Path) -> None:
    """A run ends and another begins to wait while they are read: both are known right."""
    begun, gate = asyncio.Event(), asyncio.Event()

    @flow(ordered_by=lambda event: event.data, retry=retry(1, delay="60s", jitter=False))
    async def work(event: Event) -> None:
        if event.data == "fails":
            begun.set()
            await gate.wait()
            raise OSError("not now")
        if current().attempt == 1:
            raise OSError("try again")

    async with running(tmp_path, [work]) as service:
        dispatcher, journal = service.process.dispatcher, service.process.journal
        recovers, fails = await send(service, "recovers", "fails")

        async def is_retrying(run_id: str) -> bool:
            return (await service.run(run_id)).state is RunState.RETRYING

        await eventually(lambda: is_retrying(recovers))
        await begun.wait()
        assert list(dispatcher.holders("work", "recovers")) == [recovers]
        assert isinstance(journal, SqliteJournal)
        busy = threading.Event()
        inside.occupy_writer(journal, busy.wait)
        gate.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.process.operator.do(Cancel(recovers)))
            await asyncio.sleep(0)
            tasks.create_task(dispatcher.restore())
            await asyncio.sleep(0)
            busy.set()
        assert not dispatcher.holders("work", "recovers")
        await eventually(lambda: is_retrying(fails))
        assert list(dispatcher.holders("work", "fails")) == [fails]


async def test_a_replayed_run_is_not_overtaken_by_an_event_that_arrives_meanwhile(
    tmp_path: Path,
) -> None:
    """The replayed run is on disk before the dispatcher hears of it."""
    seen: list[tuple[int, int]] = []

    @flow(ordered_by=lambda event: "x")
    async def work(event: Event) -> None:
        seen.append((event.data, current().run.replay))

    async with running(tmp_path, [work]) as service:
        journal = service.process.journal
        first = await service.send(1)
        await service.finished(first.runs[0])
        run = await service.run(first.runs[0])
        assert isinstance(journal, SqliteJournal)
        busy = threading.Event()
        inside.occupy_writer(journal, busy.wait)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.process.operator.do(Replay(run.event_id)))
            await eventually(lambda: is_changing(service))
            tasks.create_task(service.send(2))
            await asyncio.sleep(0)
            busy.set()
        await service.all_finished()
    assert seen == [(1, 0), (1, 1), (2, 0)]


async def is_changing(service: Running) -> bool:
    """Whether a command is changing runs of the flow in the journal."""
    return inside.scheduler(service.process).queue("work").stopped

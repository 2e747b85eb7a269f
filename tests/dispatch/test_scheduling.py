"""Runs with an ordering key and a limit key keep to both, whichever blocks them first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import current, flow, limit, retry
from turnout.service.dispatch import queue, scheduling
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Queued
from turnout.service.operate.verbs import Cancel, Retry


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
            return service.process.dispatcher.holder("one", "x") is not None

        await eventually(holds_its_key)
        await service.process.operator.do(Retry(older))
        seen.open(3)
        await service.all_finished()
    assert seen.started == [0, 1, 0, 2]


async def test_a_cancelled_run_holds_no_key_after_its_queue_is_reread(tmp_path: Path) -> None:
    seen = Seen()
    async with running(tmp_path, [one_at_once(seen)]) as service:
        seen.gate(0).set()
        (done,) = await send(service, (0, "z"))
        await service.finished(done)
        await send(service, (1, "y"))
        (cancelled,) = await send(service, (2, "x"))

        async def has_its_key() -> bool:
            return service.process.dispatcher.holder("one", "x") is not None

        await eventually(has_its_key)
        await service.process.operator.do(Cancel(cancelled))
        await send(service, (3, "x"))
        await eventually(has_its_key)  # it takes the key again, since it is still in memory
        await service.process.operator.do(Retry(done))
        seen.open(4)
        await service.all_finished()
    assert seen.started == [0, 1, 0, 3]


async def test_keys_evicted_by_order_and_by_limit_lose_and_duplicate_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "WINDOW", 4)
    monkeypatch.setattr(scheduling, "WINDOW", 4)
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


async def test_a_run_that_is_due_before_its_attempt_has_ended_starts(tmp_path: Path) -> None:
    """Its outcome is on disk, and read as due, before its key is kept for it."""
    seen = Seen()
    async with running(tmp_path, [ordered_and_limited(seen)]) as service:
        await send(service, (0, "x", "A"))
        await seen.until(0)
        scheduler = inside.scheduler(service.process)
        again = Queued(
            seq=1, flow="both", order_key="x", limit_key="B", due_at=None, isolated=False
        )
        scheduler.add_due(again, scheduler.queue("both"))
        assert scheduler.choose() == [], "its attempt holds the key"
        scheduler.release("both", "x", "A", isolated=False, keep_order_for=1)
        assert scheduler.choose() == [again]
        scheduler.release("both", "x", "B", isolated=False)
        service.process.admission.retake("both", "A", isolated=False)
        seen.open(1)


async def test_a_key_is_held_for_a_run_that_ran_while_keys_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer read while it ran is stale when it arrives."""

    @flow(ordered_by=lambda event: "x", retry=retry(5, delay="50ms", factor=1000, jitter=False))
    async def fails(event: Event) -> None:
        raise OSError("not now")

    async with running(tmp_path, [fails]) as service:
        dispatcher = service.process.dispatcher
        (run_id,) = await send(service, 0)

        async def has_failed(times: int) -> bool:
            run = await service.run(run_id)
            held = dispatcher.holder("fails", "x") == run.seq
            return held and (run.state, run.attempts) == (RunState.RETRYING, times)

        await eventually(lambda: has_failed(1))
        honest = service.process.journal.held_keys
        answers = [await honest(), []]

        async def held_keys() -> list[tuple[str, str, int, bool]]:
            if len(answers) == 1:
                await eventually(lambda: has_failed(2))
            return answers.pop(0) if answers else await honest()

        monkeypatch.setattr(service.process.journal, "held_keys", held_keys)
        await dispatcher.hold_keys()
        assert await has_failed(2)


async def test_a_key_is_not_held_for_a_run_that_ended_while_keys_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow(ordered_by=lambda event: "x", retry=retry(1, delay="50ms", jitter=False))
    async def recovers(event: Event) -> None:
        if current().attempt == 1:
            raise OSError("not now")

    async with running(tmp_path, [recovers]) as service:
        (run_id,) = await send(service, 0)

        async def waits() -> bool:
            return (await service.run(run_id)).state is RunState.RETRYING

        await eventually(waits)
        honest = service.process.journal.held_keys

        async def held_keys() -> list[tuple[str, str, int, bool]]:
            answer = await honest()
            await service.all_finished()
            return answer

        monkeypatch.setattr(service.process.journal, "held_keys", held_keys)
        await service.process.dispatcher.hold_keys()
        assert service.process.dispatcher.holder("recovers", "x") is None

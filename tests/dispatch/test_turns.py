"""Retries and first tries take turns: neither starves, and no attempt starts before it is due."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import eventually, running
from turnout import Retry, current, flow, limit, retry, sleep
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter

pytestmark = pytest.mark.slow

RUNS = 300  # more than a window of the queue holds
DELAY = timedelta(milliseconds=50)
POLICY = retry(1000, delay=DELAY, factor=1, jitter=False)


class Tries:
    """Counts first and later tries; every run asks for a retry until `enough`."""

    def __init__(self) -> None:
        self.first = self.again = 0
        self.enough = False
        self.ended: dict[str, datetime] = {}
        self.early: list[timedelta] = []

    async def attempt(self) -> None:
        run = current().run
        before = self.ended.get(run.id)
        if self.enough:
            return
        if before is None:
            self.first += 1
        else:
            self.again += 1
            if utc_now() - before < DELAY:
                self.early.append(utc_now() - before)
        await asyncio.sleep(0.0005)
        self.enough = self.first == RUNS
        if not self.enough:
            self.ended[run.id] = utc_now()
            raise Retry(reason="not yet")


def by_flow(tries: Tries) -> Any:
    @flow(concurrency=limit(1), retry=POLICY)
    async def work(event: Event) -> None:
        await tries.attempt()

    return work


def by_key(tries: Tries) -> Any:
    @flow(concurrency=limit(1, per=lambda event: "all"), retry=POLICY)
    async def work(event: Event) -> None:
        await tries.attempt()

    return work


def by_key_in_order(tries: Tries) -> Any:
    @flow(
        concurrency=limit(1, per=lambda event: "all"),
        ordered_by=lambda event: event.data,
        retry=POLICY,
    )
    async def work(event: Event) -> None:
        await tries.attempt()

    return work


def by_slots(tries: Tries) -> Any:
    @flow(retry=POLICY)
    async def work(event: Event) -> None:
        await tries.attempt()

    return work


def by_slot_they_keep(tries: Tries) -> Any:
    @flow(
        concurrency=limit(1, per=lambda event: event.data, hold="run"),
        retry=POLICY,
    )
    async def work(event: Event) -> None:
        await tries.attempt()

    return work


def by_mode(tries: Tries) -> Any:
    @flow(mode="latest", key=lambda event: event.data, retry=POLICY)
    async def work(event: Event) -> None:
        await tries.attempt()

    return work


@pytest.mark.parametrize(
    "make", [by_flow, by_key, by_key_in_order, by_slots, by_slot_they_keep, by_mode]
)
async def test_neither_retries_nor_first_tries_starve(tmp_path: Path, make: Any) -> None:
    tries = Tries()
    async with running(tmp_path, [make(tries)], concurrency=1) as service:
        inside.memory(service.process).left = 0  # as with a large backlog
        for number in range(RUNS):
            await service.send(number)
        await service.all_finished()
    assert tries.first == RUNS
    assert RUNS * 0.5 < tries.again < RUNS * 1.2
    assert not tries.early


async def test_a_run_that_waited_goes_before_newer_ones(tmp_path: Path) -> None:
    late: list[timedelta] = []
    due: dict[int, datetime] = {}

    @flow(concurrency=1)
    async def nap(event: Event) -> None:
        if event.data not in due:
            late.extend(utc_now() - at for at in due.values() if at < utc_now())
            due[event.data] = utc_now() + timedelta(milliseconds=20)
        await sleep("20ms")
        due[event.data] = datetime.max.replace(tzinfo=UTC)
        await asyncio.sleep(0.001)

    async with running(tmp_path, [nap]) as service:
        for number in range(100):
            await service.send(number)
        await service.all_finished()
    assert len(due) == 100
    assert max(late, default=timedelta(0)) < timedelta(seconds=1), (
        "it was due, and newer ones began"
    )


async def test_a_retry_is_tried_though_new_events_never_end(tmp_path: Path) -> None:
    done = asyncio.Event()

    @flow(concurrency=1, retry=retry(3, delay="20ms", jitter=False))
    async def work(event: Event) -> None:
        await asyncio.sleep(0.002)
        if event.data == 0:
            if current().attempt < 3:
                raise ConnectionError
            done.set()

    async with running(tmp_path, [work]) as service:

        async def flood() -> None:
            number = 0
            while not done.is_set():
                number += 1
                await service.send(number)

        await service.send(0)
        async with asyncio.timeout(5):
            await flood()
        service.process.dispatcher.pause("work")

        async def idle() -> bool:
            return not service.process.dispatcher.running

        await eventually(idle)
        ended = await service.process.journal.runs(Filter(state=RunState.SUCCEEDED, limit=10_000))
        assert ended[-1].attempts == 3
        waiting = await service.process.journal.runs(Filter(state=RunState.QUEUED, limit=10_000))
        assert waiting, "the retry had its turn though newer events waited"


async def test_flows_take_turns_at_the_last_slot(tmp_path: Path) -> None:
    started: list[str] = []

    @flow
    async def first() -> None:
        started.append("first")
        await asyncio.sleep(0.001)

    @flow
    async def second() -> None:
        started.append("second")
        await asyncio.sleep(0.001)

    async with running(tmp_path, [first, second], concurrency=1) as service:
        for _ in range(30):
            await service.send()
        await service.all_finished()
    half = started[:30]
    assert min(half.count("first"), half.count("second")) >= 10, started

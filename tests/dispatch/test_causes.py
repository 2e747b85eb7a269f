"""The wait of each run is counted under what first kept it from starting."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit, throttle
from turnout.service.domain.event import Event
from turnout.service.operate.verbs import Pause, Resume


async def work(event: Event) -> None:
    await asyncio.sleep(0.01)


async def started_by_cause(service: Running, numbers: int) -> dict[str, int]:
    """Emit events and return how many runs have started since, by cause."""
    before = counted(service)
    for number in range(numbers):
        await service.emitter([make_event(number)])

    async def are_counted() -> bool:
        return sum((counted(service) - before).values()) == numbers

    await eventually(are_counted)
    return dict(counted(service) - before)


def counted(service: Running) -> Counter[str]:
    text = service.process.metrics.render().decode()
    found = re.findall(r'run_wait_seconds_count\{cause="(\w+)",flow="work"\} ([\d.]+)', text)
    return Counter({cause: int(float(count)) for cause, count in found})


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        ({}, {}, {"none": 3}),
        ({}, {"concurrency": 1}, {"none": 1, "slot": 2}),
        ({"concurrency": 1}, {}, {"none": 1, "limit": 2}),
        ({"concurrency": limit(1, per=lambda event: "a")}, {}, {"none": 1, "limit": 2}),
        ({"ordered_by": lambda event: "a"}, {}, {"none": 1, "order": 2}),
        ({"rate": throttle("1/200ms")}, {}, {"none": 1, "rate": 2}),
    ],
)
async def test_a_wait_has_its_cause(
    tmp_path: Path, options: dict[str, Any], settings: dict[str, Any], expected: dict[str, int]
) -> None:
    async with running(tmp_path, [flow(name="work", **options)(work)], **settings) as service:
        await started_by_cause(service, 1)  # from now on the queue is read
        if "rate" in options:
            await asyncio.sleep(0.2)
        assert await started_by_cause(service, 3) == expected


async def test_the_wait_of_a_paused_flow_is_for_its_resume(tmp_path: Path) -> None:
    async with running(tmp_path, [flow(name="work")(work)]) as service:
        await service.process.operator.do(Pause("work"))
        before = counted(service)
        for number in range(2):
            await service.emitter([make_event(number)])
        await service.process.operator.do(Resume("work"))
        await service.all_finished()

        async def are_counted() -> bool:
            return counted(service) - before == {"pause": 2}

        await eventually(are_counted)


async def test_what_waited_before_a_pause_has_its_own_cause(tmp_path: Path) -> None:
    """Neither a later pause of its flow nor the resume of another one changes it."""
    may_end = asyncio.Event()
    may_end.set()

    async def waiting(event: Event) -> None:
        await may_end.wait()

    flows = [flow(name="work", concurrency=1)(waiting), flow(name="other")(work)]
    async with running(tmp_path, flows) as service:
        await started_by_cause(service, 1)  # from now on the queue is read
        before = counted(service)
        may_end.clear()
        for number in range(2):
            await service.emitter([make_event(number)])
        await service.process.operator.do(Pause("work"))
        await service.emitter([make_event(2)])
        await service.process.operator.do(Resume("work"))
        await service.process.operator.do(Pause("other"))
        await service.process.operator.do(Resume("other"))
        may_end.set()
        await service.all_finished()

        async def are_counted() -> bool:
            return counted(service) - before == {"none": 1, "limit": 1, "pause": 1}

        await eventually(are_counted)


async def test_a_pause_that_a_start_finds_began_when_it_was_made(tmp_path: Path) -> None:
    async with running(tmp_path, [flow(name="work")(work)]) as service:
        await service.process.operator.do(Pause("work"))
        await service.emitter([make_event(0)])
    async with running(tmp_path, [flow(name="work")(work)]) as service:
        before = counted(service)
        await service.process.operator.do(Resume("work"))
        await service.all_finished()

        async def is_counted() -> bool:
            return counted(service) - before == {"pause": 1}

        await eventually(is_counted)

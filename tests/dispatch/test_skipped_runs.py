"""Runs that were skipped while they waited leave memory, and no claim is made for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import make_event, running
from turnout import flow, limit
from turnout.service.domain.event import Event

MANY = 100


@pytest.mark.parametrize(
    "options",
    [{}, {"concurrency": limit(1, per=lambda event: "a")}, {"ordered_by": lambda event: "a"}],
    ids=["alone", "at a limit", "in order"],
)
@pytest.mark.parametrize("slots", [1, 8])
async def test_of_many_outdated_runs_only_the_newest_is_in_memory_and_claimed(
    tmp_path: Path, options: dict[str, Any], slots: int
) -> None:
    may_end, started = asyncio.Event(), []

    @flow(mode="latest", **options)
    async def work(event: Event) -> None:
        started.append(event.data)
        await may_end.wait()

    async with running(tmp_path, [work], concurrency=slots) as service:
        claims = inside.count_claims(service.process)
        for number in range(MANY):
            await service.emitter([make_event(number)])
            await asyncio.sleep(0)
        (queue,) = inside.queues(service.process)
        assert len(list(queue.rows())) <= 2
        may_end.set()
        await service.all_finished()
        assert started[-1] == MANY - 1
        assert len(claims) <= 3, "one commit for each run that starts"

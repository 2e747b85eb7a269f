"""`first(…)` in branches, in loops, by itself, on the virtual clock and outside of runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import eventually, running
from turnout import (
    approval,
    first,
    flow,
    gather,
    sleep,
    wait_for,
)
from turnout.service.operate.verbs import Answer
from turnout.testing import serve
from turnout.testing.clock import START, Clock

from .waits import (
    cancelled,
    done,
    note,
    nothing_done,
    open_waits,
    paid,
    result,
    run_async,
    start,
    steps_of,
    tell,
    until_waiting,
)

__all__ = ["nothing_done"]  # the fixture


@flow(awaits=[paid, cancelled])
async def beside() -> list[int]:
    async def one(trigger: Any) -> int:
        return (await first(wait_for(trigger), sleep("1h"))).which

    return [*await gather(one(paid), one(cancelled))]


async def test_in_branches_each_awaits_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, [beside]) as service:
        run_id = await start(service, beside)
        await until_waiting(service, run_id)
        await tell(service, "order.paid", 1)
        await tell(service, "order.cancelled", 1)
        assert await result(service, run_id) == [0, 0]
        steps = await steps_of(service, run_id)
    assert steps["gather#1[1]/first#1"].state == "succeeded"
    assert steps["gather#1[1]/sleep#1"].state == "dropped"


@flow
async def reminders() -> int:
    for count in range(10):
        asked = approval("ops")
        await note(asked.link)
        if (await first(asked, sleep("1d"))).which == 0:
            return count
    return -1


async def test_a_question_is_asked_anew_in_a_loop(tmp_path: Path) -> None:
    clock = Clock(START)
    async with running(tmp_path, [reminders], now=clock.now) as service:
        run_id = await start(service, reminders)
        for day in range(1, 3):
            await until_waiting(service, run_id)
            clock.set(START + timedelta(days=day))
            service.process.dispatcher.recheck_due()
            await eventually(partial(has_asked, day + 1))
        await until_waiting(service, run_id)
        assert await open_waits(service, run_id) == ["approval#3"]
        await service.process.operator.do(Answer(run_id, approved=True))
        assert await result(service, run_id) == 2
    assert len(set(done)) == 3, "each question has a link of its own"


async def has_asked(count: int) -> bool:
    return len(done) == count


async def test_on_the_virtual_clock_the_times_pass_at_once() -> None:
    async with serve(reminders) as service:
        run = await service.run(reminders)
        await service.advance("30d")
        assert (await service.look(run.id)).result == -1
    assert len(done) == 10


@flow
async def alone() -> list[Any]:
    return [*await first(sleep("1d"))]


async def test_a_lone_wait_is_the_first() -> None:
    assert (await run_async(alone)).result == [0, None]


async def plainly(word: str) -> str:
    await asyncio.sleep(0.01)
    return word


async def test_outside_a_run_it_is_the_first_to_end() -> None:
    assert await first(sleep("1h"), plainly("x"), plainly("y")) == (1, "x")
    with pytest.raises(ValueError, match="no"):
        await first(fails(), sleep("1h"))


async def fails() -> None:
    raise ValueError("no")

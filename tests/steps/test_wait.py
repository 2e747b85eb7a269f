"""Runs that sleep: without a slot, over restarts, in branches, by the thousand."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import orjson

from tests.support.running import eventually, running
from turnout import (
    current,
    flow,
    gather,
    retry,
    sleep,
    task,
)
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.testing import run, serve
from turnout.testing.clock import START, Clock

from .waiting_runs import done, is_waiting, note, nothing_done

__all__ = ["nothing_done"]  # the fixture


# ---------------------------------------------------------------- time


@flow
async def nap() -> str:
    await note("before")
    await sleep("1h")
    await note("after")
    return "rested"


async def test_a_sleep_gives_the_slot_back_and_what_was_done_stays_done(tmp_path: Path) -> None:
    clock = Clock(START)
    async with running(tmp_path, [nap], now=clock.now, concurrency=1) as service:
        first, second = [(await service.send()).runs[0] for _ in range(2)]
        for run_id in (first, second):
            await is_waiting(service, run_id)
        clock.set(START + timedelta(hours=1))
        service.process.clock_set()
        runs = [await service.finished(run_id) for run_id in (first, second)]
    assert [orjson.loads(run.result or b"") for run in runs] == ["rested", "rested"]
    # One slot: the second begins while the first one sleeps.
    assert done == ["before", "before", "after", "after"]
    assert [run.attempts for run in runs] == [1, 1]


@task
async def naps_in_a_step() -> None:
    await sleep("1h")


@flow
async def naps_in_a_task() -> None:
    await naps_in_a_step()


def test_a_sleep_in_a_task_is_refused_and_names_its_line() -> None:
    error = run(naps_in_a_task).error
    assert error is not None and error.type == "MisplacedTask"
    assert re.search(
        r"sleep\('1h'\), called at .+test_wait\.py:\d+, is for the flow", error.message
    )


@flow
async def long_nap() -> str:
    await note("before")
    await sleep("400ms")
    return await note("after")


async def test_a_sleep_goes_on_over_a_restart_and_ends_when_it_would_have(tmp_path: Path) -> None:
    async with running(tmp_path, [long_nap]) as service:
        run_id = (await service.send()).runs[0]
        await is_waiting(service, run_id)
        due_at = (await service.run(run_id)).due_at
    async with running(tmp_path, [long_nap]) as service:
        assert (await service.run(run_id)).due_at == due_at
        run = await service.finished(run_id)
    assert due_at is not None and run.finished_at is not None
    assert due_at <= run.finished_at < due_at + timedelta(seconds=2)
    assert done == ["before", "after"]


@flow
async def catches_everything() -> str:
    try:
        await sleep("1h")
    except Exception:  # noqa: BLE001  what authors write
        done.append("caught")
    finally:
        done.append("finally")
        if current().key("x"):
            await note("step in finally")
    return "end"


def test_no_except_of_a_flow_catches_a_wait_and_no_step_runs_on_the_way_out() -> None:
    assert run(catches_everything).result == "end"
    assert done == ["finally", "finally", "step in finally"]


@flow
async def swallows() -> str:
    try:
        await sleep("1h")
    except BaseException:  # noqa: BLE001  the worst an author can write
        return "too early"
    return "in time"


def test_a_flow_that_swallows_the_suspension_waits_all_the_same() -> None:
    assert run(swallows).result == "in time"


async def _branch(word: str, pause: str) -> str:
    await note(f"{word} goes to bed")
    await sleep(pause)
    return await note(f"{word} gets up")


@flow
async def dormitory() -> tuple[str, ...]:
    return await gather(_branch("a", "2h"), _branch("b", "1h"), note("c"))


async def test_branches_wait_together_and_the_first_due_one_goes_on_first() -> None:
    async with serve(dormitory, concurrency=1) as service:
        slept = await service.run(dormitory)
        (stored,) = await service.journal.runs(Filter())
        steps = {step.key: step.state for step in await service.journal.steps(stored.seq)}
    assert slept.result == ["a gets up", "b gets up", "c"]
    assert slept.took == timedelta(hours=2)
    assert done == ["a goes to bed", "b goes to bed", "c", "b gets up", "a gets up"]
    assert set(steps.values()) == {"succeeded"}


@flow(retry=retry(1, delay="1ms"))
async def fails_after_rest() -> str:
    await sleep("1h")
    await note(f"try {current().attempt}")
    if current().attempt == 1:
        raise ConnectionError("no answer")
    return "good"


def test_a_wait_spends_no_attempt_and_is_not_waited_again() -> None:
    rested = run(fails_after_rest)
    assert rested.attempts == 2 and rested.took < timedelta(hours=2)
    assert done == ["try 1"], "the note of try 1 is a recorded step"


async def test_a_sleep_until_an_instant_is_over_when_the_run_comes_by_again(tmp_path: Path) -> None:
    @flow(name="until")
    async def until() -> None:
        await sleep(end - utc_now())

    end = utc_now() + timedelta(milliseconds=50)
    async with running(tmp_path, [until]) as service:
        run = await service.finished((await service.send()).runs[0])
        assert run.state is RunState.SUCCEEDED, run.error
        again = await service.finished((await service.send()).runs[0])
        assert again.state is RunState.SUCCEEDED, again.error


async def test_outside_a_run_sleep_is_plain() -> None:
    await sleep("1ms")


# ---------------------------------------------------------------- many


@flow
async def a_day() -> None:
    await sleep("1d")


async def test_all_asleep_for_a_day_wake_when_it_is_over(tmp_path: Path, full: bool) -> None:
    count = 10_000 if full else 300
    clock = Clock(START)
    async with running(tmp_path, [a_day], now=clock.now) as service:
        for _ in range(0, count, 100):
            await asyncio.gather(*(service.send() for _ in range(100)))

        async def asleep() -> bool:
            return service.process.journal.counts()[0].get("waiting", 0) == count

        await eventually(asleep)
        clock.set(START + timedelta(days=1))
        service.process.dispatcher.recheck_due()
        runs = await service.all_finished()
    assert len(runs) == count
    late = [run.finished_at - START - timedelta(days=1) for run in runs if run.finished_at]
    assert len(late) == count and max(late) <= timedelta(seconds=1)

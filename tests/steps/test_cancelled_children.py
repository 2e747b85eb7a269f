"""Cancels and failures go from parents to children and back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from tests.support.running import eventually, running
from turnout import Fail, current, flow, gather
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel, Retry

from .families import (
    done,
    note,
    nothing_done,
    patient,
    result,
    run_of,
    runs_of,
    slow,
    start,
    until_state,
)

__all__ = ["nothing_done"]  # the fixture


@flow
async def forever(data: str) -> None:
    await note(f"{data} runs")
    try:
        await asyncio.sleep(60)
    finally:
        done.append(f"{data} is told")


@flow
async def middle(data: str) -> None:
    await forever(data)


@flow
async def top() -> None:
    await gather(middle("one"), middle("two"))


async def test_a_cancel_reaches_children_and_their_children(tmp_path: Path) -> None:
    async with running(tmp_path, [top, middle, forever]) as service:
        start(service, top)
        run_id = (await service.send()).runs[0]

        async def both_run() -> bool:
            return len([word for word in done if word.endswith("runs")]) == 2

        await eventually(both_run)
        await service.process.operator.do(Cancel(run_id))
        runs = await service.all_finished()

        async def both_told() -> bool:
            return len([word for word in done if word.endswith("told")]) == 2

        await eventually(both_told)
    assert [run.state for run in runs] == [RunState.CANCELLED] * 5


@flow
async def one_fails() -> None:
    await gather(forever("other"), gives_up())


@flow
async def gives_up() -> None:
    raise Fail("no use")


async def test_no_child_outlives_a_parent_that_failed(tmp_path: Path) -> None:
    async with running(tmp_path, [one_fails, forever, gives_up]) as service:
        parent = await run_of(service, one_fails)
        await service.all_finished()
        (child,) = await runs_of(service, "forever")
    assert parent.state is RunState.FAILED and child.state is RunState.CANCELLED


async def test_a_cancelled_child_fails_its_parent(tmp_path: Path) -> None:
    async with running(tmp_path, [middle, forever]) as service:
        start(service, middle)
        run_id = (await service.send("x")).runs[0]
        await until_state(service, run_id, RunState.WAITING)
        (child,) = await runs_of(service, "forever")
        await service.process.operator.do(Cancel(child.id))
        parent = await service.finished(run_id)
    assert parent.error is not None and parent.error.type == "cancelled"


in_thread = threading.Event()
pause = threading.Event()


@flow
def counts() -> None:
    in_thread.set()
    while not current().cancelled:
        pause.wait(0.002)
    done.append("thread told")


async def test_a_thread_is_told_that_it_was_cancelled(tmp_path: Path) -> None:
    in_thread.clear()
    async with running(tmp_path, [counts]) as service:
        run_id = (await service.send()).runs[0]
        assert await asyncio.to_thread(in_thread.wait, 5)
        await service.process.operator.do(Cancel(run_id))

        async def told() -> bool:
            return done == ["thread told"]

        await eventually(told)
        assert (await service.run(run_id)).state is RunState.CANCELLED


async def test_a_retried_parent_calls_its_cancelled_child_anew(tmp_path: Path) -> None:
    async with running(tmp_path, [patient, slow]) as service:
        start(service, patient)
        run_id = (await service.send()).runs[0]
        await until_state(service, run_id, RunState.WAITING)
        await service.process.operator.do(Cancel(run_id))
        await service.process.operator.do(Retry(run_id))
        assert result(await service.finished(run_id)) == "child!"
        states = sorted(run.state for run in await runs_of(service, "slow"))
    assert states == [RunState.CANCELLED, RunState.SUCCEEDED]

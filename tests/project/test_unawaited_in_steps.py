"""A call that a step does not await fails the step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import running
from turnout import flow, task
from turnout.service.domain.flow import Flow

from .forgotten import done, end_of, endless, handed, in_a_task, nothing_done, work

__all__ = ["nothing_done"]  # the fixture

# Each of these is called below, as the flow of a run; mypy is right about all of them.
# mypy: disable-error-code="unused-coroutine"


@task(retry=3)
async def forgets_inside() -> str:
    work("inner")
    return "done"


@task
def forgets_inside_a_thread() -> str:
    work("inner")
    return "done"


@task
async def leaves_inside() -> str:
    in_a_task(endless("inner"))
    await asyncio.sleep(0.001)
    return "done"


@task(pool="process")
def forgets_inside_a_process() -> str:
    work("inner")
    return "done"


@flow
async def calls_forgets_in_a_process() -> str:
    return await forgets_inside_a_process.run()


@flow
async def calls_forgets() -> str:
    return await forgets_inside()


@flow
async def calls_forgets_in_a_thread() -> str:
    return await forgets_inside_a_thread.run()


@flow
def calls_from_a_thread() -> str:
    return forgets_inside_a_thread()


@flow
async def calls_leaves() -> str:
    return await leaves_inside()


@pytest.mark.parametrize(
    "calling",
    [
        calls_forgets,
        calls_forgets_in_a_thread,
        calls_forgets_in_a_process,
        calls_from_a_thread,
        calls_leaves,
    ],
)
async def test_a_task_that_does_not_await_fails_its_step(
    tmp_path: Path, calling: Flow[..., Any]
) -> None:
    async with running(tmp_path, [calling]) as service:
        run = await end_of(service, calling)
        (step,) = await service.process.journal.steps(run.seq)
        assert all(each.done() for each in handed)
    assert run.error is not None and run.error.type == "not_awaited"
    assert run.error.step == step.key and (step.state, step.tries) == ("failed", 1)
    assert "task 'work' at " in run.error.message or "task 'endless' at " in run.error.message
    assert "inner" not in done

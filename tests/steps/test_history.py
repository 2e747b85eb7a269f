"""`current().history()`: a run reads how the earlier runs of its flow ended."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.inside import emit_now
from turnout import Fail, Skip, current, flow, sleep, task
from turnout.testing import run, serve
from turnout.testing.events import hand_event

seen: list[list[Any]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@task
async def note(words: str) -> str:
    return words


@flow
async def learns(what: str) -> str:
    seen.append([(each.state, each.result or each.reason) for each in current().history()])
    await note(what)
    if what == "fail":
        raise Fail("it failed")
    if what == "skip":
        raise Skip("nothing to do")
    if what == "wait":
        await sleep("1h")
    return what


async def test_it_is_the_newest_first_and_the_same_in_a_resumed_run() -> None:
    async with serve(learns) as service:
        for what in ("one", "fail", "skip"):
            await service.run(learns, what)
        before = [("skipped", "nothing to do"), ("failed", None), ("succeeded", "one")]
        waiting = await begun(service, "wait")
        await service.run(learns, "two")
        await service.restart()
        await service.ended(waiting)
        result = await service.look(waiting)
    assert seen[0] == []
    assert seen[3] == before, "as the run began"
    assert seen[4] == before, "a run that waits has not ended"
    assert seen[-1] == before, "as it was before the wait, whatever has ended since"
    assert list(result.steps) == ["note#1", "sleep#1"], "it is no step"


async def begun(service: Any, what: str) -> str:
    """Start a run and leave it at its wait; returns its id."""
    (receipt,) = await emit_now(service, learns, hand_event(what, at=service.clock.now()))
    await service.advance("0s")
    return str(receipt.runs[0])


@flow
def plain(count: int) -> list[Any]:
    found = current().history(count)
    assert current().history(1) == found[:1]
    return [each.error and each.error.type for each in found]


async def test_a_def_flow_reads_it_too_as_many_as_it_asks_for() -> None:
    async with serve(plain) as service:
        results = [(await service.run(plain, 2)).result for _ in range(4)]
        assert results == [[], [None], [None, None], [None, None]]
        refused = await service.run(plain, 101)
        assert refused.error is not None
        assert refused.error.message == "current().history(101): write a number from 1 to 100"
        after = await service.run(plain, 2)
    assert after.result == ["ValueError", None]


@flow
async def large(size: int) -> Any:
    found = current().history(10)
    return {"x": "x" * size, "seen": [each.left_out for each in found]}


async def test_results_of_64_kib_together_are_given() -> None:
    async with serve(large) as service:
        for _ in range(4):
            last = await service.run(large, 30_000)
    assert last.result["seen"] == [False, False, True]


@task
async def reads_it() -> int:
    return len(current().history())


@flow
async def in_a_task() -> int:
    return await reads_it()


def test_a_task_is_refused_and_outside_a_run_there_is_none() -> None:
    error = run(in_a_task).error
    assert error is not None
    assert error.message.startswith("current().history(), called at ")
    assert error.message.endswith(
        "is for the flow itself: a recorded task is not run again; read it in the flow and pass it "
        "to the task"
    )
    assert current().history() == []

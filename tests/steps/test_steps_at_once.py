"""Steps of branches, and calls that no branch can place."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest

from tests.support.attempts import attempts
from turnout import flow, gather, task
from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.run import RunState

from .charges import (
    NOW_AND_THEN,
    _outcome,
    all_well,
    charge,
    done,
    fail_at,
    fragile,
    message,
    nothing_done,
    weigh,
)

__all__ = ["all_well", "nothing_done"]  # fixtures


# ---------------------------------------------------------------- branches


async def test_every_branch_finds_its_own_steps_again(tmp_path: Path) -> None:
    async def side(name: str, pause: int) -> str:
        for _ in range(pause):
            await asyncio.sleep(0)
        one = await charge(f"{name}1")
        two = await charge(f"{name}2")
        return one.id + two.id

    @flow(retry=NOW_AND_THEN)
    async def branches(pauses: dict[str, int]) -> list[str]:
        both = await gather(side("left", pauses["left"]), side("right", pauses["right"]))
        many = await fragile.map(["x", "y", "z"], limit=2)
        if "end" in fail_at:
            raise OSError
        return [*both, *many]

    fail_at.add("end")
    async with attempts(tmp_path) as run:
        assert (await run.first(branches, {"left": 9, "right": 0})).state is RunState.RETRYING
        before = sorted(done)
        fail_at.clear()
        outcome = await run.again(branches)
        assert outcome.result == b'["left1left2","right1right2","x","y","z"]'
        assert sorted(done) == before
        assert sorted(await run.steps()) == [
            "fragile.map#1[0]", "fragile.map#1[1]", "fragile.map#1[2]",
            "gather#1[0]/charge#1", "gather#1[0]/charge#2",
            "gather#1[1]/charge#1", "gather#1[1]/charge#2",
        ]  # fmt: skip


async def test_branches_that_fail_together_all_run_again(tmp_path: Path) -> None:
    @flow(retry=NOW_AND_THEN)
    async def both() -> list[str]:
        return list(await gather(fragile("a"), fragile("b")))

    fail_at.update(("a", "b"))
    async with attempts(tmp_path) as run:
        outcome = await run.first(both)
        assert outcome.error is not None and outcome.error.step == "fragile#1"
        fail_at.clear()
        assert (await run.again(both)).result == b'["a","b"]'


async def test_map_bounds_its_fan_out(tmp_path: Path) -> None:
    running, most = 0, 0

    @task
    async def counted(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    @flow
    async def wide() -> None:
        await counted.map(range(20), limit=3)

    async with attempts(tmp_path) as run:
        assert (await run.first(wide)).state is RunState.SUCCEEDED
    assert most == 3
    with pytest.raises(ValueError, match="at most 10,000"):
        await counted.map(range(10_001))


async def test_errors_asked_for_as_values_are_facts(tmp_path: Path) -> None:
    @flow(retry=NOW_AND_THEN)
    async def collects() -> list[str]:
        found = await gather(fragile("a"), fragile("b"), return_exceptions=True)
        if "end" in fail_at:
            raise OSError
        return [str(each) for each in found]

    fail_at.update(("a", "end"))
    async with attempts(tmp_path) as run:
        await run.first(collects)
        fail_at.clear()
        outcome = await run.again(collects)
        assert outcome.result == b"""["('no a', 7)","b"]"""


# ---------------------------------------------------------------- calls out of place


async def test_a_task_in_an_asyncio_task_of_its_own_names_gather(tmp_path: Path) -> None:
    @flow
    async def spawns() -> None:
        async def elsewhere() -> None:
            await charge("a")

        async with asyncio.TaskGroup() as tasks:
            await tasks.create_task(elsewhere())

    outcome = await _outcome(tmp_path, spawns)
    assert re.search(r"asyncio task or thread.*gather", message(outcome))
    assert done == []


async def test_asyncio_gather_of_calls_is_fine_because_places_are_taken_when_called(
    tmp_path: Path,
) -> None:
    @flow
    async def old_habit() -> int:
        return len(await asyncio.gather(charge("a"), charge("b")))

    assert (await _outcome(tmp_path, old_habit)).result == b"2"


async def test_a_task_in_a_thread_of_its_own_names_gather(tmp_path: Path) -> None:
    caught: list[str] = []

    def elsewhere() -> None:
        try:
            weigh("a")
        except MisplacedTask as error:
            caught.append(str(error))

    @flow
    def threads() -> None:
        own = threading.Thread(target=elsewhere)
        own.start()
        own.join()

    await _outcome(tmp_path, threads)
    assert "thread turnout did not open" in caught[0] and "gather" in caught[0]
    assert done == []


async def test_a_sync_task_on_the_loop_names_run(tmp_path: Path) -> None:
    @flow
    async def blocks() -> int:
        return weigh("a")

    assert "await weigh.run(…)" in message(await _outcome(tmp_path, blocks))


async def test_an_async_task_in_a_def_flow_names_async_def(tmp_path: Path) -> None:
    @flow
    def cannot_await() -> None:
        charge("a")  # type: ignore[unused-coroutine]  # what is under test

    assert "async def" in message(await _outcome(tmp_path, cannot_await))


async def test_inside_a_step_everything_is_one_piece(tmp_path: Path) -> None:
    @task
    async def outer() -> list[str]:
        return [each.id for each in await gather(charge("a"), charge("b"))]

    @flow
    async def nests() -> list[str]:
        return await outer()

    async with attempts(tmp_path) as run:
        assert (await run.first(nests)).result == b'["a","b"]'
        assert list(await run.steps()) == ["outer#1"]

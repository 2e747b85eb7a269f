"""A run that fails for good is undone in reverse, and its hook is told."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.attempts import NOW, attempts
from turnout import RunError, current, flow, gather, task
from turnout.service.domain.errors import Refused, SetupError
from turnout.service.domain.run import RunState

from .trips import (
    all_well,
    book,
    broken,
    done,
    error_of,
    give_back,
    in_a_thread,
    reach,
    short,
    tell,
    trip,
)

__all__ = ["all_well"]  # the fixture


async def no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


async def test_undone_in_reverse_and_told_once_when_it_fails_for_good(tmp_path: Path) -> None:
    broken.add("dinner")
    async with attempts(tmp_path, sleep=no_wait) as run:
        assert (await run.first(trip)).state is RunState.RETRYING
        assert done == ["flight", "hotel", "car", "dinner"]  # a retry undoes nothing
        outcome = await run.again(trip)
        assert outcome.state is RunState.FAILED
        assert outcome.error is not None and outcome.error.message == "no dinner"
        assert done[5:] == [
            "cancel car", "give back hotel fast", "cancel flight", "OSError in book#4 of e1",
        ]  # fmt: skip
        assert list(await run.steps())[-5:] == [
            "~failed", "~undo[2]/cancel#1", "~undo[1]/give_back#1", "~undo[0]/cancel#1",
            "~on_failure/tell#1",
        ]  # fmt: skip


async def test_a_run_that_ends_well_is_neither_undone_nor_told_of(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        assert (await run.first(trip)).state is RunState.SUCCEEDED
    assert done == ["flight", "hotel", "car", "dinner"]


async def test_what_cannot_be_undone_stops_nothing(tmp_path: Path) -> None:
    broken.update(("dinner", "cancel car", "give back hotel fast", "tell"))
    now = [NOW]
    async with attempts(tmp_path, now=lambda: now[0], sleep=no_wait) as run:
        await run.first(trip)
        outcome = await run.again(trip)
        while outcome.state is RunState.RETRYING:  # a step of the undo waits for its next try
            now[0] += timedelta(minutes=1)
            outcome = await run.again(trip)
        assert (outcome.state, outcome.error and outcome.error.message) == (
            RunState.FAILED, "no dinner",
        )  # fmt: skip
        steps = await run.steps()
        assert done.count("cancel car") == 2  # its own policy
        assert done.count("give back hotel fast") == 5  # the policy of plain functions
        assert done.count("cancel flight") == 1
        assert done.count("OSError in book#4 of e1") == 5
        assert steps["~undo[2]/cancel#1"].state == steps["~on_failure/tell#1"].state == "failed"
        assert steps["~undo[0]/cancel#1"].state == "succeeded"


async def test_a_crash_in_the_middle_goes_on_undoing(tmp_path: Path) -> None:
    broken.add("dinner")
    async with attempts(tmp_path) as run:
        await run.first(trip)
        await run.reclaim()
        await reach(run, trip, "give back hotel")
        broken.clear()  # the flow would end well now, but that it failed is a fact
        before = len(done)
        await run.crash()
        outcome = await run.execute(trip)
        assert outcome.error is not None and outcome.error.message == "no dinner"
        assert done[before:] == [
            "give back hotel fast", "cancel flight", "OSError in book#4 of e1",
        ]  # fmt: skip


async def test_an_undone_run_is_replayed_not_retried(tmp_path: Path) -> None:
    broken.add("dinner")
    async with attempts(tmp_path) as run:
        await run.first(trip)
        await run.again(trip)
        with pytest.raises(Refused, match=r"were undone.*turnout replay e1"):
            await run.journal.retry("run-of-e1", None, now=run.now())


async def test_a_retried_run_that_fails_again_is_told_of_again(tmp_path: Path) -> None:
    broken.add("table")
    async with attempts(tmp_path) as run:
        await run.first(short)
        await run.journal.retry("run-of-e1", None, now=run.now())
        await run.again(short)
        broken.clear()
        await run.journal.retry("run-of-e1", None, now=run.now())
        assert (await run.again(short)).state is RunState.SUCCEEDED
        assert done == ["table", "OSError in book#1 of e1"] * 2 + ["table"]


async def test_what_runs_again_after_a_retry_is_known_over_a_crash(tmp_path: Path) -> None:
    @flow(on_failure=tell)
    async def wide() -> None:
        await gather(book("a"), book("b"))

    broken.update("ab")
    async with attempts(tmp_path) as run:
        await run.new_run(wide)
        await reach(run, wide, "tell")
        await run.crash()
        error_of(await run.execute(wide))
        broken.clear()
        await run.journal.retry("run-of-e1", None, now=run.now())
        assert (await run.again(wide)).state is RunState.SUCCEEDED
        assert sorted(done) == ["OSError in book#1 of e1", "a", "a", "b", "b"]


async def test_a_def_flow_and_a_task_as_hook(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.first(in_a_thread)
        assert done == [
            "cancel boat",
            "hook of in_a_thread",
        ]


async def test_what_a_restart_could_not_find_is_refused_at_once(tmp_path: Path) -> None:
    async def local() -> None: ...

    @flow
    async def registers_local() -> None:
        current().on_undo(local)

    @task
    async def registers() -> None:
        current().on_undo(give_back, "x")

    @flow
    async def from_a_task() -> None:
        await registers()

    @flow
    async def passes_a_lock() -> None:
        current().on_undo(give_back, asyncio.get_running_loop())

    @flow
    async def passes_much() -> None:
        current().on_undo(give_back, "x" * 2000)

    @flow
    async def from_elsewhere() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(registering())

    async def registering() -> None:
        current().on_undo(give_back, "x")

    for event, (wrong, words) in enumerate(
        [(registers_local, "top of a file"), (from_a_task, "not for a task"),
         (passes_a_lock, "plain data or an id"), (passes_much, "larger than 1024 bytes"),
         (from_elsewhere, "no stable key")]
    ):  # fmt: skip
        async with attempts(tmp_path / str(event), max_result_bytes=1024) as run:
            outcome = await run.first(wrong)
            assert outcome.error is not None and words in outcome.error.message


def test_a_hook_nothing_could_fill_is_refused_at_its_flow() -> None:
    def needs(error: RunError, receipt: str) -> None: ...

    for hook in (needs, "tell"):
        refused = r"test_compensation.py:\d+: flow 'never': on_failure="
        with pytest.raises(SetupError, match=refused):

            @flow(on_failure=hook)  # type: ignore[arg-type]  # what is under test
            async def never() -> None: ...


def test_called_plainly_it_is_checked_and_forgotten() -> None:
    assert asyncio.run(trip()) == "dinner"

"""Undos and hooks of runs under which the process died."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support import inside
from tests.support.attempts import Attempts, attempts
from turnout import Fail, current, flow, gather, retry
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Claim, StepRecord

from .trips import all_well, book, broken, cancel, done, error_of, reach, short, trip

__all__ = ["all_well"]  # the fixture


async def die(run: Attempts, times: int) -> None:
    """Die under the claimed run, without anything of it coming to an end."""
    for _ in range(times):
        await run.crash()


async def test_a_run_the_process_kept_dying_under_is_undone_and_told_of(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.new_run(trip)
        await reach(run, trip, "dinner")  # behind the last registration
        await die(run, 5)
        before = len(done)
        assert error_of(await run.execute(trip)).type == "process_died"
        assert done[before:] == [
            "cancel car", "give back hotel fast", "cancel flight", "process_died in None of e1",
        ]  # fmt: skip
        assert "~failed" in await run.steps()


async def test_a_registration_is_kept_before_the_next_step_starts(tmp_path: Path) -> None:
    for place in ("hotel", "car"):
        done.clear()
        async with attempts(tmp_path / place) as run:
            await run.new_run(trip)
            await reach(run, trip, place)
            await die(run, 5)
            before = len(done)
            await run.execute(trip)
            assert done[before:-1] == (
                ["cancel flight"] if place == "hotel" else ["give back hotel fast", "cancel flight"]
            )


@pytest.mark.parametrize("thread", [False, True])
async def test_an_isolated_run_goes_on_when_its_registration_is_on_disk(
    tmp_path: Path, thread: bool
) -> None:
    def registers() -> int:
        current().on_undo(cancel, "boat")
        with closing(apsw.Connection(str(tmp_path / "data" / "journal" / "journal.db"))) as journal:
            return int(journal.execute("SELECT count(*) FROM steps WHERE key = 'on_undo#1'").get)

    @flow
    async def on_the_loop() -> int:
        return registers()

    @flow
    def in_a_thread() -> int:
        return registers()

    chosen: Any = in_a_thread if thread else on_the_loop
    async with attempts(tmp_path) as run:
        await run.new_run(chosen)
        await die(run, 2)
        busy = inside.occupy_writer(run.journal, lambda: time.sleep(0.2))
        assert (await run.execute(chosen)).result == b"1"
        assert busy.done()


async def test_an_undo_under_which_the_process_keeps_dying_stops_nothing(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.new_run(trip)
        await reach(run, trip, "dinner")
        await die(run, 5)
        await reach(run, trip, "give back hotel")
        await die(run, 4)
        await reach(run, trip, "give back hotel")  # a fifth chance, and the last
        await die(run, 1)
        before = len(done)
        assert error_of(await run.execute(trip)).message == (
            "the process died 5 times while this run ran"
        )
        assert done[before:] == ["cancel flight", "process_died in None of e1"]
        steps = await run.steps()
        error = steps["~undo[1]/give_back#1"].error
        assert error is not None and error.type == "process_died"
        assert steps["~undo[0]/cancel#1"].state == "succeeded"


async def test_a_hook_under_which_the_process_keeps_dying_is_given_up(tmp_path: Path) -> None:
    broken.add("table")
    async with attempts(tmp_path) as run:
        await run.new_run(short)
        await reach(run, short, "tell")
        await die(run, 4)
        await reach(run, short, "tell")
        await die(run, 1)
        before = len(done)
        error = error_of(await run.execute(short))
        assert (error.type, error.step) == ("process_died", "book#1")
        assert error.message.endswith(
            "at ~on_failure/tell of this run, which had failed: OSError: no table"
        )
        assert done[before:] == []
        broken.clear()
        await run.journal.retry("run-of-e1", None, now=run.now())
        assert (await run.again(short)).state is RunState.SUCCEEDED


async def test_each_step_of_an_ending_has_five_deaths_and_no_more(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.new_run(trip)
        await reach(run, trip, "dinner")
        await die(run, 5)
        where = {"cancel car": 3, "give back hotel": 5, "cancel flight": 5, "tell": 5}
        for place, deaths in where.items():  # the first is isolated from its beginning
            for _ in range(deaths):
                await reach(run, trip, place)
                await run.crash()
        before = len(done)
        assert error_of(await run.execute(trip)).type == "process_died"
        assert done[before:] == []
        compensation = [step for key, step in (await run.steps()).items() if key.startswith("~")]
        assert len(compensation) == 5
        assert all(step.error and step.error.type == "process_died" for step in compensation)


async def test_what_an_earlier_attempt_registered_stands_until_it_is_registered_anew(
    tmp_path: Path,
) -> None:
    calls: list[list[str]] = [["a", "b", "c"], []]

    @flow(retry=retry(1, delay="1ms"))
    async def registers() -> None:
        for what in calls[current().attempt - 1]:
            current().on_undo(cancel, what)
        raise OSError("no trip")

    for second, expected in (
        ([], ["c", "b", "a"]),  # it failed before it came by again
        (["a", "b", "c"], ["c", "b", "a"]),
        (["b", "c"], ["c", "b"]),  # the new code has two of them elsewhere, and one no more
        (["a", "b", "c", "d"], ["d", "c", "b", "a"]),
    ):
        calls[1] = second
        async with attempts(tmp_path / "-".join(["x", *second])) as run:
            done.clear()
            await run.first(registers)
            assert done == []
            await run.again(registers)
            assert done == [f"cancel {what}" for what in expected]


async def test_many_large_registrations_outlive_a_crash(tmp_path: Path) -> None:
    @flow
    async def registers() -> None:
        for what in "abc":
            current().on_undo(cancel, what * 700)
        raise Fail("no trip")

    async with attempts(tmp_path, max_result_bytes=1024) as run:
        await run.new_run(registers)
        await reach(run, registers, "cancel " + "b" * 700)
        assert (await run.steps())["~failed"].blob is not None
        await run.crash()
        assert error_of(await run.execute(registers)).message == "no trip"
        assert done == [f"cancel {what * 700}" for what in "cba"]


async def test_registrations_of_branches_and_of_a_full_disk_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.service.steps.recording.FULL_DISK_WAIT_SECONDS", 0.001)

    async def branch(what: str) -> None:
        current().on_undo(cancel, what)
        await book(what)

    @flow
    async def wide() -> None:
        await gather(branch("a"), branch("b"))
        await book("last")

    async with attempts(tmp_path) as run:
        record, refused = run.journal.record_step, set()

        def full_at_first(claim: Claim, step: StepRecord) -> asyncio.Future[None]:
            if step.task == "~on_undo" and step.key not in refused:
                refused.add(step.key)
                raise JournalFull("full")
            return record(claim, step)

        monkeypatch.setattr(run.journal, "record_step", full_at_first)
        await run.new_run(wide)
        await reach(run, wide, "last")
        await die(run, 5)
        before = len(done)
        await run.execute(wide)
        assert len(refused) == 2
        assert sorted(done[before:]) == ["cancel a", "cancel b"]

"""A run that failed for good is undone in reverse and told of once, whatever crashes meanwhile.

`tests/faults/test_process_death.py` has the same with real processes.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support import inside
from tests.support.attempts import NOW, Attempts, attempts
from turnout import Event, Fail, RunError, current, flow, gather, retry, task
from turnout.service.domain.errors import JournalFull, Refused, SetupError
from turnout.service.domain.run import Outcome, RunState
from turnout.service.journal.records import Claim, StepRecord

done: list[str] = []
broken: set[str] = set()
hanging: dict[str, asyncio.Event] = {}
"""What the functions really did; which of them fail; which one hangs, and that it was reached."""


@pytest.fixture(autouse=True)
def all_well() -> None:
    done.clear()
    broken.clear()
    hanging.clear()


async def no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


async def hang_if(what: str) -> None:
    if what in hanging:
        hanging[what].set()
        await asyncio.Event().wait()


def act(what: str) -> None:
    done.append(what)
    if what in broken:
        raise OSError(f"no {what}")


@task
async def book(what: str) -> str:
    await hang_if(what)
    act(what)
    return what


@task(retry=retry(1, delay="1ms"))
async def cancel(what: str) -> None:
    await hang_if(f"cancel {what}")
    act(f"cancel {what}")


async def give_back(what: str, *, fast: bool) -> None:
    await hang_if(f"give back {what}")
    act(f"give back {what}{' fast' * fast}")


async def tell(error: RunError, event: Event) -> None:
    await hang_if("tell")
    done.append(f"{error.type} in {error.step} of {event.id}")
    if "tell" in broken:
        raise OSError("no mail today")


@flow(retry=retry(1, delay="1ms"), on_failure=tell)
async def trip() -> str:
    current().on_undo(cancel, await book("flight"))
    current().on_undo(give_back, await book("hotel"), fast=True)
    current().on_undo(cancel, await book("car"))
    return await book("dinner")


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


async def reach(run: Attempts, flow: Any, where: str) -> None:
    """Execute until the function `where` is reached, and be killed there."""
    reached = hanging[where] = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        attempt = tasks.create_task(run.execute(flow))
        async with asyncio.timeout(5):
            await reached.wait()
        attempt.cancel()
    hanging.clear()


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


# ---------------------------------------------------------------- when the process dies


async def die(run: Attempts, times: int) -> None:
    """Die under the claimed run, without anything of it coming to an end."""
    for _ in range(times):
        await run.crash()


def error_of(outcome: Outcome) -> RunError:
    assert outcome.state is RunState.FAILED and outcome.error is not None
    return outcome.error


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


# ---------------------------------------------------------------- told again, refused


@flow(on_failure=tell)
async def short() -> None:
    await book("table")


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


@task
def hook() -> None:
    done.append(f"hook of {current().run.flow}")


@flow(on_failure=hook)
def in_a_thread() -> None:
    current().on_undo(cancel, "boat")
    raise Fail("no boat")


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

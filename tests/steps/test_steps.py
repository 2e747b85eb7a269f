"""Recorded steps: what runs again after a retry or a restart, and what cannot be kept."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import attempts
from turnout import current, flow, sleep, task
from turnout.service.domain.errors import JournalFull, StepFailed
from turnout.service.domain.run import RunState
from turnout.testing import run

from .charges import (
    NOW_AND_THEN,
    Receipt,
    Refused,
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


class Declined(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.lock = threading.Lock()  # which nothing keeps


class Untransferable(Exception):
    def __init__(self, left: str, right: str) -> None:
        self.both: Callable[[], str] = lambda: f"{left} {right}"

    def __str__(self) -> str:
        return self.both()


@task
def declines() -> None:
    raise Declined(7, reason="no money")


@task(pool="process")
def declines_elsewhere() -> None:
    raise Declined(7, reason="no money")


@flow(retry=NOW_AND_THEN)
async def two_then_fail() -> list[str]:
    first = await charge("a")
    second = await charge("b")
    assert isinstance(first, Receipt)
    await fragile("c")
    return [first.id, second.id]


async def test_a_retry_goes_on_after_the_last_recorded_step(tmp_path: Path) -> None:
    fail_at.add("c")
    async with attempts(tmp_path) as run:
        outcome = await run.first(two_then_fail)
        assert outcome.state is RunState.RETRYING
        assert outcome.error is not None
        assert outcome.error.step == "fragile#1"
        fail_at.clear()
        outcome = await run.again(two_then_fail)
        assert (outcome.state, outcome.result) == (RunState.SUCCEEDED, b'["a","b"]')
        assert done == ["a", "b", "c", "c"]
        assert list(await run.steps()) == ["charge#1", "charge#2", "fragile#1"]


async def test_a_restart_in_the_middle_runs_only_what_is_not_recorded(tmp_path: Path) -> None:
    gate = asyncio.Event()

    @flow
    async def waits() -> int:
        await charge("a")
        if not gate.is_set():
            await gate.wait()
        await charge("b")
        return 1

    async with attempts(tmp_path) as run:
        await run.new_run(waits)
        async with asyncio.TaskGroup() as tasks:
            attempt = tasks.create_task(run.execute(waits))
            await run.until_recorded("charge#1")
            attempt.cancel()
        gate.set()
        await run.crash()
        assert (await run.execute(waits)).state is RunState.SUCCEEDED
    assert done == ["a", "b"]


@flow(retry=NOW_AND_THEN)
async def catches() -> str:
    try:
        await fragile("a")
    except Refused as error:
        await charge(f"refund {error.code}")
    return await fragile("b")


async def test_an_error_the_flow_caught_is_raised_again_as_itself(tmp_path: Path) -> None:
    fail_at.update(("a", "b"))
    async with attempts(tmp_path) as run:
        assert (await run.first(catches)).state is RunState.RETRYING
        fail_at.clear()  # the task would succeed now, but its failure is a fact
        assert (await run.again(catches)).state is RunState.SUCCEEDED
    assert done == ["a", "refund 7", "b", "b"]


async def test_an_error_keeps_its_type_and_text_whatever_it_holds(tmp_path: Path) -> None:
    seen: list[str] = []

    @task
    async def breaks() -> None:
        raise Untransferable("left", "right")

    @flow(retry=NOW_AND_THEN)
    async def caught() -> None:
        try:
            await breaks()
        except (Untransferable, StepFailed) as error:
            seen.append(f"{type(error).__name__}: {error}")
        await fragile("b")

    fail_at.add("b")
    async with attempts(tmp_path) as run:
        await run.first(caught)
        fail_at.clear()
        await run.again(caught)
    assert seen == ["Untransferable: left right"] * 2


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_an_error_with_a_constructor_of_its_own_is_raised_again_as_itself(pool: str) -> None:
    @flow
    async def careful() -> list[Any]:
        try:
            await (declines.run() if pool == "thread" else declines_elsewhere.run())
        except Declined as error:
            await sleep("1h")
            return [str(error), error.code, repr(error.lock)[:9]]
        return []

    assert run(careful).result == ["7: no money", 7, "<unlocked"]


async def test_a_wrapped_step_error_still_runs_its_step_again(tmp_path: Path) -> None:
    @flow(retry=NOW_AND_THEN)
    async def wraps() -> str:
        try:
            return await fragile("a")
        except Refused as error:
            raise RuntimeError("could not") from error

    fail_at.add("a")
    async with attempts(tmp_path) as run:
        outcome = await run.first(wraps)
        assert outcome.error is not None
        assert (outcome.error.type, outcome.error.step) == ("RuntimeError", "fragile#1")
        fail_at.clear()
        assert (await run.again(wraps)).state is RunState.SUCCEEDED


# ---------------------------------------------------------------- sync flows


@flow(retry=NOW_AND_THEN)
def in_a_thread() -> list[int]:
    first = weigh("a")
    several = weigh.map(["bb", "ccc", "dddd"], limit=2)
    if "thread" in fail_at:
        raise OSError("not yet")
    return [first, *several]


async def test_a_def_flow_records_its_steps_too(tmp_path: Path) -> None:
    fail_at.add("thread")
    async with attempts(tmp_path, threads=1) as run:  # one thread: steps need none of the flows'
        assert (await run.first(in_a_thread)).state is RunState.RETRYING
        fail_at.clear()
        assert (await run.again(in_a_thread)).result == b"[1,2,3,4]"
        assert sorted(done) == ["a", "bb", "ccc", "dddd"]
        assert next(iter(await run.steps())) == "weigh#1"
        assert {"weigh.map#1[0]", "weigh.map#1[2]"} <= set(await run.steps())


async def test_a_timed_out_thread_holds_its_call_until_it_returns(tmp_path: Path) -> None:
    release, started = threading.Event(), threading.Event()

    @flow(timeout="20ms")
    def stuck() -> None:
        started.set()
        release.wait(5)
        weigh("never: the attempt is over")

    async with attempts(tmp_path) as run:
        await run.new_run(stuck)
        async with asyncio.TaskGroup() as tasks:
            attempt = tasks.create_task(run.execute(stuck))
            await asyncio.to_thread(started.wait, 5)
            await asyncio.wait([attempt], timeout=0.1)
            assert not attempt.done()
            release.set()
        assert message(attempt.result()) == "flow 'stuck' did not end within its timeout of 0.02s"
    assert done == []


async def test_a_task_in_a_def_flow_is_told_when_its_time_is_over(tmp_path: Path) -> None:
    @task(timeout="20ms", fallback=lambda error: str(error))
    def polls() -> str:
        while not current().cancelled:
            time.sleep(0.001)
        return "late"

    @flow
    def patient() -> list[Any]:
        return [polls(), current().cancelled]

    async with attempts(tmp_path) as run:
        result = (await run.first(patient)).result
    assert result == b"""["task 'polls' did not end within its timeout of 0.02s",false]"""


async def test_a_sync_task_from_an_async_flow_runs_off_the_loop(tmp_path: Path) -> None:
    @task
    def where() -> str:
        return threading.current_thread().name

    @flow
    async def asks() -> str:
        return await where.run()

    async with attempts(tmp_path) as run:
        assert (await run.first(asks)).result == b'"turnout-step_0"'


# ---------------------------------------------------------------- what cannot be kept


async def test_a_result_that_cannot_be_kept_stops_the_flow_before_its_next_step(
    tmp_path: Path,
) -> None:
    @task(retry=NOW_AND_THEN)
    async def returns_a_lock() -> Any:
        done.append("lock")
        return threading.Lock()

    @flow(retry=NOW_AND_THEN)
    async def keeps() -> None:
        await returns_a_lock()
        await charge("b")

    outcome = await _outcome(tmp_path, keeps)
    assert (outcome.state, done) == (RunState.FAILED, ["lock"])
    assert message(outcome).startswith("step 'returns_a_lock#1' of flow 'keeps': the result, lock")


async def test_code_that_changed_under_a_recorded_step_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(two_then_fail), "code_version", "of the file as it was")
    async with attempts(tmp_path) as run:
        fail_at.add("c")
        await run.first(two_then_fail)

        @flow(name="two_then_fail")
        async def changed() -> None:
            await weigh.run("new")
            await charge("a")

        vars(changed)["code_version"] = "of the file as it is now"
        outcome = await run.again(changed)
    assert outcome.error is not None and outcome.error.type == "code_changed"
    assert re.search(r"runs step 'weigh#1' where step '\w+#\d' is recorded", message(outcome))
    assert "new" not in done


async def test_a_full_disk_holds_the_step_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.service.steps.recording.FULL_DISK_WAIT_SECONDS", 0.001)

    @flow
    async def pays() -> None:
        await charge("a")

    async with attempts(tmp_path) as run:
        record, refusals = run.journal.record_step, [JournalFull("full"), JournalFull("full")]

        async def sometimes_full(*args: Any) -> None:
            if refusals:
                raise refusals.pop()
            await record(*args)

        monkeypatch.setattr(run.journal, "record_step", sometimes_full)
        assert (await run.first(pays)).state is RunState.SUCCEEDED
        assert "charge#1" in await run.steps()
    assert done == ["a"]


async def test_step_seconds_are_measured(tmp_path: Path) -> None:
    @flow
    async def pays() -> None:
        await charge("a")

    async with attempts(tmp_path) as run:
        await run.first(pays)
        assert 'turnout_step_seconds_count{flow="pays",task="charge"} 1.0' in (
            run.metrics.render().decode()
        )


async def test_keys_are_stable_over_retries_and_differ_by_place(tmp_path: Path) -> None:
    keys: list[str] = []

    @task
    async def sends() -> None:
        keys.append(current().key("mail"))
        if len(keys) < 3:
            raise OSError("again")

    @flow(retry=NOW_AND_THEN)
    async def mails() -> None:
        keys.append(current().key("mail"))
        await sends()

    async with attempts(tmp_path) as run:
        await run.first(mails)
        await run.again(mails)
    in_flow, in_step = keys[::2], keys[1::2]
    assert len(set(in_flow)) == len(set(in_step)) == 1
    assert in_flow[0] != in_step[0]

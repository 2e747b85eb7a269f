"""What an author declares about failure: which errors are retried, when, and what comes instead."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import attempts
from turnout import Fail, Retry, flow, retry, sleep, task
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now

done: list[str] = []


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


class Busy(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


# ---------------------------------------------------------------- how long


@task(retry=retry(1))
async def far() -> None:
    raise Retry(after="9999999w")


@flow(retry=retry(1, delay="0s"))
async def retries_far() -> None:
    raise Retry(after="450000w")


@flow(retry=retry(1, delay="0s"))
def retries_far_in_a_thread() -> None:
    raise Retry(after=timedelta.max)


@flow
async def has_a_far_step() -> None:
    await far()


@flow
async def sleeps_far() -> None:
    await sleep(timedelta.max)


@pytest.mark.parametrize(
    "declared", [retries_far, retries_far_in_a_thread, has_a_far_step, sleeps_far]
)
async def test_a_wait_no_clock_can_tell_fails_the_run_by_name(
    tmp_path: Path, declared: Any
) -> None:
    async with attempts(tmp_path) as run:
        error = (await run.first(declared)).error
        assert error is not None and error.type == "SetupError"
        assert "is too long: a hundred years are the most" in error.message


async def test_the_longest_delays_are_kept(tmp_path: Path) -> None:
    @flow(retry=retry(90, delay="36525d", factor=1000, jitter=False))
    async def rare() -> None:
        raise ValueError("the real error")

    async with attempts(tmp_path) as run:
        outcome = await run.first(rare)
        assert outcome.state is RunState.RETRYING and outcome.due_at is not None
        assert outcome.error is not None and outcome.error.message == "the real error"


# ---------------------------------------------------------------- which errors


async def test_a_task_retries_only_the_errors_it_names(tmp_path: Path) -> None:
    errors: list[Exception] = [OSError("one"), ValueError("two")]

    @task(retry=retry(5, delay="1ms", on=(OSError,)))
    async def reads() -> None:
        done.append("read")
        raise errors.pop(0)

    @flow
    async def one() -> None:
        await reads()

    async with attempts(tmp_path) as run:
        outcome = await run.first(one)
        assert outcome.error is not None and outcome.error.type == "ValueError"
        assert done == ["read"] * 2
        retried = run.metrics.steps.labels("one", "reads", "retried")
        failed = run.metrics.steps.labels("one", "reads", "failed")
        assert [each.value for each in (retried, failed)] == [1, 1]


async def test_a_flow_retries_only_the_errors_it_names(tmp_path: Path) -> None:
    @flow(retry=retry(5, not_on=(ValueError,)))
    async def bad() -> None:
        raise UnicodeError("not text")

    async with attempts(tmp_path) as run:
        assert (await run.first(bad)).state is RunState.FAILED


async def test_a_flow_waits_as_long_as_the_server_asked(tmp_path: Path) -> None:
    @flow(retry=retry(1, delay="1ms"))
    async def asks() -> None:
        raise Busy(3600)

    async with attempts(tmp_path) as run:
        outcome = await run.first(asks)
        assert outcome.due_at is not None
        assert (outcome.due_at - run.now()).total_seconds() > 3590


async def test_a_task_waits_as_long_as_the_server_asked(tmp_path: Path) -> None:
    clock, waits = [utc_now()], []
    errors: list[Exception] = [Busy(90), OSError()]

    @task(retry=retry(2, delay="5s", jitter=False))
    async def asks() -> str:
        if errors:
            raise errors.pop(0)
        return "well"

    @flow
    async def one() -> str:
        return await asks()

    async with attempts(tmp_path, now=lambda: clock[0]) as run:
        outcome = await run.first(one)
        while outcome.due_at is not None:
            waits.append((outcome.due_at - clock[0]).total_seconds())
            clock[0] = outcome.due_at
            outcome = await run.again(one)
        assert outcome.result == b'"well"'
    assert waits == pytest.approx([90, 10], abs=0.5)


# ---------------------------------------------------------------- a fallback


def _priced(fallback: Any) -> Any:
    @task(retry=retry(1, delay="1ms"), fallback=fallback)
    async def price() -> float:
        done.append("price")
        raise OSError("down")

    @flow(retry=retry(1, delay="1ms"))
    async def priced() -> float:
        found = await price()
        if len(done) == 2:
            done.append("again")
            raise RuntimeError("after the step")
        return found

    return priced


@pytest.mark.parametrize("fallback", [1.5, lambda error: 1.5 if str(error) == "down" else 0])
async def test_a_fallback_is_the_recorded_result_and_says_so(tmp_path: Path, fallback: Any) -> None:
    priced = _priced(fallback)
    async with attempts(tmp_path) as run:
        assert (await run.first(priced)).state is RunState.RETRYING
        assert (await run.again(priced)).result == b"1.5"
        assert done == ["price", "price", "again"]
        step = (await run.steps())["price#1"]
        assert (step.state, step.tries, step.result) == ("succeeded", 2, b"1.5")
        assert step.error is not None and step.error.message == "down"


async def test_a_fallback_of_none_is_a_value_too(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.first(_priced(None))
        outcome = await run.again(_priced(None))
        assert (outcome.state, outcome.result) == (RunState.SUCCEEDED, None)


async def test_a_fallback_that_raises_fails_the_step(tmp_path: Path) -> None:
    def give_up(error: Exception) -> float:
        raise LookupError("no old price either")

    async with attempts(tmp_path) as run:
        outcome = await run.first(_priced(give_up))
        assert outcome.error is not None
        assert (outcome.error.type, outcome.error.step) == ("LookupError", "price#1")
        assert "OSError: down" in (outcome.error.traceback or "")


async def test_fail_has_no_fallback(tmp_path: Path) -> None:
    @task(fallback=1)
    async def refuses() -> int:
        raise Fail("no such customer")

    @flow
    async def one() -> int:
        return await refuses()

    async with attempts(tmp_path) as run:
        assert (await run.first(one)).state is RunState.FAILED


async def test_a_def_flow_falls_back_too(tmp_path: Path) -> None:
    @task(fallback=lambda error: f"old, for {error}")
    def reads() -> str:
        raise OSError("down")

    @flow
    def one() -> str:
        return reads()

    async with attempts(tmp_path) as run:
        assert (await run.first(one)).result == b'"old, for down"'


# ---------------------------------------------------------------- clean up


async def test_cleaning_up_is_a_step_that_runs_once(tmp_path: Path) -> None:
    @task
    async def clean() -> None:
        done.append("clean")

    @task
    async def works() -> None:
        done.append("work")
        if len(done) < 4:
            raise OSError

    @flow(retry=retry(5, delay="1ms"))
    async def tidy() -> None:
        try:
            await works()
        finally:
            await clean()

    async with attempts(tmp_path) as run:
        await run.first(tidy)
        await run.again(tidy)
        assert (await run.again(tidy)).state is RunState.SUCCEEDED
    assert done.count("clean") == 1


async def test_a_timeout_cancels_async_work_at_its_await(tmp_path: Path) -> None:
    @task(timeout="10ms")
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("ended")

    @flow
    async def one() -> None:
        await slow()

    async with attempts(tmp_path) as run:
        outcome = await run.first(one)
        assert outcome.error is not None and outcome.error.type == "TimeoutError"
    assert done == ["ended"]

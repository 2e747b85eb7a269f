"""A task's own retries and its timeout, inside one attempt of the run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import NOW, attempts
from turnout import Fail, Retry, flow, retry, task
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import RunState

from .charges import NOW_AND_THEN, all_well, done, message, nothing_done

__all__ = ["all_well", "nothing_done"]  # fixtures


def _flaky(policy: RetryPolicy, errors: list[BaseException]) -> tuple[Any, Any]:
    @task(retry=policy)
    async def flaky() -> str:
        done.append("try")
        if errors:
            raise errors.pop(0)
        return "well"

    @flow(name="flaky_flow")
    async def flaky_flow() -> str:
        return await flaky()

    return flaky, flaky_flow


async def test_a_task_retries_inside_its_attempt_and_journals_the_try(tmp_path: Path) -> None:
    _, flaky_flow = _flaky(NOW_AND_THEN, [OSError("one"), OSError("two")])
    async with attempts(tmp_path) as run:
        outcome = await run.first(flaky_flow)
        assert outcome.result == b'"well"'
        step = (await run.steps())["flaky#1"]
        assert (step.state, step.tries, done) == ("succeeded", 3, ["try"] * 3)


async def test_fail_is_never_retried_by_the_task(tmp_path: Path) -> None:
    _, flaky_flow = _flaky(NOW_AND_THEN, [Fail("no such customer")])
    async with attempts(tmp_path) as run:
        outcome = await run.first(flaky_flow)
        assert (outcome.state, done) == (RunState.FAILED, ["try"])
        assert message(outcome) == "no such customer"


async def test_retry_after_overrides_the_delay(tmp_path: Path) -> None:
    _, flaky_flow = _flaky(retry(1, delay="1h", jitter=False), [Retry(after="1ms")])
    async with attempts(tmp_path) as run:
        async with asyncio.timeout(5):
            assert (await run.first(flaky_flow)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_a_crash_between_tries_spends_none_and_goes_on_waiting(
    tmp_path: Path, kind: str
) -> None:
    errors: list[BaseException] = [OSError("one")]
    _, flaky_flow = _flaky(retry(1, delay="1h", jitter=False), errors)
    flow_of_kind = flaky_flow if kind == "async" else _flaky_in_thread()
    now = [NOW]

    async with attempts(tmp_path, now=lambda: now[0]) as run:
        first = await run.first(flow_of_kind)
        assert (first.state, first.due_at) == (RunState.RETRYING, NOW + timedelta(hours=1))
        assert (await run.steps())["flaky#1"].state == "retrying"
        await run.reclaim()
        await run.crash()
        now[0] += timedelta(minutes=20)
        early = await run.execute(flow_of_kind)
        assert (early.state, early.due_at) == (RunState.RETRYING, NOW + timedelta(hours=1))
        now[0] += timedelta(minutes=40)
        assert (await run.again(flow_of_kind)).state is RunState.SUCCEEDED
        assert (await run.steps())["flaky#1"].tries == 2


def _flaky_in_thread() -> Any:
    tries: list[int] = []

    @task(name="flaky", retry=retry(1, delay="1h", jitter=False))
    def flaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("one")

    @flow
    def flaky_flow() -> None:
        flaky()

    return flaky_flow


async def test_a_timeout_names_the_task(tmp_path: Path) -> None:
    @task(timeout="10ms")
    async def slow() -> None:
        await asyncio.Event().wait()

    @flow
    async def hurried() -> None:
        await slow()

    async with attempts(tmp_path) as run:
        outcome = await run.first(hurried)
        assert message(outcome) == "task 'slow' did not end within its timeout of 0.01s"
        assert outcome.error is not None and outcome.error.type == "TimeoutError"

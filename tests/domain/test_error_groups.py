"""Errors raised together, as by a task group, mean what each of them means alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import running
from turnout import Fail, Retry, RunError, Skip, current, flow, retry, task
from turnout.service.domain.error_groups import deciding
from turnout.service.domain.errors import InvalidData, NotKept
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.retry import delay_after
from turnout.service.domain.run import Run, RunState

NOW = datetime(2025, 3, 1, tzinfo=UTC)


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("together", errors)


FAIL, SKIP, RETRY = Fail("for good"), Skip("nothing"), Retry("later", after="9s")
OTHER, RESET = ValueError("no"), ConnectionResetError("reset")


@pytest.mark.parametrize(
    ("errors", "decides"),
    [
        ((SKIP, RETRY, OTHER, FAIL), FAIL),
        ((OTHER, InvalidData("bad"), SKIP), InvalidData),
        ((OTHER, NotKept("lost")), NotKept),
        ((SKIP, RETRY, OTHER), None),
        ((SKIP, RETRY), RETRY),
        ((Retry(), RETRY, Retry(after="1s")), RETRY),
        ((SKIP,), SKIP),
        ((OTHER,), None),
    ],
)
@pytest.mark.parametrize("depth", [1, 3])
def test_fail_beats_other_errors_and_those_retry_and_that_skip(
    errors: tuple[BaseException, ...], decides: Any, depth: int
) -> None:
    made = group(*errors)
    for _ in range(depth - 1):
        made = group(made)
    found = deciding(made)
    if decides is None:
        assert found is made
    else:
        assert found is decides or isinstance(found, decides if isinstance(decides, type) else ())


@pytest.mark.parametrize(
    ("errors", "options", "retried"),
    [
        ((RESET, RESET), {"on": OSError}, True),
        ((RESET, group(RESET)), {"on": (OSError, KeyError)}, True),
        ((RESET, OTHER), {"on": OSError}, False),
        ((RESET, RETRY), {"on": OSError}, True),
        ((RESET, SKIP), {"on": OSError}, True),
        ((RETRY,), {"on": KeyError}, True),
        ((RESET, OTHER), {"not_on": ValueError}, False),
        ((RESET, RESET), {"not_on": ValueError}, True),
        ((RESET, OTHER), {"on": ExceptionGroup}, True),
        ((RESET, OTHER), {}, True),
    ],
)
def test_a_group_is_retried_if_each_of_its_errors_is(
    errors: tuple[BaseException, ...], options: dict[str, Any], retried: bool
) -> None:
    policy = retry(1, delay="1s", jitter=False, **options)
    delay = delay_after(policy, 1, group(*errors), now=NOW)
    assert (delay is not None) is retried
    if RETRY in errors and len(errors) == 1:
        assert delay == timedelta(seconds=9)


class Asked(Exception):
    retry_after = 30


def test_the_longest_wait_that_a_server_of_the_group_asked_for_is_kept() -> None:
    policy = retry(1, delay="1s", jitter=False)
    assert delay_after(policy, 1, group(RESET, group(Asked())), now=NOW) == timedelta(seconds=30)


effects: list[str] = []


async def raises(error: BaseException) -> None:
    effects.append(current().run.flow)
    raise error


async def together(*errors: BaseException) -> None:
    async with asyncio.TaskGroup() as tasks:
        for error in errors:
            tasks.create_task(raises(error))


@task(retry=retry(2, delay="1ms"))
async def step(word: str) -> None:
    await together({"fail": FAIL, "skip": SKIP}[word])


@task(retry=retry(2, delay="1ms"), fallback="stands in")
def step_in_thread() -> str:
    effects.append("thread")
    raise ExceptionGroup("together", [Fail("for good")])


@task(pool="process", retry=retry(2, delay="1ms"))
def step_in_process() -> None:
    raise ExceptionGroup("together", [Skip("nothing"), ExceptionGroup("in", [Skip("more")])])


TWICE = retry(2, delay="1ms")


@flow
async def many() -> None:
    raise ExceptionGroup("together", [SKIP, ExceptionGroup("in", [RETRY, OTHER])])


def nested_deeply() -> BaseException:
    error: Exception = OTHER
    for _ in range(5000):
        error = ExceptionGroup("in", [error])
    return error


@flow
async def deep() -> None:
    raise nested_deeply()


async def test_the_error_that_decides_is_told_however_deep_it_is(tmp_path: Path) -> None:
    async with running(tmp_path, [many, deep]) as service:
        ended = [await service.finished(run_id) for run_id in (await service.send()).runs]
    for run in ended:
        assert run.error is not None
        assert run.error.type == "ExceptionGroup"
        assert run.error.message.endswith(": ValueError: no")


@flow(retry=TWICE)
async def fails() -> None:
    await together(FAIL, OTHER)


@flow(retry=TWICE)
async def skips() -> None:
    await together(SKIP)


@flow(retry=TWICE)
async def retries() -> None:
    await together(*([Retry(after="1ms"), SKIP] if current().attempt == 1 else []))


@flow(retry=retry(2, delay="1ms", on=OSError))
async def resets() -> None:
    await together(*([RESET] if current().attempt == 1 else []))


@flow(retry=TWICE)
def threaded() -> None:
    effects.append("threaded")
    raise ExceptionGroup("together", [Fail("for good")])


@flow(retry=TWICE)
async def fails_in_step() -> None:
    await step("fail")


@flow(retry=TWICE)
async def skips_in_step() -> None:
    await step("skip")


@flow(retry=TWICE)
async def no_fallback() -> None:
    await step_in_thread.run()


@flow(retry=TWICE)
async def skips_in_process() -> None:
    await step_in_process.run()


async def tell(error: RunError) -> None:
    effects.append("hook")
    await together(FAIL)


@flow(on_failure=tell)
async def hooked() -> None:
    raise FAIL


FLOWS: list[Flow[..., Any]] = [
    fails, skips, retries, resets, threaded, fails_in_step, skips_in_step, no_fallback,
    skips_in_process, hooked,
]  # fmt: skip


@pytest.mark.slow
async def test_in_flows_steps_threads_processes_and_hooks(tmp_path: Path) -> None:
    effects.clear()
    ended: dict[str, Run] = {}
    async with running(tmp_path, FLOWS) as service:
        for run_id in (await service.send()).runs:
            run = await service.finished(run_id)
            ended[run.flow] = run
    states = {name: run.state for name, run in ended.items()}
    assert states == {
        "fails": RunState.FAILED, "skips": RunState.SKIPPED, "retries": RunState.SUCCEEDED,
        "resets": RunState.SUCCEEDED, "threaded": RunState.FAILED,
        "fails_in_step": RunState.FAILED, "skips_in_step": RunState.SKIPPED,
        "no_fallback": RunState.FAILED, "skips_in_process": RunState.SKIPPED,
        "hooked": RunState.FAILED,
    }  # fmt: skip
    for name in ("fails", "threaded", "fails_in_step", "no_fallback"):
        run = ended[name]
        assert run.error is not None
        assert (run.error.type, run.error.message, run.attempts) == ("failed", "for good", 1)
        assert "ExceptionGroup" in (run.error.traceback or "")
    assert (ended["skips"].reason, ended["skips_in_process"].reason) == ("nothing", "nothing")
    assert effects.count("fails") == 2  # each of its two errors once
    for name in ("threaded", "fails_in_step", "skips_in_step", "thread", "hook"):
        assert effects.count(name) == 1, name


async def test_a_lost_claim_in_the_body_of_a_task_group_is_no_failure(tmp_path: Path) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def work() -> None:
        began.set()
        await go_on.wait()

    @flow
    async def wraps(event: Event) -> None:
        async with asyncio.TaskGroup():
            await work()

    async with running(tmp_path, [wraps]) as service:
        receipt = await service.send()
        await began.wait()
        run = await service.process.journal.cancel(receipt.runs[0], now=NOW)
        go_on.set()
        again = await service.send()
        assert (await service.finished(again.runs[0])).state is RunState.SUCCEEDED
        found = await service.run(receipt.runs[0])
    assert run
    assert found.state is RunState.CANCELLED

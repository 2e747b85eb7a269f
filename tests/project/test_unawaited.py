"""A call that is not awaited fails its run by name and line."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import running
from turnout import approval, emit, flow, gather, retry, sleep, task
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState

from .forgotten import done, end_of, endless, handed, in_a_task, nothing_done, work

__all__ = ["nothing_done"]  # the fixture


@task
def sync_work(what: Any) -> str:
    done.append(str(what))
    return str(what)


@task
async def broken() -> None:
    raise ValueError("no")


@flow
async def child(what: str) -> str:
    return what


@flow
def sync_child(what: str) -> str:
    return what


# Each of these is called below, as the flow of a run; mypy is right about all of them.
# mypy: disable-error-code="unused-coroutine, unused-awaitable, arg-type"
@flow
async def forgets_a_task() -> str:
    work(1)
    return "done"


@flow
async def forgets_emit() -> str:
    emit("a.b", {})
    return await work(2)


@flow
async def forgets_a_child() -> None:
    child("x")


@flow
async def forgets_run() -> None:
    sync_work.run(1)


@flow
async def forgets_sync_child() -> None:
    sync_child.run("x")


@flow
async def forgets_sleep() -> None:
    sleep("1h")


@flow
async def forgets_approval() -> None:
    approval("ops")


@flow
async def forgets_map() -> None:
    work.map([1, 2])


@flow
async def forgets_child_map() -> None:
    child.map(["a"])


@flow
async def forgets_gather() -> None:
    gather(work(1), work(1))


@flow
async def forgets_one_of_two() -> None:
    _kept = work(1)
    await work(2)


@flow
async def returns_the_call() -> Any:
    return work(1)


@flow
def forgets_in_a_thread() -> None:
    sync_work.run(1)


FORGETFUL = [
    forgets_a_task,
    forgets_emit,
    forgets_a_child,
    forgets_run,
    forgets_sync_child,
    forgets_sleep,
    forgets_approval,
    forgets_map,
    forgets_child_map,
    forgets_gather,
    forgets_one_of_two,
    returns_the_call,
    forgets_in_a_thread,
]


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("forgetful", FORGETFUL, ids=lambda each: each.name)
async def test_a_call_that_is_not_awaited_fails_the_run_by_name_and_line(
    tmp_path: Path, forgetful: Flow[..., Any]
) -> None:
    body = inspect.getsource(forgetful.function).partition(":\n")[2]
    statement = body.strip().splitlines()[0]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with running(tmp_path, [forgetful, child, sync_child]) as service:
            run = await end_of(service, forgetful)
    assert run.state is RunState.FAILED and run.error is not None
    assert run.error.type == "not_awaited"
    assert f"test_unawaited.py:{line_of(forgetful.function, statement)}" in run.error.message
    assert f"flow {forgetful.name!r} called what it did not await" in run.error.message
    assert "1" not in done
    assert not [each for each in warned if "never awaited" in str(each.message)]


@flow(retry=retry(3, delay="1ms"))
async def gives_the_call() -> str:
    return await work(work(1))


@flow
async def gives_a_child_the_call() -> str:
    return await child(what=work(1))


@flow
async def emits_the_call() -> str:
    return await emit("a.b", work(1))


@pytest.mark.parametrize("given", [gives_the_call, gives_a_child_the_call, emits_the_call])
async def test_a_call_given_where_its_result_is_meant_is_refused(
    tmp_path: Path, given: Flow[..., Any]
) -> None:
    async with running(tmp_path, [given, child]) as service:
        run = await end_of(service, given)
    assert run.error is not None and run.error.type == "not_awaited"
    assert "is given task 'work' at " in run.error.message
    assert "not its result" in run.error.message
    assert run.attempts == 1 and done == []


@flow
def calls_an_async_task() -> Any:
    return work(1)


@flow
def sleeps_in_a_thread() -> Any:
    return sleep("1h")


@flow
async def calls_a_sync_task() -> str:
    return sync_work(1)


@flow
async def calls_a_sync_flow() -> str:
    return sync_child("x")


@pytest.mark.parametrize(
    ("misplaced", "fix"),
    [
        (calls_an_async_task, "`async def`"),
        (sleeps_in_a_thread, "`async def`"),
        (calls_a_sync_task, "`await sync_work.run"),
        (calls_a_sync_flow, "`await sync_child.run"),
    ],
)
async def test_a_call_that_cannot_be_awaited_there_is_refused_by_name_and_line(
    tmp_path: Path, misplaced: Flow[..., Any], fix: str
) -> None:
    async with running(tmp_path, [misplaced, sync_child]) as service:
        run = await end_of(service, misplaced)
    assert run.error is not None and run.error.type == "MisplacedTask"
    place = f"test_unawaited.py:{line_of(misplaced.function, 'return')}"
    assert f"called at {Path(__file__).parent}/{place}" in run.error.message
    assert fix in run.error.message and done == []


# ---------------------------------------------------------------- left behind


@flow
async def leaves_one_running() -> str:
    in_a_task(endless("left"))
    await asyncio.sleep(0.001)
    return "done"


@flow
async def leaves_one_at_once() -> str:
    in_a_task(endless("left"))
    return "done"


@flow
async def leaves_one_of_two() -> str:
    tasks = [in_a_task(work("first")), in_a_task(_after_an_hour(endless("left")))]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return "done"


async def _after_an_hour(call: Any) -> Any:
    await asyncio.sleep(3600)
    return await call


@pytest.mark.parametrize("leaving", [leaves_one_running, leaves_one_at_once])
async def test_a_step_left_in_an_asyncio_task_fails_the_run_and_is_ended(
    tmp_path: Path, leaving: Flow[..., Any]
) -> None:
    async with running(tmp_path, [leaving]) as service:
        run = await end_of(service, leaving)
        assert all(each.done() for each in handed)
    assert run.error is not None and run.error.type == "not_awaited"
    assert "left in an asyncio task: task 'endless' at " in run.error.message
    assert done in ([], ["left was ended"])


async def test_a_step_whose_turn_never_came_fails_the_run(tmp_path: Path) -> None:
    async with running(tmp_path, [leaves_one_of_two]) as service:
        run = await end_of(service, leaves_one_of_two)
    assert run.error is not None and run.error.type == "not_awaited"
    assert "task 'endless' at " in run.error.message
    assert done == ["first"]
    handed[1].cancel()


@flow
async def raises_meanwhile() -> None:
    in_a_task(endless("left"))
    await asyncio.sleep(0.001)
    raise ValueError("the flow's own")


async def test_a_step_left_by_a_flow_that_raises_is_ended_too(tmp_path: Path) -> None:
    async with running(tmp_path, [raises_meanwhile]) as service:
        run = await end_of(service, raises_meanwhile)
        assert all(each.done() for each in handed)
    assert run.error is not None and run.error.type == "ValueError"


# ---------------------------------------------------------------- what is no mistake


@flow
async def awaits_late() -> list[str]:
    running_one, later = in_a_task(work("a")), work("b")
    both = await asyncio.gather(work("c"), work("d"))
    async with asyncio.TaskGroup() as group:
        group.create_task(work("e"))
    with suppress(ValueError):
        await gather(broken(), endless("one"), approval("never"))
    with suppress(TimeoutError):
        await asyncio.wait_for(work("never"), 0)
    called_off = in_a_task(endless("another"))
    await asyncio.sleep(0)
    called_off.cancel()
    return [await running_one, await later, *both]


@flow
async def rests_meanwhile() -> str:
    meanwhile, later = in_a_task(work("a")), work("b")
    await asyncio.sleep(0.001)
    await sleep("50ms")
    return await meanwhile + await later


async def test_what_is_awaited_in_the_end_or_ended_is_no_mistake(tmp_path: Path) -> None:
    async with running(tmp_path, [awaits_late, rests_meanwhile]) as service:
        late = await end_of(service, awaits_late)
        rested = await end_of(service, rests_meanwhile)
    assert late.state is rested.state is RunState.SUCCEEDED, (late.error, rested.error)
    assert orjson.loads(late.result or b"") == ["a", "b", "c", "d"]
    assert "never" not in done
    assert orjson.loads(rested.result or b"") == "ab"
    assert done.count("a") == 2  # once in each run: the flow that rested let it end


@flow
async def many() -> int:
    for number in range(300):
        await work.function("x") if number % 3 else await sync_work.run(number)
    work("forgotten")
    return 1


@pytest.mark.slow
async def test_one_forgotten_among_many_is_found(tmp_path: Path) -> None:
    async with running(tmp_path, [many]) as service:
        run = await end_of(service, many)
    assert run.error is not None and "task 'work'" in run.error.message

"""`budget`: so many changes within a time, over all flows that say the name."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from turnout import BudgetSpent, Fail, budget, flow, gather, retry, sleep, task
from turnout.service.app.reload import reload_project
from turnout.service.operate.limits import use_documents
from turnout.service.operate.verbs import Retry
from turnout.service.project import Project
from turnout.testing import run, serve
from turnout.testing.clock import START

scaling = budget("scale", max_changes=3, per="1h")
done: list[str] = []
broken: list[str] = []


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    broken.clear()


@task
async def scale(name: str) -> str:
    done.append(name)
    if broken:
        raise OSError(broken.pop())
    return name


@flow(retry=retry(2, delay="1m", jitter=False))
async def scales(name: str) -> str:
    await scaling.take()
    return await scale(name)


@flow
async def also_scales(amount: int) -> str:
    await budget("scale", max_changes=3, per="1h").take(amount)
    return "scaled"


async def test_flows_share_it_and_the_one_over_it_fails_by_name() -> None:
    async with serve(scales, also_scales) as service:
        assert (await service.run(scales, "a")).state == "succeeded"
        await service.advance("20m")
        assert (await service.run(also_scales, 2)).state == "succeeded"
        refused = await service.run(scales, "b")
        [shown] = [
            each
            for each in await use_documents(service.journal, [], service.clock.now())
            if each["kind"] == "budget"
        ]
        assert refused.error is not None
        assert (refused.state, refused.attempts) == ("failed", 1), "it is not tried again"
        assert (refused.error.type, refused.error.message, refused.error.step) == (
            "BudgetSpent",
            "budget 'scale' is spent: 3 of 3; free at 2026-01-01T01:00:00Z",
            "budget#1",
        )
        assert (shown["name"], shown["used"], shown["max"]) == ("scale", 3, 3)
        assert shown["rule"] == 'budget("scale", max_changes=3, per="1h")'
        assert shown["next_free"] == "2026-01-01T01:00:00Z"
        await service.advance("40m")
        assert (await service.run(scales, "c")).state == "succeeded", "an hour after the first"
        assert (await service.run(also_scales, 1)).state == "failed", "two are still used"
        await service.advance("20m")
        assert (await service.run(also_scales, 2)).state == "succeeded"
    assert done == ["a", "c"]


async def test_neither_retries_nor_crashes_take_twice_and_nothing_is_given_back() -> None:
    async with serve(scales) as service:
        broken.append("no route")
        first = await service.run(scales, "a", crash_at=2)
        assert (first.state, done) == ("succeeded", ["a", "a"])
        assert await used(service) == 1
        await service.process.operator.do(Retry(first.id, from_step="budget#1"))
        await service.ended(first.id)
        assert await used(service) == 2


async def used(service: Any) -> int:
    return sum(each.used for each in await service.journal.budgets(now=service.clock.now()))


def test_a_death_before_the_step_is_recorded_takes_once() -> None:
    assert run(also_scales, 3, crash_at=1).state == "succeeded"


@flow
async def waits_for_it() -> list[Any]:
    taken: list[Any] = []
    for _ in range(2):
        try:
            await budget("mails", max_changes=2, per="1d").take(2)
            taken.append("taken")
        except BudgetSpent as spent:
            taken += [spent.name, spent.used, spent.max_changes, str(spent.free_at - START)]
            await sleep("1d")
            await budget("mails", max_changes=2, per="1d").take(2)
    return taken


def test_a_flow_may_catch_it_and_knows_when_enough_is_free() -> None:
    assert run(waits_for_it).result == ["taken", "mails", 2, 2, "1 day, 0:00:00"]


@flow
async def at_once() -> int:
    took = await gather(*[scaling.take(1) for _ in range(5)], return_exceptions=True)
    return sum(each is None for each in took)


async def test_of_many_at_once_no_more_than_there_are_take() -> None:
    async with serve(at_once) as service:
        result = await service.run(at_once)
        assert (result.result, await used(service)) == (3, 3)
        await service.advance("30d")
        assert await used(service) == 0, "and it is pruned"


async def test_a_spent_budget_is_one_failed_try_in_the_metrics() -> None:
    async with serve(also_scales) as service:
        await service.run(also_scales, 3)
        await service.run(also_scales, 1)
        lines = service.process.metrics.render().decode().splitlines()
        told = [each for each in lines if each.startswith("turnout_steps_total")]
        of_budget = 'flow="also_scales",outcome="{}",task="budget"'
        assert sorted(told) == [
            "turnout_steps_total{" + of_budget.format(outcome) + "} 1.0"
            for outcome in ("failed", "succeeded")
        ]


@flow
async def over_a_day() -> None:
    await budget("scale", max_changes=3, per="1d").take()


async def test_two_periods_of_one_name_are_refused_where_the_second_takes() -> None:
    async with serve(also_scales, over_a_day) as service:
        assert (await service.run(also_scales, 1)).state == "succeeded"
        error = (await service.run(over_a_day)).error
        assert error is not None and error.type == "SetupError"
        assert re.fullmatch(
            r"budget\('scale'\) has per='1d' at \S+test_budget.py:\d+, and per='1h' at "
            r"\S+test_budget.py:\d+: what is counted together has one period; write the same one, "
            r"or another name",
            error.message,
        )
        assert await used(service) == 1, "nothing is taken"
        await reload_project(service.process, Project.of([over_a_day]))
        assert (await service.run(over_a_day)).state == "succeeded", "the files are loaded anew"


@task
async def takes_in_a_task() -> None:
    await scaling.take()


@flow
async def in_a_task() -> None:
    await takes_in_a_task()


@flow
def plain() -> None:
    _ = scaling.take()


@flow
async def asks(what: str) -> None:
    bad: dict[str, Callable[[], Any]] = {
        "amount": lambda: scaling.take(4),
        "name": lambda: budget("", max_changes=1, per="1h"),
        "count": lambda: budget("x", max_changes=0, per="1h"),
        "per": lambda: budget("x", max_changes=1, per="0s"),
    }
    bad[what]()


@pytest.mark.parametrize(("what", "words"), [
    ("amount", "budget('scale', max_changes=3).take(4): write a number from 1 to 3"),
    ("name", "budget(''): a name is printable text"),
    ("count", "budget('x', max_changes=0): write 1 or more"),
    ("per", "budget('x', per='0s'): write how long, such as per=\"1h\""),
])  # fmt: skip
def test_what_is_no_budget_is_refused_by_name(what: str, words: str) -> None:
    error = run(asks, what).error
    assert error is not None
    assert error.message == words


def test_it_is_for_async_flows_outside_their_tasks() -> None:
    in_task, in_def = run(in_a_task).error, run(plain).error
    assert in_task is not None and in_def is not None
    assert re.fullmatch(
        r"budget\('scale', …\)\.take\(\), called at \S+, is for the flow itself: take before the "
        r"call of the task",
        in_task.message,
    )
    assert "is awaited; write the flow with `async def`" in in_def.message


async def test_outside_a_run_it_takes_nothing() -> None:
    for _ in range(5):
        await scaling.take()
    assert issubclass(BudgetSpent, Fail)
    assert timedelta(hours=1) == scaling.per

"""`Retry(items=…)` and `Fail(items=…)`: some items again, or as dead letters; the others done."""

from __future__ import annotations

from typing import Any

import pytest

from turnout import (
    Event,
    Fail,
    Retry,
    batch,
    current,
    debounce,
    flow,
    retry,
    sleep,
    task,
    webhook,
)
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.service.operate import verbs
from turnout.service.operate.verbs import ReplayDead
from turnout.service.operate.why import why
from turnout.testing import serve, webhook_event
from turnout.testing.service import Service

HOOK = webhook("/reading", verify="none")

calls: list[list[int]] = []
stored: list[int] = []
keys: list[str] = []
broken: dict[int, int] = {}
"""How often the store of each number is still to fail."""


@pytest.fixture(autouse=True)
def all_well() -> None:
    for each in (calls, stored, keys):
        each.clear()
    broken.clear()


@task
async def store(number: int) -> bool:
    keys.append(current().key())
    if broken.get(number, 0):
        broken[number] -= 1
        return False
    stored.append(number)
    return True


@flow(on=batch(HOOK, 4, "10s"), retry=retry(3, delay="1s"))
async def load(readings: list[int]) -> int:
    calls.append(readings)
    failed = [index for index, each in enumerate(readings) if not await store(each)]
    if failed:
        raise Retry("not stored", items=failed, after="1m")
    return len(readings)


@flow(on=batch(HOOK, 4, "10s"), retry=retry(1, delay="1s"))
async def give_up(readings: list[int]) -> None:
    calls.append(readings)
    failed = [index for index, each in enumerate(readings) if not await store(each)]
    if failed:
        raise Fail("cannot be stored", items=failed)


async def send(service: Service, *numbers: int) -> list[Event]:
    made = [webhook_event(HOOK, number, at=service.clock.now()) for number in numbers]
    for each in made:
        await service.emit(each)
    return made


async def the_run(service: Service, state: RunState | None = None) -> Any:
    (run,) = await service.journal.runs(Filter(state=state))
    return run


async def test_the_next_attempt_gets_only_the_items_that_are_asked_for_again() -> None:
    broken.update({1: 1, 3: 2})
    async with serve(load) as service:
        await send(service, 0, 1, 2, 3)
        run = await the_run(service)
        assert (run.finished_at - run.queued_at).total_seconds() == 120
        steps = [step.key for step in await service.journal.steps(run.seq)]
    assert calls == [[0, 1, 2, 3], [1, 3], [3]]
    assert stored == [0, 2, 1, 3], "what is complete is not done again"
    assert (run.state, run.attempts, run.events) == (RunState.SUCCEEDED, 3, 4)
    assert steps == [
        "store#1", "store#2", "store#3", "store#4", "@items#1",
        "items#1/store#1", "items#1/store#2", "@items#2", "items#2/store#1",
    ]  # fmt: skip
    assert len(set(keys)) == 7, "each round has keys of its own"


@pytest.mark.parametrize(
    ("crash_at", "later"),
    [(2, [[3]]), (5, [[1, 3], [3]]), (6, [[1, 3]]), (7, [[1, 3], [3]])],
    ids=["first round", "second round", "its last item", "third round"],
)
async def test_a_kill_in_a_round_changes_nothing(crash_at: int, later: list[list[int]]) -> None:
    """A try that the kill cut off has used up one failure of its item, and is not recorded."""
    broken.update({1: 1, 3: 2})
    async with serve(load) as service:
        await send(service, 0, 1, 2)
        last = webhook_event(HOOK, 3, at=service.clock.now())
        await service.emit(last, crash_at=crash_at)  # fails if the process did not die
        run = await the_run(service)
    assert run.state is RunState.SUCCEEDED
    assert sorted(set(stored)) == [0, 1, 2, 3]
    rounds = [each for number, each in enumerate(calls) if each not in calls[:number]]
    assert rounds == [[0, 1, 2, 3], *later]


async def test_a_restart_keeps_what_is_left() -> None:
    broken[2] = 1
    async with serve(load) as service:
        await send(service, 0, 1, 2, 3)
        await service.restart()
        await service.advance("5m")
        assert (await the_run(service)).state is RunState.SUCCEEDED
    assert calls == [[0, 1, 2, 3], [2]]


async def test_when_the_policy_is_spent_the_run_is_a_dead_letter_of_what_is_left() -> None:
    broken[2] = 5
    async with serve(load) as service:
        await send(service, 0, 1, 2, 3)
        await service.advance("1h")
        run = await the_run(service)
        assert (run.state, run.dead, run.attempts) == (RunState.FAILED, True, 4)
        assert run.error.message == "not stored"
        await service.process.operator.do(verbs.Retry(run.id))
        await service.advance("1h")
        run = await the_run(service)
    assert calls == [[0, 1, 2, 3], [2], [2], [2], [2], [2]]
    assert run.state is RunState.SUCCEEDED and stored == [0, 1, 3, 2]


async def test_items_that_have_failed_are_dead_letters_and_the_others_are_complete() -> None:
    broken.update({0: 1, 2: 1})
    async with serve(give_up) as service:
        events = await send(service, 0, 1, 2, 3)
        whole = await the_run(service, RunState.SUCCEEDED)
        assert whole.reason == "2 of 4 items failed: cannot be stored"
        dead = await service.journal.runs(Filter(dead=True))
        assert sorted(run.event_id for run in dead) == sorted([events[0].id, events[2].id])
        assert {run.error.message for run in dead if run.error} == {"cannot be stored"}
        assert service.journal.counts()[1] == {"give_up": 2}
        (document,) = await why(service.journal, events[2].id)
        assert sorted(run["state"] for run in document["runs"]) == ["failed", "succeeded"]
        for run in dead:
            await service.process.operator.do(ReplayDead(run.id))
        await service.advance("1m")
        assert service.journal.counts()[1] == {}
    assert calls[0] == [0, 1, 2, 3] and sorted(calls[1:]) == [[0], [2]]
    assert sorted(stored) == [0, 1, 2, 3]


async def test_when_all_have_failed_the_run_has() -> None:
    broken.update(dict.fromkeys(range(4), 9))
    async with serve(give_up) as service:
        await send(service, 0, 1, 2, 3)
        run = await the_run(service)
    assert (run.state, run.dead, run.events) == (RunState.FAILED, True, 4)


async def test_a_run_that_waits_in_a_later_round_goes_on_there() -> None:
    broken[1] = 1

    @flow(name="rests", on=batch(HOOK, 2, "10s"), retry=3)
    async def rests(readings: list[int]) -> int:
        calls.append(readings)
        failed = [index for index, each in enumerate(readings) if not await store(each)]
        await sleep("1h")
        if failed:
            raise Retry(items=failed)
        return len(readings)

    async with serve(rests) as service:
        await send(service, 0, 1)
        await service.advance("3h")
        run = await the_run(service)
    assert run.state is RunState.SUCCEEDED
    assert calls == [[0, 1], [0, 1], [1], [1]]
    assert stored == [0, 1]


undone: list[int] = []


async def forget(number: int) -> None:
    undone.append(number)


@task(undo=forget)
async def keep(number: int) -> None:
    stored.append(number)


async def test_what_is_complete_is_not_undone_when_the_rest_fails() -> None:
    undone.clear()

    @flow(name="undoes", on=batch(HOOK, 3, "10s"), retry=1)
    async def undoes(readings: list[int]) -> None:
        for each in readings:
            await keep(each)
        raise Retry(items=[len(readings) - 1])

    async with serve(undoes) as service:
        await send(service, 0, 1, 2)
        await service.advance("1h")
        run = await the_run(service)
    assert run.state is RunState.FAILED and run.undo == "done"
    assert stored == [0, 1, 2, 2] and undone == [2]


# ---------------------------------------------------------------- mistakes


async def failing(how: Any, error: Exception) -> Any:
    """Return how a run fails whose flow raises an error."""

    @flow(name="wrong", on=how, retry=3)
    async def wrong(readings: list[int]) -> None:
        raise error

    @flow(name="wrong", on=how, retry=3)
    async def wrong_one(reading: int) -> None:
        raise error

    takes = wrong if isinstance(how, type(batch(HOOK, 2, "1s"))) else wrong_one
    async with serve(takes) as service:
        await send(service, 0, 1)
        await service.advance("1h")
        run = (await service.journal.runs(Filter()))[0]
    assert run.error is not None and run.error.type == "invalid_items" and run.attempts == 1
    return run.error.message


async def test_items_that_there_are_not_are_refused_by_name() -> None:
    assert await failing(batch(HOOK, 2, "1s"), Retry(items=[0, 2])) == (
        "Retry(items=[0, 2]): the run has no such items: it was called with 2, and indexes count "
        "from 0"
    )
    nobody = "it is not called with a list; a window calls a flow with one that takes list[…]"
    assert await failing(HOOK, Fail("x", items=[0])) == (
        f"Fail(items=[0]): the run has no such items: {nobody}"
    )
    assert nobody in await failing(debounce(HOOK, "1s"), Retry(items=[0]))


@pytest.mark.parametrize("wrong", [[], [-1], ["0"], 0, "01", [True], {"a": 1}])
def test_indexes_that_are_none_are_refused_where_they_are_written(wrong: Any) -> None:
    for made in (Retry, Fail):
        with pytest.raises(TypeError, match=r"write indexes in the list, such as items=\[0, 3\]"):
            made("x", items=wrong)

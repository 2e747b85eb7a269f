"""`first(…)`: which of several waits comes, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import eventually, running
from turnout import (
    approval,
    current,
    first,
    flow,
    sleep,
    task,
    unique,
    wait_for,
)
from turnout.service.domain.errors import Refused
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.operate.verbs import Answer, Pause, Resume
from turnout.service.operate.waits import waits_of
from turnout.testing.clock import START, Clock

from .waits import (
    cancelled,
    done,
    note,
    nothing_done,
    open_waits,
    order,
    paid,
    proceed,
    result,
    run_async,
    start,
    steps_of,
    tell,
    until_waiting,
)

__all__ = ["nothing_done"]  # the fixture


@task
async def hesitate() -> None:
    async with asyncio.timeout(30):
        await proceed[0].wait()


async def test_the_wait_that_comes_says_which_it_is_and_the_others_are_dropped(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [order]) as service:
        run_id = await start(service, order, {"id": 7, "rest": "1h"})
        await until_waiting(service, run_id)
        assert await open_waits(service, run_id) == ["wait_for#1", "wait_for#2"]
        await tell(service, "order.cancelled", 8, why="of another order")
        await tell(service, "order.cancelled", 7, why="too late")
        await eventually(lambda: has_noted("cancelled"))
        await until_waiting(service, run_id)
        assert await open_waits(service, run_id) == []
        before = await service.run(run_id)
        await tell(service, "order.paid", 7, amount=3)
        await service.process.journal.record_action(1, None)  # a write after it: it is applied
        assert await service.run(run_id) == before, "an event for a dropped wait wakes nothing"
        steps = await steps_of(service, run_id)
    assert {key: step.state for key, step in steps.items()} == {
        "first#1": "succeeded", "wait_for#1": "dropped", "wait_for#2": "succeeded",
        "sleep#1": "dropped", "note#1": "succeeded", "sleep#2": "waiting",
    }  # fmt: skip
    assert orjson.loads(steps["first#1"].result or b"")["which"] == 1
    assert steps["wait_for#1"].finished_at is not None


async def test_a_run_says_all_that_it_waits_for(tmp_path: Path) -> None:
    clock = Clock(START)
    async with running(tmp_path, [order], now=clock.now) as service:
        run_id = await start(service, order, {"id": 7})
        await until_waiting(service, run_id)
        run = await service.run(run_id)
        found = await waits_of(service.process.journal, [run], service.process.waits_for)
    until = (START + timedelta(days=2)).isoformat().replace("+00:00", "Z")
    assert found[run_id].detail == (
        "for the first of 3: an event of event:order.paid with order=7 or an event of "
        f"event:order.cancelled with order=7 or its time, until {until}"
    )


async def test_a_child_that_is_one_of_them_is_told_with_the_others(tmp_path: Path) -> None:
    async with running(tmp_path, [both, work]) as service:
        run_id = await start(service, both)
        await until_waiting(service, run_id)
        run = await service.run(run_id)
        found = await waits_of(service.process.journal, [run], service.process.waits_for)
    assert found[run_id].detail.startswith("for the first of 3: its child run ")
    assert " of work or the approval of ops or its time" in found[run_id].detail


async def has_noted(word: str) -> bool:
    return word in done


async def test_a_time_comes_when_nothing_else_has(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        assert await result(service, await start(service, order, {"id": 1, "for": "50ms"})) == [
            "forgotten", 2,
        ]  # fmt: skip


async def test_the_answer_is_the_same_after_a_restart_and_in_later_attempts(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        run_id = await start(service, order, {"id": 7, "rest": "300ms"})
        await until_waiting(service, run_id)
    async with running(tmp_path, [order]) as service:
        await tell(service, "order.paid", 7, amount=5)
        await eventually(lambda: has_noted("paid"))
        await tell(service, "order.cancelled", 7, why="later")
    async with running(tmp_path, [order]) as service:
        assert await result(service, run_id) == ["paid", 5]
        run = await service.run(run_id)
    assert done == ["paid"] and run.attempts == 1


# ---------------------------------------------------------------- which is first


@flow(awaits=[paid, cancelled])
async def late(data: dict[str, Any]) -> int:
    await hesitate()
    mine = {"order": data["id"]}
    asked = wait_for(cancelled, match=lambda event: event.data["order"] == data["id"])
    return (await first(wait_for(paid, match=mine), asked, sleep("0s"))).which


@pytest.mark.parametrize(
    "kinds", [["order.paid", "order.cancelled"], ["order.cancelled", "order.paid"]]
)
async def test_of_two_events_the_one_stored_first_counts_whatever_their_stamps_say(
    tmp_path: Path, kinds: Sequence[str]
) -> None:
    now = utc_now()
    async with running(tmp_path, [late]) as service:
        run_id = await start(service, late, {"id": 7})
        await tell(service, kinds[0], 6)
        for hours, kind in enumerate(kinds):  # each says that it is older than the one before
            await tell(service, kind, 7, at=now - timedelta(hours=hours))
        proceed[0].set()
        which = await result(service, run_id)
    assert which == (0 if kinds[0] == "order.paid" else 1)


async def test_what_is_stored_comes_before_what_only_time_has_ended(tmp_path: Path) -> None:
    clock = Clock(START)
    async with running(tmp_path, [order], now=clock.now) as service:
        run_id = await start(service, order, {"id": 7})
        await until_waiting(service, run_id)
        await service.process.operator.do(Pause("flow:order"))
        clock.set(START + timedelta(days=3))
        service.process.dispatcher.recheck_due()
        await tell(service, "order.paid", 7, amount=1)
        await service.process.operator.do(Resume("flow:order"))
        assert await result(service, run_id) == ["paid", 1]


@flow
async def naps() -> int:
    return (await first(sleep("2h"), sleep("1h"), sleep("1h"))).which


async def test_of_several_times_the_earliest_counts_then_the_one_written_first() -> None:
    result = await run_async(naps)
    assert result.result == 1


@flow(awaits=[paid])
async def twice() -> list[Any]:
    one = await first(wait_for(paid), wait_for(paid))
    two = await first(wait_for(paid), wait_for(paid))
    return [one.which, one.value.data["n"], two.which, two.value.data["n"]]


async def test_an_event_that_a_dropped_wait_could_have_had_is_there_for_the_next(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [twice]) as service:
        run_id = await start(service, twice)
        await tell(service, "order.paid", 1, n=1)
        await tell(service, "order.paid", 1, n=2)
        assert await result(service, run_id) == [0, 1, 0, 2]


# ---------------------------------------------------------------- people and child runs


@flow(awaits=[cancelled])
async def asks() -> list[Any]:
    said = await first(approval("ops"), wait_for(cancelled))
    if said.which == 0:
        return [0, said.value.by]
    return [1, said.value.data["order"]]


async def test_an_answer_comes_first_and_a_dropped_question_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path, [asks]) as service:
        do = service.process.operator.do
        answered, dropped = [await start(service, asks) for _ in range(2)]
        for run_id in (answered, dropped):
            await until_waiting(service, run_id)
        await do(Answer(answered, approved=True, by="ann"))
        assert await result(service, answered) == [0, "ann"]
        await tell(service, "order.cancelled", 5)
        assert await result(service, dropped) == [1, 5]
        with pytest.raises(Refused, match="waits for no approval"):
            await do(Answer(dropped, approved=True))


@flow
async def work(data: dict[str, Any]) -> str:
    await note(f"begin {data['name']}")
    await sleep(data["for"])
    return await note(f"end {data['name']}")


@flow
async def hurries() -> list[Any]:
    slow, fast = {"name": "slow", "for": "1h"}, {"name": "fast", "for": "30ms"}
    return [*await first(work(slow), work(fast), sleep("1d"))]


async def test_a_child_run_that_was_not_first_is_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, [hurries, work]) as service:
        run_id = await start(service, hurries)
        assert await result(service, run_id) == [1, "end fast"]
        runs = await service.all_finished()
        steps = await steps_of(service, run_id)
    states = {run.id: run.state for run in runs if run.flow == "work"}
    assert sorted(states.values()) == ["cancelled", "succeeded"]
    (lost,) = (run for run in runs if run.state is RunState.CANCELLED)
    assert lost.reason == f"run {run_id} went on with something that came first"
    assert steps["work#1"].state == "dropped" and steps["work#1"].origin == lost.id
    assert done == ["begin slow", "begin fast", "end fast"]


@flow
async def both() -> int:
    done.append("look")
    return (await first(work({"name": "a", "for": "1h"}), approval("ops"), sleep("2d"))).which


@pytest.mark.parametrize("answer_first", [True, False])
async def test_of_an_answer_and_the_end_of_a_child_the_one_stored_first_counts(
    tmp_path: Path, answer_first: bool
) -> None:
    clock = Clock(START)
    async with running(tmp_path, [both, work], now=clock.now) as service:
        do = service.process.operator.do
        run_id = await start(service, both)
        await until_waiting(service, run_id)
        await eventually(lambda: has_noted("begin a"))
        await do(Pause("flow:both"))

        async def end_child() -> None:
            clock.set(START + timedelta(hours=1))
            service.process.dispatcher.recheck_due()
            await eventually(lambda: has_noted("end a"))
            await eventually(child_ended)

        async def child_ended() -> bool:
            states = service.process.journal.counts()[0]
            return sum(states.values()) == 1

        if answer_first:
            await do(Answer(run_id, approved=True))
            await end_child()
        else:
            await end_child()
            await do(Answer(run_id, approved=True))
        await do(Resume("flow:both"))
        assert await result(service, run_id) == (1 if answer_first else 0)


@flow(unique=unique(lambda event: event.data["name"], until="done"))
async def shared(data: dict[str, Any]) -> str:
    await sleep(data["for"])
    return "shared"


@flow
async def joins() -> int:
    return (await first(shared({"name": "x", "for": "1h"}), sleep("50ms"))).which


async def test_the_work_of_somebody_else_goes_on_when_it_was_not_first(tmp_path: Path) -> None:
    async with running(tmp_path, [joins, shared]) as service:
        other = await start(service, shared, {"name": "x", "for": "1h"})
        await until_waiting(service, other)
        assert await result(service, await start(service, joins)) == 1
        assert (await service.run(other)).state is RunState.WAITING


@flow
async def refunds() -> int:
    return (await first(undone(), sleep("30ms"))).which


@task
async def give_back() -> None:
    done.append("given back")


@flow
async def undone() -> None:
    current().on_undo(give_back)
    await sleep("1h")


async def test_a_child_that_was_not_first_is_undone(tmp_path: Path) -> None:
    async with running(tmp_path, [refunds, undone]) as service:
        assert await result(service, await start(service, refunds)) == 1
        await service.all_finished()
    assert done == ["given back"]

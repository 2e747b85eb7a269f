"""`first`: of several waits one comes first, for ever; the others are dropped."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from tests.support.attempts import attempts
from tests.support.running import Running, eventually, running
from turnout import (
    approval,
    current,
    event,
    first,
    flow,
    gather,
    retry,
    sleep,
    task,
    unique,
    wait_for,
)
from turnout.service.domain.errors import Refused
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import StepRecord
from turnout.service.operate.verbs import Answer, Cancel, Emit, Pause, Resume, Retry
from turnout.service.operate.waits import waits_of
from turnout.testing import run as run_flow
from turnout.testing import serve
from turnout.testing.clock import START, Clock

paid = event("order.paid")
cancelled = event("order.cancelled")

FILE = re.compile(r", called at [^,]*,")

done: list[str] = []
"""What the tasks really did, in order."""

proceed: list[asyncio.Event] = []


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    proceed[:] = [asyncio.Event()]


@task
async def note(word: str) -> str:
    done.append(word)
    return word


@task
async def hesitate() -> None:
    async with asyncio.timeout(30):
        await proceed[0].wait()


async def tell(service: Running, kind: str, order: object, **more: Any) -> str:
    """Emit an event of an order; returns its id."""
    body = orjson.dumps({"order": order, **more})
    at = more.get("at") or utc_now()
    told = Event(
        id=mint_id(), source="/shop", type=kind, time=at, body=body, trigger="api", minted=True
    )
    return (await service.process.operator.do(Emit(told))).event


async def start(service: Running, parent: Any, data: Any = None) -> str:
    """Start one flow; returns the id of its run."""
    service.emitter.flows = lambda _event: (parent,)
    return (await service.send(data)).runs[0]


async def until_waiting(service: Running, run_id: str) -> None:
    async def waits() -> bool:
        return (await service.run(run_id)).state is RunState.WAITING

    await eventually(waits)


async def result(service: Running, run_id: str) -> Any:
    run = await service.finished(run_id)
    assert run.state is RunState.SUCCEEDED, run.error
    return orjson.loads(run.result or b"")


async def steps_of(service: Running, run_id: str) -> dict[str, StepRecord]:
    steps = await service.process.journal.steps((await service.run(run_id)).seq)
    return {step.key: step for step in steps}


async def open_waits(service: Running, run_id: str) -> list[str]:
    return [row.key for row in await service.process.journal.waits((await service.run(run_id)).seq)]


@flow(awaits=[paid, cancelled])
async def order(data: dict[str, Any]) -> list[Any]:
    mine = {"order": data["id"]}
    match await first(
        wait_for(paid, match=mine), wait_for(cancelled, match=mine), sleep(data.get("for", "2d"))
    ):
        case (0, event):
            said = ["paid", event.data.get("amount")]
        case (1, event):
            said = ["cancelled", event.data["why"]]
        case (which, _):
            said = ["forgotten", which]
    await note(said[0])
    if "rest" in data:
        await sleep(data["rest"])
    return said


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


async def run_async(flow: Any, data: Any = None, **more: Any) -> Any:
    return await asyncio.to_thread(run_flow, flow, data, **more)


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


# ---------------------------------------------------------------- errors


@flow(awaits=[paid], retry=retry(1, delay="1ms"))
async def impatient(data: dict[str, Any]) -> list[Any]:
    try:
        got = await first(wait_for(paid, timeout="30ms"), sleep("1h"))
    except TimeoutError:
        if data["catches"]:
            await sleep("20ms")  # it comes by again
            return ["late", current().attempt]
        raise
    return [got.which, current().attempt]


async def test_an_error_comes_first_too_and_is_the_same_when_the_run_comes_by_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [impatient]) as service:
        run_id = await start(service, impatient, {"catches": True})
        assert await result(service, run_id) == ["late", 1]
        steps = await steps_of(service, run_id)
    assert [steps[key].state for key in ("first#1", "wait_for#1", "sleep#1")] == [
        "succeeded", "failed", "dropped",
    ]  # fmt: skip


async def test_after_an_error_that_ends_the_attempt_all_is_awaited_anew(tmp_path: Path) -> None:
    async with running(tmp_path, [impatient]) as service:
        run_id = await start(service, impatient, {"catches": False})
        run = await service.finished(run_id)
        assert run.state is RunState.FAILED and run.attempts == 2
        assert run.error is not None and (run.error.type, run.error.step) == (
            "TimeoutError", "wait_for#1",
        )  # fmt: skip
        await service.process.operator.do(Retry(run_id))
        await tell(service, "order.paid", 1)
        assert await result(service, run_id) == [0, 1]


# ---------------------------------------------------------------- what operators do


@flow(awaits=[paid])
async def fails_then() -> int:
    got = await first(wait_for(paid), sleep("20ms"))
    await note(f"after {got.which}")
    if "mended" not in done:
        raise OSError("broken")
    return got.which


async def test_a_retry_keeps_the_answer_and_one_from_any_of_its_waits_asks_anew(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [fails_then]) as service:
        do = service.process.operator.do
        run_id = await start(service, fails_then)
        assert (await service.finished(run_id)).state is RunState.FAILED
        await tell(service, "order.paid", 1)
        done.append("mended")
        await do(Retry(run_id))
        assert await result(service, run_id) == 1
        for number, step in enumerate(["wait_for#1", "sleep#1", "first#1"]):
            await do(Retry(run_id, from_step=step))
            assert await result(service, run_id) == 0, step
            assert done.count("after 0") == number + 1


async def test_a_cancelled_run_has_no_open_waits(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        run_id = await start(service, order, {"id": 7})
        await until_waiting(service, run_id)
        await service.process.operator.do(Cancel(run_id))
        assert (await service.finished(run_id)).state is RunState.CANCELLED
        assert await open_waits(service, run_id) == []


# ---------------------------------------------------------------- composition


@flow(awaits=[paid, cancelled])
async def beside() -> list[int]:
    async def one(trigger: Any) -> int:
        return (await first(wait_for(trigger), sleep("1h"))).which

    return [*await gather(one(paid), one(cancelled))]


async def test_in_branches_each_awaits_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, [beside]) as service:
        run_id = await start(service, beside)
        await until_waiting(service, run_id)
        await tell(service, "order.paid", 1)
        await tell(service, "order.cancelled", 1)
        assert await result(service, run_id) == [0, 0]
        steps = await steps_of(service, run_id)
    assert steps["gather#1[1]/first#1"].state == "succeeded"
    assert steps["gather#1[1]/sleep#1"].state == "dropped"


@flow
async def reminders() -> int:
    for count in range(10):
        asked = approval("ops")
        await note(asked.link)
        if (await first(asked, sleep("1d"))).which == 0:
            return count
    return -1


async def test_a_question_is_asked_anew_in_a_loop(tmp_path: Path) -> None:
    clock = Clock(START)
    async with running(tmp_path, [reminders], now=clock.now) as service:
        run_id = await start(service, reminders)
        for day in range(1, 3):
            await until_waiting(service, run_id)
            clock.set(START + timedelta(days=day))
            service.process.dispatcher.recheck_due()
            await eventually(partial(has_asked, day + 1))
        await until_waiting(service, run_id)
        assert await open_waits(service, run_id) == ["approval#3"]
        await service.process.operator.do(Answer(run_id, approved=True))
        assert await result(service, run_id) == 2
    assert len(set(done)) == 3, "each question has a link of its own"


async def has_asked(count: int) -> bool:
    return len(done) == count


async def test_on_the_virtual_clock_the_times_pass_at_once() -> None:
    async with serve(reminders) as service:
        run = await service.run(reminders)
        await service.advance("30d")
        assert (await service.look(run.id)).result == -1
    assert len(done) == 10


@flow
async def alone() -> list[Any]:
    return [*await first(sleep("1d"))]


async def test_a_lone_wait_is_the_first() -> None:
    assert (await run_async(alone)).result == [0, None]


async def plainly(word: str) -> str:
    await asyncio.sleep(0.01)
    return word


async def test_outside_a_run_it_is_the_first_to_end() -> None:
    assert await first(sleep("1h"), plainly("x"), plainly("y")) == (1, "x")
    with pytest.raises(ValueError, match="no"):
        await first(fails(), sleep("1h"))


async def fails() -> None:
    raise ValueError("no")


# ---------------------------------------------------------------- mistakes


async def outside() -> None: ...


@flow(awaits=paid)
async def mistakes() -> list[str]:
    asked, anything = approval("x"), cast("Callable[..., Any]", first)
    said = []
    calls: Sequence[Callable[[], Any]] = (
        lambda: anything(note("x"), sleep("1h")),
        lambda: anything(outside(), sleep("1h")),
        lambda: anything([]),
        lambda: anything(asked, asked),
        lambda: anything(),
        lambda: anything(*[sleep("1h") for _ in range(101)]),
    )
    for call in calls:
        try:
            await call()
        except Exception as error:  # noqa: BLE001  what an author sees
            said.append(str(error))
    return said


async def test_what_is_no_wait_is_refused_by_name() -> None:
    said = (await run_async(mistakes)).result
    assert [FILE.sub("", text.partition("; ")[2] or text) for text in said] == [
        "number 1 is task 'note': await it by itself, or make it a flow of its own, whose call is a"
        " wait",
        "number 1 is outside(): await it by itself, or make it a flow of its own, whose call is a"
        " wait",
        "number 1 is a list: await it by itself, or make it a flow of its own, whose call is a"
        " wait",
        "first() is given step 'approval#1' of flow 'mistakes' twice",
        "first() takes waits: first(wait_for(paid), sleep('2d'))",
        "first() takes at most 100 waits, got 101",
    ]


@flow
async def awaits_dropped() -> None:
    asked = approval("x")
    await first(asked, sleep("1ms"))
    await asked


async def test_a_dropped_question_that_is_awaited_says_what_to_write() -> None:
    async with serve(awaits_dropped) as service:
        run = await service.run(awaits_dropped)
        await service.advance("1s")
        error = (await service.look(run.id)).error
    assert error is not None and error.message == (
        "step 'approval#1' of flow 'awaits_dropped' was dropped, since another wait of its `first` "
        "came before it; call approval() again to wait anew"
    )


# ---------------------------------------------------------------- changed code


def edition(content: str, function: Any) -> Any:
    """Return a flow as the loader would make it of one edition of its file."""
    made = flow(name="edited", retry=retry(5, delay="1ms"))(function)
    vars(made)["code_version"] = content
    return made


async def two() -> None:
    await first(approval("a"), sleep("1h"))
    await note("z")


async def three() -> None:
    await first(approval("a"), approval("b"), sleep("1h"))
    await note("z")


async def swapped() -> None:
    asked, slept = approval("a"), sleep("1h")
    await first(slept, asked)
    await note("z")


async def one() -> None:
    await sleep("1h")
    await note("z")


async def another() -> None:
    await first(approval("b"), sleep("1h"))
    await note("z")


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            three,
            "first('approval#1', 'sleep#1') and is now called with other arguments, first('app",
        ),
        (swapped, "is now called with other arguments, first('sleep#1', 'approval#1')"),
        (another, "step 'approval#1' is recorded for approval('a') and is now called with other"),
    ],
)
async def test_other_waits_at_the_same_place_are_refused_by_name(
    tmp_path: Path, new: Any, words: str
) -> None:
    async with attempts(tmp_path) as run:
        await run.first(edition("old", two))
        outcome = await run.again(edition("new", new))
    assert outcome.error is not None and outcome.error.type == "code_changed"
    assert words in outcome.error.message
    assert done == []


async def test_waits_that_depend_on_chance_are_refused_though_the_code_is_the_same(
    tmp_path: Path,
) -> None:
    async def unsteady() -> None:
        done.append("x")
        await first(*[sleep("1h") for _ in done])

    same = edition("same", unsteady)
    async with attempts(tmp_path) as run:
        await run.first(same)
        outcome = await run.again(same)
    assert outcome.error is not None and outcome.error.message == (
        "the waits of step 'first#1' of flow 'edited' changed under this run: it is recorded as "
        "first(sleep#1) and is now called as first(sleep#1, sleep#2); if they depend on a clock or "
        "on chance, ask that in a task, else put the old ones back, or keep both ways with "
        "`if patched(…)`"
    )


async def test_a_wait_that_became_one_of_several_goes_on(tmp_path: Path) -> None:
    async with attempts(tmp_path) as run:
        await run.first(edition("old", one))
        outcome = await run.again(edition("new", two))
    assert outcome.state is RunState.WAITING


async def test_waits_that_are_not_awaited_together_any_more_are_noticed(tmp_path: Path) -> None:
    async def apart() -> None:
        approval("a").close()
        sleep("1h").close()
        await note("z")

    async with attempts(tmp_path) as run:
        await run.first(edition("old", two))
        outcome = await run.again(edition("new", apart))
    assert outcome.error is not None and outcome.error.type == "code_changed"
    assert "runs step 'note#1' where step 'first#1' is recorded" in outcome.error.message

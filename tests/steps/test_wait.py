"""Durable waiting: over restarts, holding no slot, for time and for events."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import (
    approval,
    current,
    emit,
    event,
    flow,
    gather,
    retry,
    sleep,
    task,
    wait_for,
    webhook,
)
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import Receipt
from turnout.service.domain.units import utc_now
from turnout.service.operate.verbs import Emit
from turnout.testing.clock import START, Clock

done: list[str] = []
"""What the tasks really did, in order."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@task
async def note(word: str) -> str:
    done.append(word)
    return word


paid = event("order.paid")


async def pay(service: Running, order: object, **more: Any) -> Receipt:
    data = {"order": order, **more}
    return await service.process.operator.do(Emit(
        Event(
            id=mint_id(), source="/bank", type="order.paid", time=utc_now(),
            body=orjson.dumps(data), trigger="api", minted=True,
        )
    ))  # fmt: skip


async def is_waiting(service: Running, run_id: str) -> None:
    async def waits() -> bool:
        return (await service.run(run_id)).state is RunState.WAITING

    await eventually(waits)


# ---------------------------------------------------------------- time


@flow
async def nap() -> str:
    await note("before")
    await sleep("80ms")
    await note("after")
    return "rested"


async def test_a_sleep_gives_the_slot_back_and_what_was_done_stays_done(tmp_path: Path) -> None:
    async with running(tmp_path, [nap], concurrency=1) as service:
        first, second = [(await service.send()).runs[0] for _ in range(2)]
        runs = [await service.finished(run_id) for run_id in (first, second)]
    assert [orjson.loads(run.result or b"") for run in runs] == ["rested", "rested"]
    # One slot: the second begins while the first one sleeps.
    assert done == ["before", "before", "after", "after"]
    assert [run.attempts for run in runs] == [1, 1]


@flow
async def long_nap() -> str:
    await note("before")
    await sleep("400ms")
    return await note("after")


async def test_a_sleep_goes_on_over_a_restart_and_ends_when_it_would_have(tmp_path: Path) -> None:
    async with running(tmp_path, [long_nap]) as service:
        run_id = (await service.send()).runs[0]
        await is_waiting(service, run_id)
        due_at = (await service.run(run_id)).due_at
    async with running(tmp_path, [long_nap]) as service:
        assert (await service.run(run_id)).due_at == due_at
        run = await service.finished(run_id)
    assert due_at is not None and run.finished_at is not None
    assert due_at <= run.finished_at < due_at + timedelta(seconds=2)
    assert done == ["before", "after"]


@flow
async def catches_everything() -> str:
    try:
        await sleep("30ms")
    except Exception:  # noqa: BLE001  what authors write
        done.append("caught")
    finally:
        done.append("finally")
        if current().key("x"):
            await note("step in finally")
    return "end"


async def test_no_except_of_a_flow_catches_a_wait_and_no_step_runs_on_the_way_out(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [catches_everything]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert orjson.loads(run.result or b"") == "end"
    assert done == ["finally", "finally", "step in finally"]


@flow
async def swallows() -> str:
    try:
        await sleep("30ms")
    except BaseException:  # noqa: BLE001  the worst an author can write
        return "too early"
    return "in time"


async def test_a_flow_that_swallows_the_suspension_waits_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path, [swallows]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert orjson.loads(run.result or b"") == "in time"


async def _branch(word: str, pause: str) -> str:
    await note(f"{word} goes to bed")
    await sleep(pause)
    return await note(f"{word} gets up")


@flow
async def dormitory() -> tuple[str, ...]:
    return await gather(_branch("a", "120ms"), _branch("b", "30ms"), note("c"))


async def test_branches_wait_together_and_the_first_due_one_goes_on_first(tmp_path: Path) -> None:
    async with running(tmp_path, [dormitory], concurrency=1) as service:
        run = await service.finished((await service.send()).runs[0])
        steps = {step.key: step.state for step in await service.process.journal.steps(run.seq)}
    assert orjson.loads(run.result or b"") == ["a gets up", "b gets up", "c"]
    assert done == ["a goes to bed", "b goes to bed", "c", "b gets up", "a gets up"]
    assert set(steps.values()) == {"succeeded"}


@flow(retry=retry(1, delay="1ms"))
async def fails_after_rest() -> str:
    await sleep("20ms")
    await note(f"try {current().attempt}")
    if current().attempt == 1:
        raise ConnectionError("no answer")
    return "good"


async def test_a_wait_spends_no_attempt_and_is_not_waited_again(tmp_path: Path) -> None:
    async with running(tmp_path, [fails_after_rest]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert run.attempts == 2 and done == ["try 1"], "the note of try 1 is a recorded step"


async def test_a_sleep_until_an_instant_is_over_when_the_run_comes_by_again(tmp_path: Path) -> None:
    @flow(name="until")
    async def until() -> None:
        await sleep(end - utc_now())

    end = utc_now() + timedelta(milliseconds=50)
    async with running(tmp_path, [until]) as service:
        run = await service.finished((await service.send()).runs[0])
        assert run.state is RunState.SUCCEEDED, run.error
        again = await service.finished((await service.send()).runs[0])
        assert again.state is RunState.SUCCEEDED, again.error


async def test_outside_a_run_sleep_is_plain() -> None:
    await sleep("1ms")


# ---------------------------------------------------------------- events


@flow(awaits=paid)
async def order(data: dict[str, Any]) -> dict[str, Any]:
    await note(f"order {data['id']}")
    event = await wait_for(paid, match={"order": data["id"]}, timeout=data.get("timeout"))
    return {"paid": event.data["amount"]}


async def test_an_event_wakes_the_run_it_is_for_and_no_other(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        runs = [(await service.send({"id": number})).runs[0] for number in (1, 2)]
        for run_id in runs:
            await is_waiting(service, run_id)
        token = (await service.process.journal.steps((await service.run(runs[0])).seq))[0]
        await pay(service, 2, amount=20)
        assert orjson.loads((await service.finished(runs[1])).result or b"") == {"paid": 20}
        assert (await service.run(runs[0])).state is RunState.WAITING
        receipt = await pay(service, "1", amount=10)
        assert orjson.loads((await service.finished(runs[0])).result or b"") == {"paid": 10}
        (stored,) = await service.process.journal.event(receipt.event)
    assert token.state == "succeeded" and done == ["order 1", "order 2"]
    (decision,) = stored.decisions
    assert decision["reason"] == "unmatched"
    assert decision["facts"] == {"awaited": "event:order.paid"}


any_of_order = event("order.*")


@flow(awaits=[any_of_order, paid])
async def follower(data: dict[str, Any]) -> list[str]:
    first = await wait_for(any_of_order, match={"order": data["id"]})
    second = await wait_for(paid, match={"order": data["id"]})
    third = await wait_for(any_of_order, match=lambda event: event.data["order"] == data["id"])
    return [first.type, second.type, third.type]


async def test_a_run_waits_for_any_type_that_a_pattern_matches(tmp_path: Path) -> None:
    async with running(tmp_path, [follower]) as service:
        run_id = (await service.send({"id": 1})).runs[0]
        await is_waiting(service, run_id)
        for event_type in (
            "order.paid.late",
            "shop.order",
            "order.seen",
            "order.paid",
            "order.sent",
        ):
            emitted = replace(make_event({"order": 1}), type=event_type, trigger="api")
            await service.process.operator.do(Emit(emitted))
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == ["order.seen", "order.paid", "order.sent"]


proceed = asyncio.Event()


@task
async def hesitate() -> None:
    async with asyncio.timeout(5):
        await proceed.wait()


@flow(awaits=[paid])
async def late(data: dict[str, Any]) -> Any:
    await hesitate()
    return (await wait_for(paid, match=lambda event: event.data["order"] == data["id"])).data


async def test_an_event_just_before_the_wait_is_seen(tmp_path: Path) -> None:
    proceed.clear()
    async with running(tmp_path, [late]) as service:
        await pay(service, 7, amount=0)  # before the run was queued: not its business
        run_id = (await service.send({"id": 7})).runs[0]
        await pay(service, 6, amount=1)
        await pay(service, 7, amount=2)
        proceed.set()
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == {"order": 7, "amount": 2}


@flow(awaits=[paid])
async def picky() -> Any:
    return (await wait_for(paid, match=lambda event: event.data["amount"] > 5)).data["amount"]


async def test_a_question_is_asked_of_every_event_until_one_fits(tmp_path: Path) -> None:
    async with running(tmp_path, [picky]) as service:
        run_id = (await service.send()).runs[0]
        await is_waiting(service, run_id)
        for amount in range(10):
            await pay(service, 1, amount=amount)
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == 6


@flow(awaits=[paid])
async def three_payments() -> Any:
    return [(await wait_for(paid)).data["amount"] for _ in range(3)]


async def test_each_wait_of_a_run_gets_an_event_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, [three_payments]) as service:
        run_id = (await service.send()).runs[0]
        for amount in (1, 2):
            await pay(service, 1, amount=amount)
        await is_waiting(service, run_id)
    async with running(tmp_path, [three_payments]) as service:
        await pay(service, 1, amount=3)
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == [1, 2, 3]


async def test_an_event_while_the_service_starts_anew_is_not_missed(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        run_id = (await service.send({"id": 4})).runs[0]
        await is_waiting(service, run_id)
    async with running(tmp_path, [order]) as service:  # what is compared is known again
        await pay(service, 4, amount=44)
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == {"paid": 44}


@flow
async def sleeps_beside() -> None:
    await asyncio.gather(sleep("1h"), sleep("2h"))


@flow(awaits=paid)
async def mistakes() -> list[str]:
    async def later(_: Event) -> None: ...

    seven: Any = 7
    text: Any = "7"
    question: Any = later
    fields: Any = {"euros": int}
    said = []
    for call in (
        lambda: emit("a", id=seven),
        lambda: emit("a", subject=seven),
        lambda: emit(""),
        lambda: wait_for(paid, match=text),
        lambda: wait_for(paid, match=question),
        lambda: approval("x", fields=fields),
    ):
        try:
            await call()
        except (TypeError, SetupError) as error:
            said.append(str(error).partition(":")[0].partition("<")[0])
    return said


async def test_what_could_never_work_is_refused_where_it_is_written(tmp_path: Path) -> None:
    async with running(tmp_path, [mistakes]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert orjson.loads(run.result or b"") == [
        "emit(id=7)", "emit(subject=7)", "emit(event_type='')", "wait_for(match='7')",
        "wait_for(match=", "approval(fields={'euros'",
    ]  # fmt: skip


async def test_a_wait_in_an_asyncio_task_of_its_own_names_gather(tmp_path: Path) -> None:
    async with running(tmp_path, [sleeps_beside]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert run.error is not None and "own `await gather(…)`" in run.error.message


async def test_a_wait_ends_with_a_timeout_the_flow_may_catch(tmp_path: Path) -> None:
    async with running(tmp_path, [order]) as service:
        run = await service.finished((await service.send({"id": 1, "timeout": "40ms"})).runs[0])
    assert run.error is not None and run.error.type == "TimeoutError"
    assert run.error.step == "wait_for#1"


decided = webhook("/approve/{id}")


@flow(awaits=decided)
async def by_webhook() -> Any:
    return (await wait_for(decided, match={"id": "7"})).params["id"]


async def test_a_webhook_that_is_only_awaited_is_a_route(tmp_path: Path) -> None:
    async with running(tmp_path, [by_webhook]) as service:
        routes = [trigger.route for trigger, _ in service.process.routes()]
        assert routes == ["/approve/{id}"]
        emitter = service.process.emitters["webhook:/approve/{id}"]
        run_id = (await service.send()).runs[0]
        await is_waiting(service, run_id)
        for number in ("8", "7"):
            event = Event(
                id=mint_id(), source="/hooks", type="turnout.webhook", time=utc_now(),
                params={"id": number}, minted=True,
            )  # fmt: skip
            await emitter([event])
        run = await service.finished(run_id)
    assert orjson.loads(run.result or b"") == "7"


@flow
async def undeclared() -> None:
    await wait_for(paid)


async def test_a_wait_for_an_undeclared_trigger_says_what_to_write(tmp_path: Path) -> None:
    async with running(tmp_path, [undeclared]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert run.error is not None and "@flow(awaits=[…])" in run.error.message


@flow(retry=retry(1, delay="1ms"))
async def abandons() -> str:
    try:
        await gather(sleep("1h"), _fails())
    except ConnectionError:
        await sleep("30ms")
    return "went on"


async def _fails() -> None:
    raise ConnectionError("no")


async def test_a_wait_whose_branch_was_given_up_wakes_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, [abandons]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert orjson.loads(run.result or b"") == "went on"


# ---------------------------------------------------------------- emitting

started: list[dict[str, Any]] = []


@flow
async def seller(data: dict[str, Any]) -> str:
    sent = await emit("order.sold", {"id": data["id"]})
    await sleep("20ms")  # the run comes by the emit again
    return sent


@flow(on=event("order.sold"))
async def packer(event: Event) -> str:
    started.append({"data": event.data, "hops": event.hops, "trigger": event.trigger})
    return str(event.data["id"])


async def test_an_emitted_event_starts_its_flows_once_and_one_hop_further(tmp_path: Path) -> None:
    started.clear()
    async with running(tmp_path, [seller, packer]) as service:
        service.process.emitters["test"].flows = lambda _event: (seller,)
        run_id = (await service.send({"id": 5})).runs[0]
        run = await service.finished(run_id)
        runs = await service.all_finished()
        (stored,) = await service.process.journal.event(orjson.loads(run.result or b""))
    assert started == [{"data": {"id": 5}, "hops": 1, "trigger": "emit"}]
    assert sorted(each.flow for each in runs) == ["packer", "seller"]
    assert stored.event.source == "/flows/seller"


@flow(on=event("ping"))
async def echo() -> str:
    return await emit("ping")


async def test_events_that_cause_each_other_end_as_a_cycle(tmp_path: Path) -> None:
    async with running(tmp_path, [echo]) as service:
        await service.send()
        runs = await service.all_finished()
        (last,) = await service.process.journal.event(orjson.loads(runs[-1].result or b""))
    assert len(runs) == 17
    assert [decision["reason"] for decision in last.decisions] == ["cycle"]


# ---------------------------------------------------------------- many


@flow
async def a_day() -> None:
    await sleep("1d")


async def test_all_asleep_for_a_day_wake_when_it_is_over(tmp_path: Path, full: bool) -> None:
    count = 10_000 if full else 300
    clock = Clock(START)
    async with running(tmp_path, [a_day], now=clock.now) as service:
        for _ in range(0, count, 100):
            await asyncio.gather(*(service.send() for _ in range(100)))

        async def asleep() -> bool:
            return service.process.journal.counts()[0].get("waiting", 0) == count

        await eventually(asleep)
        clock.set(START + timedelta(days=1))
        service.process.dispatcher.recheck_due()
        runs = await service.all_finished()
    assert len(runs) == count
    late = [run.finished_at - START - timedelta(days=1) for run in runs if run.finished_at]
    assert len(late) == count and max(late) <= timedelta(seconds=1)

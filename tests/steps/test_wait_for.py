"""Runs that wait for events: which one wakes which, and what is refused."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from tests.support.running import Running, make_event, running
from turnout import (
    approval,
    emit,
    event,
    flow,
    gather,
    retry,
    sleep,
    wait_for,
    webhook,
)
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import Receipt
from turnout.service.domain.units import utc_now
from turnout.service.operate.verbs import Emit

from .waiting_runs import done, is_waiting, late, note, nothing_done, paid, proceed

__all__ = ["nothing_done"]  # the fixture


async def pay(service: Running, order: object, **more: Any) -> Receipt:
    data = {"order": order, **more}
    return await service.process.operator.do(Emit(
        Event(
            id=mint_id(), source="/bank", type="order.paid", time=utc_now(),
            body=orjson.dumps(data), trigger="api", minted=True,
        )
    ))  # fmt: skip


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


async def test_an_event_just_before_the_wait_is_seen(tmp_path: Path) -> None:
    proceed[:] = [asyncio.Event()]
    async with running(tmp_path, [late]) as service:
        await pay(service, 7, amount=0)  # before the run was queued: not its business
        run_id = (await service.send({"id": 7})).runs[0]
        await pay(service, 6, amount=1)
        await pay(service, 7, amount=2)
        proceed[0].set()
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
        except (TypeError, ValueError, SetupError) as error:
            said.append(str(error).partition(":")[0].partition("<")[0])
    return said


async def test_what_could_never_work_is_refused_where_it_is_written(tmp_path: Path) -> None:
    async with running(tmp_path, [mistakes]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert orjson.loads(run.result or b"") == [
        "emit(id=7)", "emit(subject=7)", "emit('')", "wait_for(match='7')",
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


bodies: list[str] = []


@flow(awaits=[paid])
async def goes_on_without(data: dict[str, Any]) -> str:
    bodies.append("body")
    with suppress(ConnectionError):
        await gather(
            wait_for(paid, match={"order": data["id"]}), wait_for(paid, match=_is_any), _fails()
        )
    event = await wait_for(paid, match={"order": "other"})
    return f"went on with {event.data['order']}"


def _is_any(event: Event) -> bool:
    return True


async def test_an_event_that_no_branch_waits_for_any_more_does_not_run_the_flow(
    tmp_path: Path,
) -> None:
    bodies.clear()
    async with running(tmp_path, [goes_on_without]) as service:
        run_id = (await service.send({"id": 1})).runs[0]
        await is_waiting(service, run_id)
        run = await service.run(run_id)
        waits = await service.process.journal.waits(run.seq)
        assert [wait.key for wait in waits] == ["wait_for#3"], "of the branches none is open"
        await pay(service, 1)
        run = await service.run(run_id)
        assert (run.state, run.due_at, bodies) == (RunState.WAITING, None, ["body"])
        await pay(service, "other")
        run = await service.finished(run_id)
        assert orjson.loads(run.result or b"") == "went on with other"
    assert bodies == ["body"] * 2

"""A child run that a rule of its flow refuses: its parent hears of it, and never waits for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.inside import emit_now, quiet
from tests.support.running import eventually, running
from turnout import Fail, Overloaded, Refused, Skip, emit, flow, gather, sleep, unique, wait_for
from turnout import event as on_type
from turnout.service.domain.conditions import Mode
from turnout.service.domain.run import RunState
from turnout.service.flowcontrol.unique import Unique
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Cancel, Retry
from turnout.service.steps import recording
from turnout.testing import Service, hand_event, serve, typed_event

go = on_type("go")


def by(name: str) -> Unique:
    return unique(lambda event: event.data[name])


@flow(unique=by("id"), awaits=go)
async def pack(order: dict[str, Any]) -> str:
    await wait_for(go)
    return f"packed {order['id']} for {order['by']}"


@flow
async def shop(order: dict[str, Any]) -> str:
    return await pack(order)


@flow(key=lambda event: event.data["id"], mode="skip")
async def ship(order: dict[str, Any]) -> str:
    await sleep("1h")
    return "shipped"


@flow
async def sell(order: dict[str, Any]) -> str:
    try:
        return await ship(order)
    except Refused as error:
        return f"{error.reason} {error.run}"


async def begun(service: Service, of: Any, data: Any) -> str:
    """Emit to a flow and go on as far as no time must pass; returns the run."""
    receipt = (await emit_now(service, of, hand_event(data, at=service.clock.now())))[0]
    await quiet(service)
    return receipt.runs[0]


async def runs_of(service: Service, name: str) -> list[Any]:
    return (await service.journal.runs(Filter(flow=name, limit=100)))[::-1]


async def test_a_child_that_is_not_unique_awaits_the_first_run() -> None:
    async with serve(shop, pack) as service:
        first, second = [
            await begun(service, shop, {"id": 7, "by": name}) for name in ("ada", "bob")
        ]
        packed, refused = await runs_of(service, "pack")
        assert refused.state is RunState.SKIPPED
        await service.assert_decided(refused.event_id, "unique", flow=pack, other=packed.id)
        await service.restart()
        await service.emit(typed_event(go))
        results = [await service.ended(run) for run in (first, second)]
        assert [each.result for each in results] == ["packed 7 for ada"] * 2


async def test_a_child_that_is_not_unique_gets_what_the_first_run_returned() -> None:
    @flow(unique=unique(lambda event: event.data, until="7d"))
    async def invoice(order: int) -> str:
        return f"invoice of {order}"

    @flow
    async def ask(order: int) -> str:
        return await invoice(order)

    async with serve(ask, invoice) as service:
        results = [(await service.run(ask, 7)).result for _ in range(3)]
        assert results == ["invoice of 7"] * 3
        first, *others = await runs_of(service, "invoice")
        assert [run.reason for run in others] == [
            f"run {first.id} was asked for the same first (unique='7')"
        ] * 2


async def test_the_work_of_another_is_not_cancelled_with_its_second_asker() -> None:
    async with serve(shop, pack) as service:
        first, second = [await begun(service, shop, {"id": 7, "by": name}) for name in "ab"]
        await service.process.operator.do(Cancel(second))
        await quiet(service)
        packed, _ = await runs_of(service, "pack")
        assert packed.state is RunState.WAITING
        await service.emit(typed_event(go))
        assert (await service.ended(first)).result == "packed 7 for a"


async def test_a_second_asker_that_fails_leaves_the_first_run_alone() -> None:
    @flow
    async def hurry(order: dict[str, Any]) -> None:
        await gather(pack(order), fail())

    @flow
    async def fail() -> None:
        raise Fail("no time")

    async with serve(shop, pack, hurry, fail) as service:
        first = await begun(service, shop, {"id": 7, "by": "a"})
        second = await service.run(hurry, {"id": 7, "by": "b"})
        assert second.state is RunState.FAILED
        assert (await runs_of(service, "pack"))[0].state is RunState.WAITING
        await service.emit(typed_event(go))
        assert (await service.ended(first)).state is RunState.SUCCEEDED


async def test_a_flow_that_asks_for_its_own_work_is_refused_instead_of_waiting_for_ever() -> None:
    @flow(unique=by("id"))
    async def loop(order: dict[str, Any]) -> str:
        try:
            return str(await loop(order))
        except Refused as error:
            return f"{error.reason} {error.run}"

    async with serve(loop) as service:
        result = await service.run(loop, {"id": 1})
        assert result.result == f"unique {result.id}"


async def test_two_that_ask_for_the_work_of_each_other_do_not_wait_for_ever() -> None:
    @flow(unique=by("id"), awaits=go)
    async def cross(order: dict[str, Any]) -> str:
        await wait_for(go)
        return str(await cross({"id": order["other"], "other": order["id"]}))

    async with serve(cross) as service:
        runs = [await begun(service, cross, {"id": one, "other": two}) for one, two in ("ab", "ba")]
        await service.emit(typed_event(go))
        await service.emit(typed_event(go))
        first, second = [await service.ended(run) for run in runs]
        assert {first.state, second.state} == {RunState.FAILED}
        assert "Refused" in {each.error.type for each in (first, second) if each.error}


async def test_refused_is_raised_at_the_await_and_never_retried() -> None:
    tries = 0

    @flow(retry=3)
    async def insist(order: dict[str, Any]) -> str:
        nonlocal tries
        tries += 1
        return await ship(order)

    async with serve(sell, ship, insist) as service:
        under_way = await begun(service, ship, {"id": 1})
        caught = await service.run(sell, {"id": 1})
        assert caught.result == f"skip {under_way}"
        failed = await service.run(insist, {"id": 1})
        assert (failed.state, failed.attempts) == (RunState.FAILED, 1)
        assert failed.error is not None
        assert (failed.error.type, failed.error.message) == (
            "Refused", f"the child run was refused (skip); run {under_way} goes on instead",
        )  # fmt: skip
        assert failed.error.step == "ship#1"
        assert tries == 2, "once to start the child, and once to hear of it"
        await service.advance("2h")
        await service.process.operator.do(Retry(failed.id))
        assert (await service.ended(failed.id)).result == "shipped", "asked anew"


async def test_a_caught_refusal_is_a_fact_over_restarts() -> None:
    @flow(awaits=go)
    async def patient(order: dict[str, Any]) -> str:
        try:
            await ship(order)
        except Refused as error:
            await wait_for(go)
            return error.reason
        return "shipped"

    async with serve(patient, ship) as service:
        await begun(service, ship, {"id": 1})
        run = await begun(service, patient, {"id": 1})
        await service.restart()
        await service.advance("2h")
        await service.emit(typed_event(go))
        assert (await service.ended(run)).result == "skip"


async def test_a_child_that_latest_replaces_is_refused_to_its_parent() -> None:
    @flow(mode="latest")
    async def build(number: int) -> str:
        await sleep("1h")
        return f"built {number}"

    @flow
    async def push(number: int) -> str:
        try:
            return await build(number)
        except Refused as error:
            return f"{error.reason}"

    async with serve(push, build) as service:
        runs = [await begun(service, push, number) for number in range(4)]
        results = [(await service.ended(run)).result for run in runs]
        assert results == ["built 0", "latest", "latest", "built 3"]


async def test_an_own_skip_of_a_child_returns_as_ever() -> None:
    @flow(mode="skip")
    async def nothing() -> str:
        raise Skip("there was nothing")

    @flow
    async def parent() -> str:
        return f"{await nothing()}"

    async with serve(parent, nothing) as service:
        assert (await service.run(parent)).result == "None"


@pytest.mark.parametrize("mode", ["skip", "replace", "latest"])
async def test_a_child_whose_key_its_ancestor_holds_never_waits_for_ever(mode: Mode) -> None:
    @flow(mode=mode)
    async def deploy(depth: int) -> str:
        return str(await check(depth + 1))

    @flow
    async def check(depth: int) -> str:
        try:
            return str(await deploy(depth))
        except Refused as error:
            return f"{error.reason} {error.run}"
        except Fail as error:
            return str(error)

    async with serve(deploy, check) as service:
        run = await service.run(deploy, 0)
        if mode != "latest":
            assert run.result == f"skip {run.id}"
            return
        assert run.result == (
            "the child run would wait for ever: the slot of mode=\"latest\" for '' of flow "
            "'deploy' is held until a run that waits for this one ends; give the child another "
            "key (per=), a limit of its own, or make it a task"
        )


# ---------------------------------------------------------------- a full queue


@pytest.mark.slow
async def test_a_child_and_an_emit_find_no_place_for_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recording.MOST_SECONDS_OVERLOADED == 10
    monkeypatch.setattr(recording, "MOST_SECONDS_OVERLOADED", 0.5)
    held = asyncio.Event()

    @flow(on=go, concurrency=1, max_queued=1)
    async def slow(number: int) -> str:
        await held.wait()
        return f"slow {number}"

    @flow
    async def call(number: int) -> str:
        try:
            return await slow(number)
        except Overloaded as error:
            return str(error)

    @flow
    async def tell(number: int) -> str:
        try:
            return await emit("go", number)
        except Overloaded as error:
            return str(error)

    full = "flow 'slow' has 1 runs queued, and max_queued=1 are the most"
    async with running(tmp_path, [slow, call, tell]) as service:
        service.emitter.flows = lambda _event: (slow,)
        first = (await service.send(1)).runs[0]

        async def runs() -> bool:
            return (await service.run(first)).state is RunState.RUNNING

        await eventually(runs)
        second = (await service.send(2)).runs[0]
        for asker in (call, tell):
            service.emitter.flows = lambda _event, asker=asker: (asker,)  # type: ignore[misc]
            run = await service.finished((await service.send(3)).runs[0])
            assert orjson.loads(run.result or b"null") == full
            (step,) = await service.process.journal.steps(run.seq)
            assert (step.state, step.error and step.error.type) == ("failed", "QueueFull")
        service.emitter.flows = lambda _event: (tell,)
        waiting = (await service.send(4)).runs[0]
        held.set()
        run = await service.finished(waiting)
        assert orjson.loads(run.result or b"null") != full, "it found a slot in time"
        await service.finished(first)
        await service.finished(second)

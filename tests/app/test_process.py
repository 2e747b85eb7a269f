"""A running process takes a new version of its project: all of it, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import every, flow, limit, resource, retry, webhook
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import Receipt
from turnout.service.domain.units import utc_now
from turnout.service.operate.operator import Operator
from turnout.service.operate.verbs import Cancel, Drop, Pause, Replay, Resume, Retry
from turnout.service.project import Project


async def send(service: Running, trigger: str, data: Any) -> Receipt:
    (receipt,) = await service.process.emitters[trigger]([make_event(data)])
    return receipt


async def reload(service: Running, *flows: Flow[..., Any]) -> None:
    await reload_project(service.process, Project.of(flows))


happened: list[str] = []


@resource
def fine() -> Iterator[str]:
    happened.append("opened")
    yield "fine"
    happened.append("closed")


@resource
def broken() -> str:
    raise OSError("no route")


async def test_a_reload_whose_resource_does_not_start_changes_nothing(tmp_path: Path) -> None:
    @flow(on=[webhook("/orders"), every("1h")])
    async def bill() -> str:
        return "old"

    @flow(on=webhook("/orders", respond=True), name="bill")
    async def better(one: Annotated[str, fine], two: Annotated[str, broken]) -> str:
        return "new"

    async with running(tmp_path, [bill]) as service:
        before = dict(service.process.emitters)
        with pytest.raises(SetupError, match="'broken' did not start: OSError: no route"):
            await reload(service, better)
        assert service.process.emitters == before
        assert service.process.project.flows["bill"] is bill
        assert happened == ["opened", "closed"]
        receipt = await send(service, "webhook:/orders", {})
        assert (await service.finished(receipt.runs[0])).result == b'"old"'


def make_flow(
    name: str, seen: list[Any], gate: asyncio.Event, *, was: str | None = None,
    on_dead: Literal["continue", "block"] = "continue",
) -> Flow[..., Any]:  # fmt: skip
    """Return a flow that notes each start and waits for `gate`; "die" and "again" end badly."""

    @flow(
        on=webhook("/orders"), name=name, was=was, on_dead=on_dead,
        ordered_by=lambda event: event.data["key"],
        retry=retry(1, delay="1h", jitter=False, on=OSError),
    )  # fmt: skip
    async def work(event: Event) -> None:
        seen.append((name, event.data["n"]))
        await gate.wait()
        if event.data.get("end") == "again":
            raise OSError("later")
        if event.data.get("end") == "die":
            raise ValueError("never")

    return work


async def test_a_reload_gives_the_runs_of_the_old_name_to_the_new_one(tmp_path: Path) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    async with running(tmp_path, [make_flow("old", seen, gate)]) as service:
        receipts = [await send(service, "webhook:/orders", {"key": "k", "n": n}) for n in range(3)]

        async def started() -> bool:
            return len(seen) == 1

        await eventually(started)
        await reload(service, make_flow("new", seen, gate, was="old"))
        receipts.append(await send(service, "webhook:/orders", {"key": "k", "n": 3}))
        await asyncio.sleep(0)
        assert seen == [("old", 0)]  # it runs on, and its key is held under the new name too
        gate.set()
        runs = await service.all_finished()
        assert seen == [("old", 0), ("new", 1), ("new", 2), ("new", 3)]
        assert [run.id for run in runs] == [receipt.runs[0] for receipt in receipts]
        assert {run.flow for run in runs} == {"new"}
        assert {run.state for run in runs} == {RunState.SUCCEEDED}
        assert service.process.dispatcher.free_slots == service.process.settings.concurrency
        slots = service.process.dispatcher.held_slots()
        assert slots == {"new": 0}


async def test_a_run_that_outlasts_two_new_names_gives_its_slot_and_its_key_back(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    async with running(tmp_path, [make_flow("first", seen, gate)]) as service:
        await send(service, "webhook:/orders", {"key": "k", "n": 0})

        async def started() -> bool:
            return len(seen) == 1

        await eventually(started)
        await reload(service, make_flow("second", seen, gate, was="first"))
        await reload(service, make_flow("third", seen, gate, was="second"))
        await send(service, "webhook:/orders", {"key": "k", "n": 1})
        gate.set()
        await service.all_finished()
        assert seen == [("first", 0), ("third", 1)]
        assert service.process.dispatcher.held_slots() == {"third": 0}


@pytest.mark.parametrize(
    ("end", "on_dead", "held"),
    [("again", "continue", True), ("die", "block", True), ("die", "continue", False)],
)
async def test_a_flow_that_a_reload_brings_back_finds_its_keys_held(
    tmp_path: Path, end: str, on_dead: Literal["continue", "block"], held: bool
) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    gate.set()
    bill = make_flow("bill", seen, gate, on_dead=on_dead)
    other = make_flow("other", [], gate)
    async with running(tmp_path, [bill]) as service:
        first = await send(service, "webhook:/orders", {"key": "k", "n": 0, "end": end})

        async def stands_still() -> bool:
            run = await service.run(first.runs[0])
            return run.state in (RunState.RETRYING, RunState.FAILED)

        await eventually(stands_still)
        await service.process.operator.do(Pause("bill"))
        await send(service, "webhook:/orders", {"key": "k", "n": 1})
        await service.process.operator.do(Resume("bill"))
    seen.clear()
    async with running(tmp_path, [other]) as service:  # started without it, so nothing is held
        await reload(service, other, bill)
        free = await send(service, "webhook:/orders", {"key": "free", "n": 2})
        for run_id in free.runs:
            await service.finished(run_id)

        async def second_ran() -> bool:
            return ("bill", 1) in seen

        if not held:
            await eventually(second_ran)
        assert seen == ([("bill", 2)] if held else [("bill", 1), ("bill", 2)])
        if held:  # and let go by an operator, it goes on
            with suppress(Exception):
                await service.process.operator.do(Cancel(first.runs[0]))
            with suppress(Exception):
                await service.process.operator.do(Drop(first.runs[0]))
            await eventually(second_ran)


@pytest.mark.parametrize("name", ["bill", "invoice"])
async def test_a_run_that_was_due_while_its_flow_was_gone_runs_when_it_is_back(
    tmp_path: Path, name: str
) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    gate.set()
    bill, other = make_flow("bill", seen, gate), make_flow("other", [], gate)
    async with running(tmp_path, [bill]) as service:
        receipt = await send(service, "webhook:/orders", {"key": "k", "n": 0, "end": "again"})

        async def retrying() -> bool:
            return (await service.run(receipt.runs[0])).state is RunState.RETRYING

        await eventually(retrying)
    async with running(tmp_path, [other], now=lambda: utc_now() + timedelta(hours=2)) as service:

        async def looked_at() -> bool:
            return inside.has_orphans(service.process)

        await eventually(looked_at)
        back = bill if name == "bill" else make_flow(name, seen, gate, was="bill")
        await reload(service, other, back)
        await service.finished(receipt.runs[0])
        assert seen == [("bill", 0), (name, 0)]


async def test_what_is_no_longer_served_leaves_the_metrics(tmp_path: Path) -> None:
    @flow(on=webhook("/orders"))
    async def bill() -> None: ...

    @flow(on=webhook("/others"))
    async def other() -> None: ...

    async with running(tmp_path, [bill]) as service:
        await service.process.start_triggers()
        emitter = service.process.emitters["webhook:/orders"]
        emitter.lag("0", 7)
        emitter.show("paused_partitions", 1)

        def shown() -> list[bytes]:
            lines = service.process.metrics.render().splitlines()
            gauges = [line for line in lines if line.startswith(b"turnout_trigger_")]
            return [line for line in gauges if b'trigger="webhook:/orders"' in line]

        assert len(shown()) == 3
        await reload(service, other)
        assert shown() == []
        assert b'turnout_trigger_up{trigger="webhook:/others"} 1.0' in (
            service.process.metrics.render()
        )


async def test_a_limit_that_a_reload_raises_counts_for_the_runs_that_wait(tmp_path: Path) -> None:
    seen: list[int] = []
    gate = asyncio.Event()

    def make(count: int) -> Flow[..., Any]:
        @flow(on=webhook("/orders"), name="work", concurrency=limit(count, per=lambda event: "key"))
        async def work(event: Event) -> None:
            seen.append(event.data)
            await gate.wait()

        return work

    async with running(tmp_path, [make(1)]) as service:
        for number in range(4):
            await send(service, "webhook:/orders", number)
        queue = inside.scheduler(service.process).queue("work")

        async def blocked() -> bool:
            return queue.blocked.count == 3

        await eventually(blocked)
        await reload(service, make(3))

        async def three_run() -> bool:
            return len(seen) == 3

        await eventually(three_run)
        gate.set()
        await service.all_finished()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("verb", [Drop, Retry])
async def test_a_dead_letter_that_blocks_its_key_goes_with_the_flow_to_a_new_name(
    tmp_path: Path, verb: type[Drop | Retry]
) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    data = {"key": "k", "n": 0, "end": "die"}
    async with running(tmp_path, [make_flow("old", seen, gate, on_dead="block")]) as service:
        dead, behind = [
            (await send(service, "webhook:/orders", data | more)).runs[0]
            for more in ({}, {"n": 1, "end": None})
        ]

        async def begun() -> bool:
            return len(seen) == 1

        await eventually(begun)
        renamed = make_flow("new", seen, gate, was="old", on_dead="block")
        if verb is Drop:  # it fails under the new name, having begun under the old one
            await reload(service, renamed)
        gate.set()

        async def has_failed() -> bool:
            return (await service.run(dead)).dead

        await eventually(has_failed)
        await reload(service, renamed)
        assert (await service.run(dead)).flow == "new"
        assert service.process.journal.counts()[1] == {"new": 1}
        assert (await service.run(behind)).state is RunState.QUEUED
        await service.process.operator.do(verb(dead))

        async def again() -> bool:
            return verb is Drop or seen[1:] == [("new", 0)]

        await eventually(again)
        await eventually(has_not_blocked(service, dead, verb))
        await service.finished(behind)
        assert seen[-1] == ("new", 1)
        assert service.process.journal.counts()[1] == {}


def has_not_blocked(service: Running, dead: str, verb: type[Drop | Retry]) -> Any:
    """Return whether a dead letter is off the list: dropped, also after a retry that failed."""

    async def off() -> bool:
        run = await service.run(dead)
        if run.dead and verb is Retry:
            await service.process.operator.do(Drop(dead))
        return not run.dead and run.state is RunState.FAILED

    return off


async def test_a_key_that_is_let_go_while_its_flow_is_gone_is_free_when_it_is_back(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    gate.set()
    bill, other = make_flow("bill", seen, gate), make_flow("other", [], gate)
    async with running(tmp_path, [bill]) as service:
        first = (await send(service, "webhook:/orders", {"key": "k", "n": 0, "end": "again"})).runs

        async def retrying() -> bool:
            return (await service.run(first[0])).state is RunState.RETRYING

        await eventually(retrying)
        second = (await send(service, "webhook:/orders", {"key": "k", "n": 1})).runs
        await reload(service, other)
        await service.process.operator.do(Cancel(first[0]))
        await reload(service, other, bill)
        await service.finished(second[0])
    assert seen == [("bill", 0), ("bill", 1)]


async def test_runs_of_an_old_name_that_an_operator_starts_again_are_of_the_new_one(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []
    gate = asyncio.Event()
    gate.set()
    async with running(tmp_path, [make_flow("old", seen, gate)]) as service:
        first = await send(service, "webhook:/orders", {"key": "k", "n": 0})
        await service.finished(first.runs[0])
        await reload(service, make_flow("new", seen, gate, was="old"))
        await service.process.operator.do(Retry(first.runs[0]))
        await service.all_finished()
        assert len(await service.process.operator.do(Replay(first.event))) == 1
        runs = await service.all_finished()
        assert [(run.flow, run.order_key) for run in runs] == [("new", "k")] * 2
    assert seen == [("old", 0), ("new", 0), ("new", 0)]


async def test_a_replay_keeps_its_ordering_key_while_its_flow_is_not_served(tmp_path: Path) -> None:
    gate = asyncio.Event()
    gate.set()
    async with running(tmp_path, [make_flow("bill", [], gate)]) as service:
        first = await send(service, "webhook:/orders", {"key": "k", "n": 0})
        await service.finished(first.runs[0])
        await reload(service, make_flow("other", [], gate))
        at_rest = Operator(journal=service.process.journal, now=utc_now)
        (again,) = await at_rest.do(Replay(first.event))
        assert (await service.run(again)).order_key == "k"

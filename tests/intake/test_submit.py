"""What is written starts, whether or not whoever submitted it is still there."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import Event, emit, event, flow
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel

STARTED: list[str] = []


@flow
async def child(data: int) -> int:
    STARTED.append(f"child {data}")
    return data


@flow(on=event("made"))
async def listens(event: Event) -> None:
    STARTED.append(f"listens {event.data}")


class Gates:
    """`at`: a flow is about to start something; `go`: it may."""

    def __init__(self) -> None:
        self.at, self.go = asyncio.Event(), asyncio.Event()


GATES: list[Gates] = []


@flow
async def calls(data: int) -> int:
    GATES[-1].at.set()
    await GATES[-1].go.wait()
    return await child(data)


@flow
async def emits(data: int) -> None:
    GATES[-1].at.set()
    await GATES[-1].go.wait()
    await emit("made", data)


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    STARTED.clear()
    GATES.append(Gates())


def block_writer(service: Running) -> threading.Event:
    """Have the journal write nothing until the event is set."""
    gate = threading.Event()
    journal: Any = service.process.journal
    inside.occupy_writer(journal, gate.wait)
    return gate


async def test_a_sender_that_hangs_up_leaves_its_runs_to_the_service(tmp_path: Path) -> None:
    async with running(tmp_path, [child], concurrency=1) as service:
        gate = block_writer(service)
        async with asyncio.TaskGroup() as tasks:
            sending = [
                tasks.create_task(service.emitter([make_event(number)])) for number in range(3)
            ]
            await asyncio.sleep(0)
            for each in sending:
                each.cancel()
            await asyncio.sleep(0)
            gate.set()
        assert all(each.cancelled() for each in sending)
        await service.process.journal.probe()  # behind what they have submitted
        runs = await service.all_finished()
        assert [run.state for run in runs] == [RunState.SUCCEEDED] * 3
        assert STARTED == ["child 0", "child 1", "child 2"]


@pytest.mark.parametrize("parent", [calls, emits])
async def test_a_run_cancelled_while_it_starts_another_leaves_no_slot_taken(
    tmp_path: Path, parent: Flow[..., Any]
) -> None:
    async with running(tmp_path, [child, listens, parent]) as service:
        service.emitter.flows = lambda _event: (parent,)
        run_id = (await service.send(7)).runs[0]
        await GATES[-1].at.wait()
        gate = block_writer(service)
        GATES[-1].go.set()
        async with asyncio.TaskGroup() as tasks:
            await eventually(partial(has_submitted, service, 2))  # what the flow starts
            await asyncio.sleep(0.01)
            writes = unfinished_writes(service)
            cancelling = tasks.create_task(service.process.operator.do(Cancel(run_id)))
            await eventually(partial(has_submitted, service, writes + 1))
            assert service.process.dispatcher.running == {run_id}
            gate.set()
        assert cancelling.result().state is RunState.CANCELLED
        runs = {run.flow: run for run in await service.all_finished()}
        assert len(runs) == 2
        if parent is emits:  # an event is a fact; a child is cancelled with its parent
            assert runs["listens"].state is RunState.SUCCEEDED
            assert STARTED == ["listens 7"]
        else:
            assert runs["child"].state is RunState.CANCELLED
        await eventually(partial(holds_nothing, service))


def unfinished_writes(service: Running) -> int:
    """Return how many writes are not done, that which blocks the journal's thread among them."""
    journal: Any = service.process.journal
    return inside.unfinished_writes(journal)


async def has_submitted(service: Running, writes: int) -> bool:
    return unfinished_writes(service) >= writes


async def holds_nothing(service: Running) -> bool:
    """Whether no attempt runs, and no slot is taken."""
    return not (
        service.process.dispatcher.running or any(service.process.dispatcher.held_slots().values())
    )


async def test_an_event_that_is_known_gives_its_slot_back(tmp_path: Path) -> None:
    async with running(tmp_path, [child], concurrency=1) as service:
        first, again, other = (
            await service.send(1, event_id="a"),
            await service.send(1, event_id="a"),
            await service.send(2, event_id="a"),
        )
        assert (again.duplicate, again.runs) == (True, first.runs)
        assert other.conflict
        assert [run.id for run in await service.all_finished()] == list(first.runs)
        await eventually(partial(holds_nothing, service))

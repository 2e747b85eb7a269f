"""Runs that wait for the first of several: how tests start them, wake them, and look at them."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.support.running import Running, eventually
from turnout import (
    approval,
    event,
    first,
    flow,
    sleep,
    task,
    wait_for,
)
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import StepRecord
from turnout.service.operate.verbs import Emit
from turnout.testing import run as run_flow

paid = event("order.paid")
cancelled = event("order.cancelled")

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


# ---------------------------------------------------------------- which is first


async def run_async(flow: Any, data: Any = None, **more: Any) -> Any:
    return await asyncio.to_thread(run_flow, flow, data, **more)


# ---------------------------------------------------------------- changed code


async def two() -> None:
    await first(approval("a"), sleep("1h"))
    await note("z")


async def one() -> None:
    await sleep("1h")
    await note("z")

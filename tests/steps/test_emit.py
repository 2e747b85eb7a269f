"""Events that runs emit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.support.running import running
from turnout import (
    emit,
    event,
    flow,
    sleep,
)
from turnout.service.domain.event import Event
from turnout.service.domain.event_types import problem_of_emit
from turnout.service.journal.records import Filter

from .waiting_runs import nothing_done

__all__ = ["nothing_done"]  # the fixture


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


@flow
async def tells(data: str) -> str:
    return await emit(f"order {data}")


async def test_a_type_that_no_flow_can_listen_to_is_not_emitted(tmp_path: Path) -> None:
    async with running(tmp_path, [tells]) as service:
        run = await service.finished((await service.send("sold")).runs[0])
        events = await service.process.journal.events(Filter())
    assert run.error is not None and run.error.type == "ValueError"
    assert run.error.message == problem_of_emit("order sold")
    assert len(events) == 1

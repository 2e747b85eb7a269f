"""An event is handed back to its source while another run awaits the run it has started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, running
from turnout import flow, unique
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import Receipt


class Job:
    """A flow that is fed by a source with an order, and two runs that call it, one with a retry."""

    def __init__(self) -> None:
        self.ran: list[str] = []

        @flow(ordered_by=lambda _event: "k", unique=unique(lambda event: event.data["id"]))
        async def work(data: dict[str, Any]) -> str:
            self.ran.append(data["from"])
            return "done"

        @flow
        async def calls() -> Any:
            return await work({"id": 1, "from": "call"})

        @flow(retry=1)
        async def calls_again() -> Any:
            return await work({"id": 1, "from": "call"})

        self.work, self.calls, self.calls_again = work, calls, calls_again
        self.flows: list[Flow[..., Any]] = [work, calls, calls_again]

    async def send(self, service: Running, to: Flow[..., Any], event: str) -> Receipt:
        service.emitter.flows = lambda _event: (to,)
        return await service.send({"id": 1, "from": "source"}, event_id=event)

    async def awaiting(self, service: Running, caller: Flow[..., Any]) -> str:
        """Call the flow, and wait until the caller waits for the run that the source has begun."""
        run_id = (await self.send(service, caller, "caller")).runs[0]
        await service.until(run_id, RunState.WAITING)
        return run_id


@pytest.mark.parametrize("listed", ["after the call", "before the call"])
async def test_who_awaits_it_as_unique_work_fails_and_it_comes_again(
    tmp_path: Path, listed: str
) -> None:
    job = Job()
    async with running(tmp_path, job.flows) as service:
        service.process.dispatcher.pause("work")
        record = await job.send(service, job.work, "record")
        async with service.emitter.handing_back() as hand_back:
            backlog = await hand_back.backlog()
            if listed == "before the call":
                caller = await job.awaiting(service, job.calls)
        if listed == "after the call":
            caller = await job.awaiting(service, job.calls)
        service.emitter.flows = lambda _event: (job.work,)
        async with service.emitter.handing_back() as hand_back:
            if listed == "after the call":
                backlog = await hand_back.backlog()
            assert list(backlog.waiting) == ["record"]
            await hand_back.withdraw(list(backlog.waiting.values()), {})
        async with asyncio.timeout(5):
            failed = await service.finished(caller)
        assert failed.state is RunState.FAILED and failed.error is not None
        assert failed.error.type == "gone" and "another member" in failed.error.message
        assert await service.process.journal.run(record.runs[0]) is None
        again = await job.send(service, job.work, "record")
        service.process.dispatcher.resume("work")
        assert not again.duplicate
        assert (await service.finished(again.runs[0])).state is RunState.SUCCEEDED
    assert job.ran == ["source"]


async def test_a_retry_has_the_work_done_by_a_run_of_its_own(tmp_path: Path) -> None:
    job = Job()
    async with running(tmp_path, job.flows) as service:
        service.process.dispatcher.pause("work")
        await job.send(service, job.work, "record")
        caller = await job.awaiting(service, job.calls_again)
        service.emitter.flows = lambda _event: (job.work,)
        async with service.emitter.handing_back() as hand_back:
            backlog = await hand_back.backlog()
            await hand_back.withdraw(list(backlog.waiting.values()), {})
        service.process.dispatcher.resume("work")
        async with asyncio.timeout(10):
            assert (await service.finished(caller)).state is RunState.SUCCEEDED
    assert job.ran == ["call"]

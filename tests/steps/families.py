"""Runs and their child runs: how tests start them, and what they ask of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.support.running import Running, eventually
from turnout import flow, sleep, task
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Filter

done: list[str] = []
"""What the tasks really did, in order."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@task
async def note(word: str) -> str:
    done.append(word)
    return word


def start(service: Running, parent: Any) -> None:
    """Let the test's trigger start the parent only."""
    service.emitter.flows = lambda _event: (parent,)


async def run_of(service: Running, parent: Any, data: Any = None) -> Run:
    start(service, parent)
    return await service.finished((await service.send(data)).runs[0])


async def until_state(service: Running, run_id: str, state: RunState) -> None:
    async def reached() -> bool:
        return (await service.run(run_id)).state is state

    await eventually(reached)


async def runs_of(service: Running, flow_name: str) -> list[Run]:
    return await service.process.journal.runs(Filter(flow=flow_name, limit=1000))


def result(run: Run) -> Any:
    assert run.state is RunState.SUCCEEDED, run
    return orjson.loads(run.result or b"null")


@flow
async def slow(data: str) -> str:
    await note(f"slow {data}")
    await sleep("150ms")
    return data


@flow
async def patient() -> str:
    return await slow("child") + "!"

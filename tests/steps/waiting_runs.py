"""Runs that wait: how tests start them, and what they note."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.running import Running, eventually
from turnout import (
    event,
    flow,
    task,
    wait_for,
)
from turnout.service.domain.run import RunState

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


async def is_waiting(service: Running, run_id: str) -> None:
    async def waits() -> bool:
        return (await service.run(run_id)).state is RunState.WAITING

    await eventually(waits)


proceed: list[asyncio.Event] = []


@task
async def hesitate() -> None:
    async with asyncio.timeout(5):
        await proceed[0].wait()


@flow(awaits=[paid])
async def late(data: dict[str, Any]) -> Any:
    await hesitate()
    return (await wait_for(paid, match=lambda event: event.data["order"] == data["id"])).data

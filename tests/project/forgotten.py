"""Tasks and flows whose calls tests forget to await."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from tests.support.running import Running
from turnout import task
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Run

T = TypeVar("T")

done: list[str] = []
"""What the tasks really did, in order."""

handed: list[asyncio.Task[Any]] = []
"""The asyncio tasks that flows and tasks of these tests made themselves."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    handed.clear()


@task
async def work(what: Any) -> str:
    await asyncio.sleep(0.02)
    done.append(str(what))
    return str(what)


@task
async def endless(what: str) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        done.append(f"{what} was ended")


def in_a_task(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Hand a call to an asyncio task of the author's own."""
    made = asyncio.get_running_loop().create_task(call)
    handed.append(made)
    return made


async def end_of(service: Running, function: Flow[..., Any]) -> Run:
    service.emitter.flows = lambda _event: (function,)
    return await service.finished((await service.send()).runs[0])

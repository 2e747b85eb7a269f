"""Runs that register undos and a hook, and what was done for them in the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.attempts import Attempts
from turnout import Event, Fail, RunError, current, flow, retry, task
from turnout.service.domain.run import Outcome, RunState

done: list[str] = []
broken: set[str] = set()
hanging: dict[str, asyncio.Event] = {}
"""What the functions really did; which of them fail; which one hangs, and that it was reached."""


@pytest.fixture(autouse=True)
def all_well() -> None:
    done.clear()
    broken.clear()
    hanging.clear()


async def hang_if(what: str) -> None:
    if what in hanging:
        hanging[what].set()
        await asyncio.Event().wait()


def act(what: str) -> None:
    done.append(what)
    if what in broken:
        raise OSError(f"no {what}")


@task
async def book(what: str) -> str:
    await hang_if(what)
    act(what)
    return what


@task(retry=retry(1, delay="1ms"))
async def cancel(what: str) -> None:
    await hang_if(f"cancel {what}")
    act(f"cancel {what}")


async def give_back(what: str, *, fast: bool) -> None:
    await hang_if(f"give back {what}")
    act(f"give back {what}{' fast' * fast}")


async def tell(error: RunError, event: Event) -> None:
    await hang_if("tell")
    done.append(f"{error.type} in {error.step} of {event.id}")
    if "tell" in broken:
        raise OSError("no mail today")


@flow(retry=retry(1, delay="1ms"), on_failure=tell)
async def trip() -> str:
    current().on_undo(cancel, await book("flight"))
    current().on_undo(give_back, await book("hotel"), fast=True)
    current().on_undo(cancel, await book("car"))
    return await book("dinner")


async def reach(run: Attempts, flow: Any, where: str) -> None:
    """Execute until the function `where` is reached, and be killed there."""
    reached = hanging[where] = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        attempt = tasks.create_task(run.execute(flow))
        async with asyncio.timeout(5):
            await reached.wait()
        attempt.cancel()
    hanging.clear()


# ---------------------------------------------------------------- when the process dies


def error_of(outcome: Outcome) -> RunError:
    assert outcome.state is RunState.FAILED and outcome.error is not None
    return outcome.error


# ---------------------------------------------------------------- told again, refused


@flow(on_failure=tell)
async def short() -> None:
    await book("table")


@task
def hook() -> None:
    done.append(f"hook of {current().run.flow}")


@flow(on_failure=hook)
def in_a_thread() -> None:
    current().on_undo(cancel, "boat")
    raise Fail("no boat")

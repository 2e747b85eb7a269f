"""Flows whose runs register undos, some of which fail, and what tests ask of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.running import PATIENCE_SECONDS, Running, eventually
from turnout import Event, Fail, RunError, current, flow, task
from turnout.service.domain.run import Run
from turnout.service.journal.records import Filter

done: list[str] = []
keys: dict[str, set[str]] = {}
broken: set[str] = set()
stops: dict[str, asyncio.Event] = {}
"""What was really done, under which keys, what of it fails, and what waits before it is done."""


@pytest.fixture(autouse=True)
def all_well() -> None:
    for each in (done, keys, broken, stops):
        each.clear()


async def act(what: str) -> None:
    keys.setdefault(what, set()).add(current().key())
    done.append(what)
    if what in stops:
        await stops[what].wait()
    if what in broken:
        raise OSError(f"no {what}")


@task
async def charge(what: str) -> str:
    await act(f"charge {what}")
    return what


@task
async def refund(what: str) -> None:
    await act(f"refund {what}")


def tell(error: RunError, event: Event) -> None:
    done.append(f"told {error.type} {list(error.undo_failed)}")


@flow(on_failure=tell)
async def order() -> None:
    for what in ("a", "b", "c"):
        current().on_undo(refund, await charge(what))
    if "order" in stops:
        await act("order")
    raise Fail("no stock")


async def dead(service: Running) -> list[str]:
    return [run.id for run in await service.process.journal.runs(Filter(dead=True))]


async def ended(service: Running, run_id: str) -> Run:
    """Wait until a run has ended, also one that had ended before."""

    async def has_ended() -> bool:
        return (await service.run(run_id)).finished_at is not None

    await eventually(has_ended)
    return await service.run(run_id)


async def reached(what: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while what not in done:  # noqa: ASYNC110  a fact of a list has no event
            await asyncio.sleep(0.002)


def metric(service: Running) -> str:
    lines = service.process.metrics.render().decode().splitlines()
    return next((line for line in lines if line.startswith("turnout_undo_failed{")), "")

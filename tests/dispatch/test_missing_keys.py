"""A rule that is declared while runs wait: a run whose key it cannot compute fails, as a whole.

The children it waited for are stopped, and nothing keeps its place or theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, running
from turnout import flow, limit, sleep
from turnout.service.app.reload import reload_project
from turnout.service.dispatch.missing_keys import add_missing_keys
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.project import Project
from turnout.testing.clock import START, Clock


def no_key(event: Event) -> str:
    if event.data.get("bad"):
        raise ValueError("no key")
    return "a"


async def send_to(service: Running, to: Flow[..., Any], data: dict[str, Any]) -> str:
    service.emitter.flows = lambda _event: (to,)
    return (await service.send(data)).runs[0]


def parent_of(child: Any, **policy: Any) -> Any:
    @flow(name="parent", **policy)
    async def parent(event: Event) -> None:
        await child(event.data["child"])

    return parent


async def child_of(service: Running, run_id: str, state: RunState) -> str:
    """Wait until the child that a run waits for is in a state; return its id."""
    await service.until(run_id, RunState.WAITING)
    run = await service.run(run_id)
    (step,) = await service.process.journal.steps(run.seq)
    assert step.origin is not None
    await service.until(step.origin, state)
    return step.origin


@asynccontextmanager
async def failed_parent(
    folder: Path, child: Any, data: dict[str, Any], state: RunState, *first: dict[str, Any]
) -> AsyncIterator[tuple[Running, str]]:
    """Let a reload fail a run that waits for a child in a state, behind the `first` runs."""
    async with running(folder, [parent_of(child), child]) as service:
        for each in first:
            await send_to(service, child, each)
        parent = await send_to(service, parent_of(child), {"bad": True, "child": data})
        child_id = await child_of(service, parent, state)
        keyed = parent_of(child, concurrency=limit(1, per=no_key, hold="run"))
        await reload_project(service.process, Project.of([keyed, child]))
        failed = await service.run(parent)
        assert failed.state is RunState.FAILED and failed.error is not None
        assert failed.error.type == "filter_error"
        cancelled = await service.run(child_id)
        assert cancelled.state is RunState.CANCELLED
        assert cancelled.reason == f"run {parent}, which waits for it, has ended"
        yield service, child_id


async def test_its_running_child_is_stopped(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    @flow
    async def child(data: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            stopped.set()
            raise

    async with failed_parent(tmp_path, child, {}, RunState.RUNNING):
        async with asyncio.timeout(5):
            await stopped.wait()


async def test_its_waiting_child_keeps_no_place(tmp_path: Path) -> None:
    @flow(concurrency=limit(1, hold="run"))
    async def child(data: dict[str, Any]) -> None:
        if data["sleep"]:
            await sleep("1h")

    async with failed_parent(tmp_path, child, {"sleep": True}, RunState.WAITING) as (service, _):
        async with asyncio.timeout(5):
            await service.finished(await send_to(service, child, {"sleep": False}))


async def test_its_queued_child_keeps_no_ordering_key(tmp_path: Path) -> None:
    """It has taken its key, and waits for a table that is busy for as long as it likes."""
    go = asyncio.Event()

    @flow(
        ordered_by=lambda event: event.data["account"],
        concurrency=limit(1, per=lambda event: event.data["table"]),
    )
    async def child(data: dict[str, Any]) -> None:
        if data["account"] == "busy":
            await go.wait()

    busy, data = {"account": "busy", "table": 1}, {"account": "a", "table": 1}
    async with failed_parent(tmp_path, child, data, RunState.QUEUED, busy) as (service, _):
        after = await send_to(service, child, {"account": "a", "table": 2})
        async with asyncio.timeout(5):
            assert (await service.finished(after)).state is RunState.SUCCEEDED
        go.set()


def ordered(**policy: Any) -> Any:
    @flow(name="ordered", ordered_by=lambda event: event.data["account"], **policy)
    async def work(event: Event) -> None:
        if event.data.get("bad"):
            await sleep("1h")

    return work


@pytest.mark.parametrize("hold", ["run", "attempt"])
@pytest.mark.parametrize("on_dead", ["continue", "block"])
async def test_it_keeps_its_ordering_key_only_where_a_dead_letter_blocks_it(
    tmp_path: Path, hold: str, on_dead: Any
) -> None:
    """With `hold="run"` its key is computed by the reload, else when it is due."""
    clock = Clock(START)
    before = ordered(on_dead=on_dead)
    async with running(tmp_path, [before], now=clock.now) as service:
        bad = await send_to(service, before, {"account": "a", "bad": True})
        await service.until(bad, RunState.WAITING)
        held: Any = {"hold": "run"} if hold == "run" else {}
        keyed = ordered(on_dead=on_dead, concurrency=limit(1, per=no_key, **held))
        await reload_project(service.process, Project.of([keyed]))
        clock.set(START + timedelta(hours=2))
        service.process.clock_set()
        await service.until(bad, RunState.FAILED)
        after = await send_to(service, keyed, {"account": "a"})
        other = await send_to(service, keyed, {"account": "b"})
        async with asyncio.timeout(5):
            await service.finished(other)
            if on_dead == "continue":
                await service.finished(after)
        if on_dead == "block":
            assert (await service.run(after)).state is RunState.QUEUED


async def test_it_blocks_its_ordering_key_although_it_has_never_held_it(tmp_path: Path) -> None:
    before = ordered(on_dead="block")
    async with running(tmp_path, [before]) as service:
        service.process.dispatcher.pause("ordered")
        bad = await send_to(service, before, {"account": "a", "bad": True})
        after = await send_to(service, before, {"account": "a"})
        other = await send_to(service, before, {"account": "b"})
        keyed = ordered(on_dead="block", concurrency=limit(1, per=no_key))
        await reload_project(service.process, Project.of([keyed]))
        service.process.dispatcher.resume("ordered")
        async with asyncio.timeout(5):
            await service.finished(other)
        assert (await service.run(bad)).state is RunState.FAILED
        assert (await service.run(after)).state is RunState.QUEUED


async def test_it_is_a_filter_error_and_those_who_wait_for_it_are_told(tmp_path: Path) -> None:
    before = ordered()
    async with running(tmp_path, [before]) as service:
        bad = await send_to(service, before, {"account": "a", "bad": True})
        await service.until(bad, RunState.WAITING)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            told = tasks.create_task(service.process.waiters.result(bad, 30, is_new=True))
            keyed = ordered(concurrency=limit(1, per=no_key, hold="run"))
            await reload_project(service.process, Project.of([keyed]))
        shown = service.process.metrics.render()
    assert b'turnout_filter_errors_total{flow="ordered"} 1.0' in shown
    outcome = told.result()
    assert outcome is not None and outcome.state is RunState.FAILED
    assert outcome.error is not None and outcome.error.type == "filter_error"


async def test_a_run_that_is_handed_back_while_its_key_is_asked_for_is_passed_over(
    tmp_path: Path,
) -> None:
    keyed = ordered(concurrency=limit(1, per=no_key))
    async with running(tmp_path, [ordered()]) as service:
        journal = service.process.journal
        service.process.dispatcher.pause("ordered")
        gone = await send_to(service, ordered(), {"account": "a"})
        left = await send_to(service, ordered(), {"account": "b"})
        rows = await journal.queued("ordered", 0, 9)
        trigger = (await service.run(gone)).trigger
        waiting = (await journal.backlog(trigger, ["ordered"])).waiting
        await journal.withdraw([*waiting.values()][:1], trigger=trigger, positions={}, now=START)
        failed: list[Any] = []
        found = await add_missing_keys(
            journal, keyed, rows, lambda: START, lambda *ended: failed.append(ended)
        )
        assert [row.id for row in found] == [left]
        assert failed == []

"""Runs that wait for each other's slots at named limits: one of them fails and says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.running import Running, eventually, running
from turnout import flow, limit, task
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import SetLimit

Call = Callable[[], Coroutine[Any, Any, None]]


@task(limit=limit("a", 1))
async def use_a() -> None: ...


@task(limit=limit("b", 1))
async def use_b() -> None: ...


@task(limit=limit("c", 1))
async def use_c() -> None: ...


class Together:
    """Flows of which each has a slot of one limit before one of them calls its task."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._all = asyncio.Event()

    def flow(self, name: str, holds: Any, call: Call) -> Flow[..., Any]:
        @flow(name=name, when=lambda event: event.data == name, concurrency=holds)
        async def works(event: Event) -> None:
            self._missing -= 1
            if not self._missing:
                self._all.set()
            await self._all.wait()
            await call()

        return works


async def ended(service: Running, *names: str) -> dict[str, str | None]:
    """Send each flow an event; return what their runs fail by in the end, by flow."""
    for name in names:
        await service.send(name)
    runs = await service.all_finished()
    for run in runs:
        assert (run.error is None) == (run.state is RunState.SUCCEEDED)
    return {run.flow: None if run.error is None else run.error.message for run in runs}


async def waits(service: Running, name: str, count: int) -> None:
    """Wait until so many tries wait for a limit."""

    async def waiting() -> bool:
        limits = service.process.dispatcher.named_limits()
        return any(gate.waiting == count for gate, _ in limits if gate.named == name)

    await eventually(waiting)


async def test_of_two_runs_that_wait_for_each_others_place_one_fails_by_name(
    tmp_path: Path,
) -> None:
    both = Together(2)
    imports = both.flow("imports", limit("a", 1), use_b)
    exports = both.flow("exports", limit("b", 1), use_a)
    async with running(tmp_path, [imports, exports]) as service:
        errors = await ended(service, "imports", "exports")
        other = {run.flow: run.id for run in await service.all_finished()}
        (failed,) = [name for name, error in errors.items() if error]
        kept, wanted, held_by = {
            "imports": ("b", "a", "exports"),
            "exports": ("a", "b", "imports"),
        }[failed]
        assert errors[failed] == (
            f"step 'use_{kept}#1' of flow '{failed}' would wait for ever: run {other[held_by]} has "
            f'a slot of limit("{kept}", 1) until it ends, and waits for one of '
            f'limit("{wanted}", 1), which this run has until it ends; let a flow take both at '
            f'once, concurrency=[limit("{wanted}", 1), limit("{kept}", 1)], and its tasks none'
        )
        assert errors[held_by] is None, "the other one goes on"
        assert [gate.used() for gate, _ in service.process.dispatcher.named_limits()] == [{}, {}]


async def test_a_deadlock_of_three_limits_is_noticed(tmp_path: Path) -> None:
    three = Together(3)
    flows = [
        three.flow("first", limit("a", 1), use_b),
        three.flow("second", limit("b", 1), use_c),
        three.flow("third", limit("c", 1), use_a),
    ]
    async with running(tmp_path, flows) as service:
        errors = await ended(service, "first", "second", "third")
    assert sum(error is not None for error in errors.values()) == 1


async def test_a_chain_of_limits_that_is_no_deadlock_is_waited_for(tmp_path: Path) -> None:
    three = Together(3)

    async def nothing() -> None: ...

    flows = [
        three.flow("first", limit("a", 1), use_b),
        three.flow("second", limit("b", 1), use_c),
        three.flow("third", limit("c", 1), nothing),
    ]
    async with running(tmp_path, flows) as service:
        errors = await ended(service, "first", "second", "third")
    assert errors == {"first": None, "second": None, "third": None}


@asynccontextmanager
async def waiting_for_each_other_and_a_third(
    folder: Path,
) -> AsyncIterator[tuple[Running, asyncio.Event]]:
    """Two slots of `a`: one is in a deadlock, the other one's run ends when the event is set."""
    go = asyncio.Event()

    @task(limit=limit("a", 2))
    async def use_one_of_two() -> None: ...

    async def wait() -> None:
        await go.wait()

    three = Together(3)
    flows = [
        three.flow("imports", limit("a", 2), use_b),
        three.flow("exports", limit("b", 1), use_one_of_two),
        three.flow("slow", limit("a", 2), wait),
    ]
    async with running(folder, flows) as service:
        for name in ("imports", "exports", "slow"):
            await service.send(name)
        await waits(service, "a", 1)
        await waits(service, "b", 1)
        yield service, go


async def test_a_place_that_a_third_run_frees_is_waited_for(tmp_path: Path) -> None:
    async with waiting_for_each_other_and_a_third(tmp_path) as (service, go):
        go.set()
        runs = await service.all_finished()
    assert [run.error for run in runs] == [None] * 3


async def test_a_limit_that_is_lowered_leaves_nobody_waiting_for_ever(tmp_path: Path) -> None:
    async with waiting_for_each_other_and_a_third(tmp_path) as (service, go):
        await service.process.operator.do(SetLimit("a", 1, timedelta(hours=1)))
        go.set()
        runs = await service.all_finished()
    failed = [run.flow for run in runs if run.state is RunState.FAILED]
    assert failed == ["exports"], "the try that waits for the limit that was lowered"

"""A run that a gate refuses starts when the gate said it would, and holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit
from turnout.service.dispatch import alarms
from turnout.service.domain.event import Event
from turnout.service.domain.units import utc_now
from turnout.service.flowcontrol import admission
from turnout.service.flowcontrol.gate import Answer, Candidate, Gate
from turnout.service.project import AnyFlow


class OneAnInterval(Gate):
    """At most one start an interval; with `by_key`, one for each limit key."""

    name = "interval"

    def __init__(self, interval: timedelta, *, by_key: bool) -> None:
        self.interval = interval
        self.by_key = by_key
        self.free_at: dict[str | None, datetime] = {}
        self.entered: list[datetime] = []

    def key(self, run: Candidate) -> str | None:
        return run.keys["limit"] if self.by_key and run.keys else None

    def check(self, run: Candidate, now: datetime) -> Answer:
        free_at = self.free_at.get(self.key(run))
        return None if free_at is None or now >= free_at else free_at

    def enter(self, run: Candidate, now: datetime) -> None:
        self.entered.append(now)
        self.free_at[self.key(run)] = now + self.interval


class OneATime(Gate):
    """One run at a time of each event type: a key that the journal does not store."""

    name = "type"

    def __init__(self) -> None:
        self.inside = 0

    def key(self, run: Candidate) -> str | None:
        return "test"

    def check(self, run: Candidate, now: datetime) -> Answer:
        return "behind" if self.inside else None

    def enter(self, run: Candidate, now: datetime) -> None:
        self.inside += 1

    def leave(self, run: Candidate) -> None:
        self.inside -= 1


def register(monkeypatch: pytest.MonkeyPatch, make: Callable[[AnyFlow], Gate | None]) -> None:
    """Add a gate, as a contributor would with one line."""
    gates = (*admission.GATES, lambda flow, _named: filter(None, [make(flow)]))
    monkeypatch.setattr(admission, "GATES", gates)


async def send(service: Running, *data: Any) -> None:
    await service.emitter([make_event(one) for one in data])


async def test_runs_behind_a_timed_gate_start_at_its_instants_and_others_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = OneAnInterval(timedelta(milliseconds=60), by_key=False)
    register(monkeypatch, lambda flow: gate if flow.name == "paced" else None)
    seen: list[Any] = []

    @flow
    async def paced(event: Event) -> None:
        seen.append(event.data)

    @flow
    async def free(event: Event) -> None:
        seen.append("free")

    async with running(tmp_path, [paced, free]) as service:
        service.emitter.flows = lambda _event: (paced,)
        await send(service, 1, 2, 3, 4)
        service.emitter.flows = lambda _event: (free,)
        await send(service, 0)
        await service.all_finished()
    assert [each for each in seen if each != "free"] == [1, 2, 3, 4]
    assert seen.index("free") < 3
    starts = gate.entered
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert min(waits) >= gate.interval
    assert max(waits) < timedelta(seconds=5), "asked again at the instant, not by the next look"


async def test_a_timed_key_holds_up_only_its_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = OneAnInterval(timedelta(milliseconds=60), by_key=True)
    register(monkeypatch, lambda flow: gate)
    seen: list[tuple[str, int]] = []

    @flow(concurrency=limit(9, per=lambda event: event.data[0]))
    async def paced(event: Event) -> None:
        seen.append(tuple(event.data))

    async with running(tmp_path, [paced]) as service:
        await send(service, ("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("c", 1))
        await service.all_finished()
    for key in "abc":
        numbers = [number for name, number in seen if name == key]
        assert numbers == sorted(numbers)
    assert set(seen[:3]) == {("a", 1), ("b", 1), ("c", 1)}
    assert len(seen) == 6


async def test_a_run_behind_a_key_starts_when_the_key_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = OneATime()
    register(monkeypatch, lambda flow: gate)
    now, most, seen = 0, 0, []

    @flow
    async def alone(event: Event) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        seen.append(event.data)
        now -= 1

    async with running(tmp_path, [alone]) as service:
        await send(service, *range(300))  # more than a window: none may be evicted
        await service.all_finished()
    assert (most, seen) == (1, list(range(300)))


async def test_a_gate_is_asked_again_when_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = timedelta(0)
    gate = OneAnInterval(timedelta(hours=1), by_key=False)
    register(monkeypatch, lambda flow: gate)

    @flow
    async def paced(event: Event) -> None: ...

    async with running(tmp_path, [paced], now=lambda: utc_now() + ahead) as service:
        await send(service, 1, 2)

        async def waits() -> bool:
            return service.process.dispatcher.next_alarm_at() is not None

        await eventually(waits)
        ahead = timedelta(hours=2)
        service.process.dispatcher.clock_set()
        await service.all_finished()
    assert len(gate.entered) == 2


async def test_what_waits_for_an_instant_is_not_asked_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "MAX_SECONDS", 0.01)
    asked = 0

    class Counting(OneAnInterval):
        def check(self, run: Candidate, now: datetime) -> Answer:
            nonlocal asked
            asked += 1
            return super().check(run, now)

    gate = Counting(timedelta(hours=1), by_key=False)
    register(monkeypatch, lambda flow: gate)

    @flow
    async def paced(event: Event) -> None: ...

    async with running(tmp_path, [paced]) as service:
        await service.finished((await service.send(1)).runs[0])
        await service.send(2)

        async def waits() -> bool:
            return service.process.dispatcher.next_alarm_at() is not None

        await eventually(waits)
        before = asked
        await asyncio.sleep(0.1)  # ten looks at the time
        assert asked == before

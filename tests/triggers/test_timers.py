"""Ticks: what they are, when they come, and what each kind of timer promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract, watch
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Receipt
from turnout.service.journal.contract import Journal
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Appended, Entry, Move
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.timers import Timer, at, cron, every

from .virtual_time import (
    DAY,
    HOUR,
    MINUTE,
    START,
    Wall,
    clock,
    dues,
    missed,
    passes,
    running,
    virtually,
)

# ---------------------------------------------------------------- a tick


def test_a_tick_is_an_event_with_a_stable_identity() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(cron("*/15 * * * *", tz="Europe/Berlin"), emit):
            await passes(HOUR)
        assert dues(emit) == [clock(9, 15), clock(9, 30), clock(9, 45), clock(10)]
        event = emit.events[0]
        assert event.data == {"due": "2026-03-02T09:15:00Z"}
        assert event.type == "turnout.timer.tick"
        assert event.source == "turnout:timers/cron%3A%2A%2F15%20%2A%20%2A%20%2A%20%2A"
        assert event.id.startswith("cron-") and event.id.endswith("-20260302T091500Z")
        assert event.trigger == "cron:*/15 * * * *"
        assert event.extensions == {}
        assert not event.minted
        assert emit.stored_positions["tick"] == "2026-03-02T10:00:00Z"

    virtually(story)


def test_ticks_come_at_their_instant_and_waiting_costs_next_to_nothing() -> None:
    emitted_at: list[datetime] = []

    class Noting(RecordingEmitter):
        async def __call__(self, *arguments: Any, **more: Any) -> Any:
            emitted_at.append(self.now())
            return await super().__call__(*arguments, **more)

    async def story(wall: Wall, _: RecordingEmitter) -> None:
        emit = Noting(wall)
        async with running(every("1h"), emit):
            emitted_at.clear()
            wall.looks = 0
            await passes(10 * HOUR)
        assert wall.looks < 10 * 3600 / 15 + 50, "looks about twice in half a minute"
        late = [at - due for at, due in zip(emitted_at, dues(emit), strict=True)]
        assert len(late) == 10
        assert all(timedelta(0) <= lateness < timedelta(milliseconds=1) for lateness in late)

    virtually(story)


def test_the_first_start_owes_nothing_for_the_time_before() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("1h", missed="run_all"), emit):
            await passes(30 * MINUTE)
            assert emit.is_up
        assert not emit.events
        assert emit.stored_positions["tick"] == "2026-03-02T09:01:00Z"

    virtually(story)


def test_a_tick_missed_right_after_the_first_start_is_owed() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(cron("0 12 * * *"), emit):
            await passes(MINUTE)
        wall.set_by += 5 * HOUR
        async with running(cron("0 12 * * *"), emit):
            await passes(MINUTE)
        assert dues(emit) == [clock(12)]
        assert missed(emit.events[0]) == 1

    virtually(story)


# ---------------------------------------------------------------- from start, once, jitter


def test_an_interval_from_the_start_keeps_its_phase_over_restarts() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = every("1h", start="now")
        async with running(timer, emit):
            await passes(timedelta(hours=1, minutes=10))
        assert dues(emit) == [clock(10, 1)]
        async with running(timer, emit):
            await passes(HOUR)
        assert dues(emit) == [clock(10, 1), clock(11, 1)]
        assert emit.stored_positions["start"] == "2026-03-02T09:01:00Z"

    virtually(story)


def test_at_ticks_once_and_never_again() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = at("2026-03-02T11:00", tz="Europe/Berlin")
        async with running(timer, emit):
            await passes(2 * HOUR)
        async with running(timer, emit):
            await passes(DAY)
        assert dues(emit) == [clock(10)]

    virtually(story)


def test_at_missed_while_stopped_ticks_at_the_start() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = at(clock(10))
        async with running(timer, emit):
            await passes(MINUTE)
        wall.set_by += DAY
        async with running(timer, emit):
            await passes(MINUTE)
        assert [(event.time, missed(event)) for event in emit.events] == [(clock(10), 1)]

    virtually(story)


def test_at_an_instant_past_before_the_first_start_is_counted_and_never_ticks() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        for _ in range(2):
            async with running(at("2020-01-01T00:00Z"), emit):
                await passes(MINUTE)
                assert emit.is_up
        assert not emit.events
        assert emit.rejected["missed"] == 1

    virtually(story)


def test_jitter_delays_the_start_and_keeps_the_due_time_and_the_identity() -> None:
    timer = every("1h", jitter="30m", name="report")

    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(timer, emit):
            await passes(59 * MINUTE + timer.starts_at(clock(10)) - clock(10) - MINUTE)
            assert not emit.events
            await passes(2 * MINUTE)
            assert dues(emit) == [clock(10)]
            assert emit.events[0].id == every("1h", name="report").event(clock(10)).id

    virtually(story)


@given(st.integers(0, 10**6), st.sampled_from(["a", "b"]))
def test_jitter_depends_on_name_and_due_only(hours: int, name: str) -> None:
    due = START + hours * HOUR
    timer = every("1h", jitter="30m", name=name)
    delay = timer.starts_at(due) - due
    assert timedelta(0) <= delay < 30 * MINUTE
    assert every("1h", jitter="30m", name=name).starts_at(due) - due == delay
    assert every("1h", jitter="30m", name=name + "x").starts_at(due) - due != delay


def test_jitter_spreads_timers_evenly() -> None:
    delays = sorted(
        (every("1h", jitter="10m", name=f"timer {n}").starts_at(clock(10)) - clock(10)) / MINUTE
        for n in range(1000)
    )
    assert max(b - a for a, b in pairwise(delays)) < 0.2


# ---------------------------------------------------------------- the contract, on the real loop


class TimerCase:
    """A timer whose clock stands still, just before it is due, until input is made."""

    keeps_input = True

    def __init__(self, timer: Timer, start: datetime) -> None:
        self._timer = timer
        self._due = start
        self._now = start
        self._made: list[datetime] = []
        self._emit = self.emitter()
        self._move()

    def emitter(self) -> RecordingEmitter:
        return RecordingEmitter(lambda: self._now)

    @asynccontextmanager
    async def watching(self, emit: RecordingEmitter) -> AsyncIterator[None]:
        self._emit = emit
        async with watch(self._timer, emit):
            yield

    async def make_input(self) -> None:
        self._made.append(self._due)
        self._move()

    async def redeliver(self) -> None:
        self._emit.rewind()

    def acknowledged(self) -> int:
        stored = self._emit.stored_positions.get("tick")
        if stored is None:
            return 0
        return sum(due <= datetime.fromisoformat(stored) for due in self._made)

    def _move(self) -> None:
        due = self._timer.schedule.next_after(self._due)
        assert due is not None
        self._due = due
        self._now = due - timedelta(milliseconds=20)


class TestTimersKeepTheContract(TriggerContract):
    @pytest.fixture(
        params=[
            every("100ms"),
            every("30s", missed="skip"),
            cron("* * * * * *", tz="Europe/Berlin", missed="run_all"),
        ],
        ids=lambda timer: timer.name,
    )
    def case(self, request: pytest.FixtureRequest) -> TriggerCase:
        return TimerCase(request.param, START)


class JournalEmitter(RecordingEmitter):
    """Stores in the real journal; `receipts` says what became of each event."""

    def __init__(self, journal: Journal, trigger: str, now: Callable[[], datetime]) -> None:
        super().__init__(now)
        self._journal = journal
        self._trigger = trigger
        self.receipts: list[Appended] = []

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] | None = None,
        **_more: Any,
    ) -> Sequence[Receipt]:
        entries = [Entry(event=event) for event in events]
        known = await self.positions()
        moves = {each: Move(known.get(each), to) for each, to in (positions or {}).items()}
        stored = await self._journal.append(
            entries, trigger=self._trigger, positions=moves, now=self.now()
        )
        self.receipts += stored
        return [Receipt(event=one.event, duplicate=one.duplicate) for one in stored]

    async def positions(self) -> dict[str, str]:
        return await self._journal.positions(self._trigger)


async def test_the_real_journal_keeps_ticks_and_refuses_one_fired_twice(tmp_path: Path) -> None:
    timer = every("30s", missed="run_all")
    now = START
    seen: list[Appended] = []

    async def sitting(until: Callable[[JournalEmitter], bool]) -> None:
        journal = await open_journal(
            tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
        )
        emit = JournalEmitter(journal, timer.name, lambda: now)
        try:
            async with watch(timer, emit):
                await emit.until(lambda: until(emit))
        finally:
            seen.extend(emit.receipts)
            await journal.close()

    await sitting(lambda emit: emit.is_up)
    now += 2 * MINUTE
    await sitting(lambda emit: len(emit.receipts) == 4)
    assert [one.duplicate for one in seen] == [False] * 4
    await sitting(lambda emit: emit.is_up)
    assert len(seen) == 4, "a restart owes nothing that is stored"

    journal = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    tick = (await journal.positions(timer.name)).get("tick")
    await journal.append(
        [], trigger=timer.name, positions={"tick": Move(tick, START.isoformat())}, now=now
    )  # as after a restored position
    await journal.close()
    await sitting(lambda emit: len(emit.receipts) == 4)
    assert [(one.event, one.duplicate, one.conflict) for one in seen[4:]] == [
        (one.event, True, False) for one in seen[:4]
    ]


@pytest.mark.alone
async def test_real_ticks_come_in_time_and_never_early() -> None:
    lateness: list[float] = []

    class Noting(RecordingEmitter):
        async def __call__(self, *arguments: Any, **more: Any) -> Any:
            events = arguments[0]
            lateness.extend((self.now() - event.time).total_seconds() for event in events)
            return await super().__call__(*arguments, **more)

    emit = Noting()
    async with watch(every("100ms"), emit):
        await emit.stored(10)
    assert min(lateness) >= 0
    assert sorted(lateness)[5] < 0.05

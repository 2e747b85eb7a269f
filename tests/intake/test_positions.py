"""Positions move by compare-and-set: a reader that was overtaken stores nothing any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import Event, flow
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import Overloaded, PositionsMoved
from turnout.service.domain.trigger import Emitter, Seek, SeekPlan
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import SeekTrigger
from turnout.service.project import Project

SESSIONS: list[Emitter] = []
"""The emitters that the reader was run with, in order: its test writes through them."""

DURING_PLAN: list[Awaitable[object]] = []
"""What happens while a seek is planned."""

GATES: list[asyncio.Event] = []
"""Set while runs may end."""


@dataclass(frozen=True)
class Reader:
    """A trigger that reads its positions and leaves the rest to the test."""

    name: str = "reader"
    kind: str = "reader"
    reads: bool = True
    option: int = 0

    def check(self) -> None: ...

    async def run(self, emit: Emitter) -> None:
        if self.reads:
            await emit.positions()
        SESSIONS.append(emit)
        emit.up()
        await asyncio.Event().wait()

    async def plan(
        self, seek: Seek, positions: Mapping[str, str], connection: Mapping[str, Any]
    ) -> SeekPlan:
        if DURING_PLAN:
            await DURING_PLAN.pop()
        sentence = f"0: from {positions.get('0')} to {seek.to}"
        return SeekPlan(positions={"0": seek.to}, sentences=[sentence])


@asynccontextmanager
async def reading(
    folder: Path, reader: Reader | None = None, **chosen: Any
) -> AsyncIterator[Running]:
    """Serve a flow of the reader, with the reader running."""
    SESSIONS.clear()
    GATES.append(asyncio.Event())
    GATES[-1].set()
    async with running(folder, [flow_of(reader or Reader())], **chosen) as service:
        await service.process.start_triggers()
        await begun(1)
        yield service


def flow_of(reader: Reader) -> Any:
    @flow(on=reader)
    async def work(event: Event) -> None:
        await GATES[-1].wait()

    return work


async def begun(count: int) -> None:
    """Wait until the reader has begun so many times."""

    async def fact() -> bool:
        return len(SESSIONS) == count

    await eventually(fact)


async def stored(service: Running) -> tuple[dict[str, str], int]:
    """Return the reader's stored positions, and how many events are stored."""
    positions = await service.process.journal.positions("reader")
    return positions, len(await service.process.journal.events(Filter()))


async def test_a_seek_is_not_undone_by_a_reader_that_still_writes(tmp_path: Path) -> None:
    async with reading(tmp_path) as service:
        old = SESSIONS[0]
        await old([make_event()], {"0": "5"})
        await service.process.operator.do(SeekTrigger("reader", Seek(to="2")))
        await begun(2)
        for position in ("6", "2", "3"):  # whatever it thinks comes next
            with pytest.raises(PositionsMoved):
                await old([make_event()], {"0": position})
        assert await stored(service) == ({"0": "2"}, 1)
        await SESSIONS[1]([make_event()], {"0": "3"})
        assert await stored(service) == ({"0": "3"}, 2)


async def test_a_seek_counts_what_a_reader_was_still_writing(tmp_path: Path) -> None:
    async with reading(tmp_path) as service:
        gate = threading.Event()
        journal: Any = service.process.journal
        inside.occupy_writer(journal, gate.wait)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(SESSIONS[0]([make_event()], {"0": "5"}))
            await asyncio.sleep(0)  # it is submitted
            seek = SeekTrigger("reader", Seek(to="2"))
            seeking = tasks.create_task(service.process.operator.do(seek))
            await asyncio.sleep(0)
            gate.set()
        assert seeking.result().sentences == ["0: from 5 to 2"]
        assert await stored(service) == ({"0": "2"}, 1)


async def test_a_seek_is_planned_again_when_something_moves_the_positions_meanwhile(
    tmp_path: Path,
) -> None:
    async with reading(tmp_path) as service:
        old = SESSIONS[0]
        await old([make_event()], {"0": "5"})
        seek = SeekTrigger("reader", Seek(to="2"), dry_run=True)
        assert (await service.process.operator.do(seek)).sentences == ["0: from 5 to 2"]
        DURING_PLAN.extend([old([make_event()], {"0": "6"}), asyncio.sleep(0)])
        plan = await service.process.operator.do(replace(seek, dry_run=False))
        assert plan.sentences == ["0: from 6 to 2"]
        assert await stored(service) == ({"0": "2"}, 2)
        with pytest.raises(PositionsMoved):
            await old([make_event()], {"0": "7"})


async def test_writes_that_follow_each_other_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with reading(tmp_path) as service:
        emit = SESSIONS[0]
        await asyncio.gather(*(emit([make_event()], {"0": str(n)}) for n in range(20)))
        assert await stored(service) == ({"0": "19"}, 20)
        await emit([], {"0": None, "1": "1"})
        await emit([], {"0": "7"})
        assert (await stored(service))[0] == {"0": "7", "1": "1"}


async def test_a_write_that_the_journal_refuses_may_be_tried_again(tmp_path: Path) -> None:
    async with reading(tmp_path, max_unfinished_runs=1) as service:
        emit = SESSIONS[0]
        GATES[-1].clear()
        await emit([make_event()], {"0": "1"})
        with pytest.raises(Overloaded):
            await emit([make_event()], {"0": "2"})
        GATES[-1].set()
        await service.all_finished()
        await emit([make_event()], {"0": "2"})
        assert await stored(service) == ({"0": "2"}, 2)
        assert service.process.emitters["reader"].status.problem is None


async def test_a_reader_that_writes_before_it_has_read_moves_on_from_what_is_stored(
    tmp_path: Path,
) -> None:
    for position in ("1", "2"):
        async with reading(tmp_path, Reader(reads=False)) as service:
            await SESSIONS[0]([], {"0": position})
            assert (await stored(service))[0] == {"0": position}


async def test_a_reader_whose_settings_a_reload_changes_is_overtaken_by_the_new_one(
    tmp_path: Path,
) -> None:
    async with reading(tmp_path) as service:
        old = SESSIONS[0]
        await reload_project(service.process, Project.of([flow_of(Reader(option=1))]))
        await begun(2)
        await SESSIONS[1]([], {"0": "1"})
        with pytest.raises(PositionsMoved, match="reader"):
            await old([make_event()], {"0": "9"})
        assert await stored(service) == ({"0": "1"}, 0)


@dataclass(frozen=True)
class Overtaken(Reader):
    """A trigger that moves its position by one for each event, wherever it is by then."""

    async def run(self, emit: Emitter) -> None:
        SESSIONS.append(emit)
        last = int((await emit.positions()).get("0", "0"))
        emit.up()
        while True:
            last += 1
            await emit([make_event()], {"0": str(last)})
            await asyncio.sleep(0.001)


async def test_a_trigger_that_was_overtaken_starts_again_from_what_is_stored(
    tmp_path: Path,
) -> None:
    async with reading(tmp_path, Overtaken()) as service:
        process = service.process
        other = TriggerEmitter(Overtaken(), lambda _event: (), process.emitter_parts).session()

        async def overtake() -> bool:
            moved = 1000 + int((await other.positions()).get("0", "0"))
            try:
                await other([], {"0": str(moved)})
            except PositionsMoved:
                return False
            return True

        await eventually(overtake)
        await begun(2)

        async def goes_on() -> bool:
            return int((await process.journal.positions("reader"))["0"]) > 1010

        await eventually(goes_on)
        assert "PositionsMoved" in (process.emitters["reader"].status.last_error or "")

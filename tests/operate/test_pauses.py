"""Pauses of flows, triggers and everything: who, why, until when; and what waited behind them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import turnout
from tests.support.running import Running, eventually, running
from turnout import Event, every, files, flow, move
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import InvalidData, NotFound, Overloaded, Refused
from turnout.service.domain.run import RunState
from turnout.service.journal.records import EVERYTHING
from turnout.service.operate.verbs import Fire, Pause, Resume, Retry
from turnout.service.project import Project

NOW = datetime(2026, 11, 28, 22, tzinfo=UTC)


@dataclass
class Clock:
    """A wall clock that a test sets."""

    at: datetime = NOW

    def __call__(self) -> datetime:
        return self.at


done: list[int] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    done.clear()


@flow
async def bill(data: int) -> None:
    done.append(data)


@flow
async def ship(data: int) -> None:
    done.append(-data)


async def is_ended(service: Running, name: str) -> None:
    """Wait until a pause has ended in the journal, and here."""

    async def ended() -> bool:
        kept = await service.process.journal.pauses(now=NOW)
        return name not in kept

    await eventually(ended)


async def states(service: Running, run_ids: list[str]) -> list[str]:
    return [str((await service.run(run_id)).state) for run_id in run_ids]


# ---------------------------------------------------------------- the end of a pause


async def test_a_pause_ends_by_itself_and_what_waited_runs(tmp_path: Path) -> None:
    async with running(tmp_path, [bill]) as service:
        await service.process.operator.do(Pause("bill", timedelta(seconds=0.4)))
        receipt = await service.send(1)
        assert await states(service, [*receipt.runs]) == ["queued"]
        await service.finished(receipt.runs[0])
        assert done == [1]
        await is_ended(service, "flow:bill")


async def test_a_pause_that_ended_while_the_service_was_down_holds_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, [bill], now=clock) as service:
        await service.process.operator.do(Pause("bill", timedelta(hours=1)))
        receipt = await service.send(1)
    clock.at += timedelta(minutes=59)
    async with running(tmp_path, [bill], now=clock) as service:
        assert await states(service, [*receipt.runs]) == ["queued"]
        assert not service.process.dispatcher.starts("bill")
    clock.at += timedelta(minutes=1)
    async with running(tmp_path, [bill], now=clock) as service:
        await service.finished(receipt.runs[0])
        clock.at -= timedelta(hours=1)
        await is_ended(service, "flow:bill")  # a clock set back brings no pause back


async def test_a_clock_set_ahead_ends_a_pause_at_once(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, [bill], now=clock) as service:
        await service.process.operator.do(Pause("bill", timedelta(days=1)))
        receipt = await service.send(1)
        clock.at += timedelta(days=1)
        service.process.clock_set()
        await service.finished(receipt.runs[0])


async def test_a_pause_made_under_a_clock_that_was_ahead_lasts_as_long_as_was_asked(
    tmp_path: Path,
) -> None:
    clock = Clock(NOW + timedelta(days=9))
    async with running(tmp_path, [bill], now=clock) as service:
        await service.process.operator.do(Pause("bill", timedelta(hours=1), "why"))
    clock.at = NOW
    async with running(tmp_path, [bill], now=clock) as service:
        [pause] = (await service.process.journal.pauses(now=NOW)).values()
        assert (pause.since, pause.until) == (NOW, NOW + timedelta(hours=1))
        assert pause.note == "why" and not service.process.dispatcher.starts("bill")


async def test_pausing_again_sets_the_end_and_the_note_but_not_the_beginning(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with running(tmp_path, [bill], now=clock) as service:
        first = await service.process.operator.do(Pause("bill", timedelta(hours=1), "why", "ada"))
        assert first.since == NOW and first.until == NOW + timedelta(hours=1)
        clock.at += timedelta(minutes=1)
        again = await service.process.operator.do(Pause("bill", None, "other", "bob"))
        assert again == replace(first, until=None, note="other", by="bob")


async def test_a_pause_of_no_time_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, [bill]) as service:
        with pytest.raises(InvalidData, match="longer than 0s"):
            await service.process.operator.do(Pause("bill", timedelta(0)))


# ---------------------------------------------------------------- everything


async def test_under_the_pause_of_everything_events_are_accepted_and_nothing_starts(
    tmp_path: Path,
) -> None:
    @flow(on=every("1h"))
    async def hourly() -> None:
        done.append(60)

    async with running(tmp_path, [bill, ship, hourly]) as service:
        operator = service.process.operator
        await operator.do(Pause(EVERYTHING))
        receipts = [await service.send(1), await operator.do(Fire("every:1h"))]
        run_ids = [run_id for receipt in receipts for run_id in receipt.runs]
        assert len(run_ids) >= 3
        assert set(await states(service, run_ids)) == {"queued"}
        assert service.process.warnings() == [
            "everything is paused: no run starts until `turnout resume --all`"
        ]
    async with running(tmp_path, [bill, ship, hourly]) as service:  # a restart changes nothing
        assert set(await states(service, run_ids)) == {"queued"}
        resumed = await service.process.operator.do(Resume(EVERYTHING))
        assert (resumed.waiting, resumed.was_paused, resumed.still) == (len(run_ids), True, ())
        await service.all_finished()
        assert set(done) == {1, -1, 60}
        assert service.process.warnings() == []


async def test_resuming_everything_leaves_what_was_paused_by_its_name(tmp_path: Path) -> None:
    async with running(tmp_path, [bill, ship]) as service:
        operator = service.process.operator
        by_name = await operator.do(Pause("bill", None, "the bank migrates", "ada"))
        await operator.do(Pause(EVERYTHING))
        receipt = await service.send(1)
        resumed = await operator.do(Resume(EVERYTHING))
        assert (resumed.waiting, resumed.still) == (1, (by_name,))
        await service.finished(receipt.runs[1])
        assert await states(service, [*receipt.runs]) == ["queued", "succeeded"]


async def test_a_flow_resumed_under_the_pause_of_everything_waits_on(tmp_path: Path) -> None:
    async with running(tmp_path, [bill, ship]) as service:
        operator = service.process.operator
        await operator.do(Pause("bill"))
        everything = await operator.do(Pause(EVERYTHING, None, "wrong deploy"))
        receipt = await service.send(1)
        resumed = await operator.do(Resume("bill"))
        assert (resumed.waiting, resumed.still) == (1, (everything,))
        assert await states(service, [*receipt.runs]) == ["queued"] * 2
        await operator.do(Resume(EVERYTHING))
        await service.all_finished()


async def test_a_flow_that_a_reload_brings_is_paused_with_everything(tmp_path: Path) -> None:
    from turnout.service.app.reload import reload_project

    async with running(tmp_path, [bill]) as service:
        await service.process.operator.do(Pause(EVERYTHING))
        await reload_project(service.process, Project.of([bill, ship]))
        assert not service.process.dispatcher.starts("ship")
        await service.process.operator.do(Resume(EVERYTHING))
        assert service.process.dispatcher.starts("ship")


@pytest.mark.parametrize("while_it_runs", [True, False])
async def test_a_flow_that_is_renamed_stays_paused(tmp_path: Path, while_it_runs: bool) -> None:
    @flow(was="bill")
    async def charge(data: int) -> None:
        done.append(data)

    async with running(tmp_path, [bill]) as service:
        await service.process.operator.do(Pause("bill", note="the bank migrates"))
        receipt = await service.send(1)
        if while_it_runs:
            await reload_project(service.process, Project.of([charge]))
    async with running(tmp_path, [charge]) as service:
        assert await states(service, [*receipt.runs]) == ["queued"]
        resumed = await service.process.operator.do(Resume("charge"))
        assert (resumed.was_paused, resumed.waiting) == (True, 1)
        await service.finished(receipt.runs[0])
        assert done == [1]


async def test_to_resume_what_is_not_paused_changes_nothing_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, [bill]) as service:
        for name in ("bill", EVERYTHING):
            resumed = await service.process.operator.do(Resume(name))
            assert (resumed.was_paused, resumed.waiting) == (False, 0)
            with pytest.raises(Refused, match="is not paused, so nothing was discarded"):
                await service.process.operator.do(Resume(name, discard=True))
        with pytest.raises(NotFound):
            await service.process.operator.do(Resume("bil"))


# ---------------------------------------------------------------- what waited


async def test_resume_says_how_many_runs_waited_and_since_when(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, [bill], now=clock) as service:
        operator = service.process.operator
        await operator.do(Pause("bill"))
        for minute in range(3):
            clock.at = NOW + timedelta(minutes=minute)
            await service.send(minute)
        resumed = await operator.do(Resume("bill"))
        assert (resumed.waiting, resumed.oldest, resumed.discarded) == (3, NOW, 0)
        await service.all_finished()
        assert done == [0, 1, 2]


async def test_discarded_runs_end_as_skipped_and_later_ones_run(tmp_path: Path) -> None:
    async with running(tmp_path, [bill]) as service:
        operator = service.process.operator
        await operator.do(Pause("bill"))
        old = [run_id for n in range(3) for run_id in (await service.send(n)).runs]
        resumed = await operator.do(Resume("bill", discard=True, by="ada"))
        assert (resumed.waiting, resumed.discarded) == (3, 3)
        await service.finished((await service.send(7)).runs[0])
        assert done == [7]
        for run_id in old:
            run = await service.run(run_id)
            assert run.state is RunState.SKIPPED
            assert run.reason == "dropped: ada discarded what waited"
            event = await service.process.journal.event_of(run.seq)
            assert event is not None
            assert [made["reason"] for made in event.decisions] == ["dropped"]
        line = b'turnout_decisions_total{flow="bill",reason="dropped"} 3.0'
        assert line in service.process.metrics.render()
        await operator.do(Retry(old[0]))  # an operator may still want one
        await service.finished(old[0])
        assert done == [7, 0]


async def test_a_run_that_has_begun_is_not_discarded(tmp_path: Path) -> None:
    begun = asyncio.Event()

    @flow
    async def slow(data: int) -> None:
        if data == 0 and not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        done.append(data)

    async with running(tmp_path, [slow], grace=timedelta(seconds=0.1)) as service:
        first = await service.send(0)
        await begun.wait()
        await service.process.operator.do(Pause("slow"))
        second = await service.send(1)
    async with running(tmp_path, [slow]) as service:  # the stop has queued the first again
        assert await states(service, [*first.runs, *second.runs]) == ["queued"] * 2
        resumed = await service.process.operator.do(Resume("slow", discard=True))
        assert (resumed.waiting, resumed.discarded) == (2, 1)
        await service.finished(first.runs[0])
        assert await states(service, [*second.runs]) == ["skipped"]
        assert done == [0]


async def test_discarded_runs_give_their_ordering_key_free(tmp_path: Path) -> None:
    @flow(ordered_by=lambda event: "one")
    async def keyed(data: int) -> None:
        done.append(data)

    async with running(tmp_path, [keyed]) as service:
        await service.process.operator.do(Pause("keyed"))
        for n in range(3):
            await service.send(n)
        await service.process.operator.do(Resume("keyed", discard=True))
        await service.finished((await service.send(3)).runs[0])
        assert done == [3]


async def test_everything_that_waits_is_discarded_but_not_what_stays_paused(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [bill, ship]) as service:
        operator = service.process.operator
        await operator.do(Pause("bill"))
        await operator.do(Pause(EVERYTHING))
        receipt = await service.send(1)
        resumed = await operator.do(Resume(EVERYTHING, discard=True))
        assert (resumed.waiting, resumed.discarded) == (1, 1)
        assert await states(service, [*receipt.runs]) == ["queued", "skipped"]


async def test_the_file_of_a_discarded_run_stays_where_it_is(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    @flow(on=files(f"{inbox}/*", settle="10ms", then=move("done/")))
    async def load(path: Path) -> None:
        done.append(len(path.name))

    async with running(tmp_path / "data", [load]) as service:
        await service.process.start_triggers()
        await service.process.operator.do(Pause("load"))
        (inbox / "old").write_text("x")

        async def waits() -> bool:
            return bool(await service.process.journal.due_counts(service.process.now()))

        await eventually(waits)
        await service.process.operator.do(Resume("load", discard=True))
        (inbox / "newer").write_text("x")

        async def is_moved() -> bool:
            return (inbox / "done" / "newer").exists()

        await eventually(is_moved)
        assert await service.process.after_run_actions.sweep() == 0
        assert (inbox / "old").exists() and done == [len("newer")]


async def test_a_parent_is_told_that_its_child_was_discarded(tmp_path: Path) -> None:
    ended: list[str] = []

    @flow
    async def child(data: int) -> int:
        return data

    @flow
    async def parent(event: Event) -> None:
        try:
            await child(1)
        except turnout.Refused as error:
            ended.append(error.reason)

    async with running(tmp_path, [child, parent]) as service:
        await service.process.operator.do(Pause("child"))
        receipt = await service.send("x")
        run_id = receipt.runs[1]

        async def is_waiting() -> bool:
            return (await service.run(run_id)).state is RunState.WAITING

        await eventually(is_waiting)
        await service.process.operator.do(Resume("child", discard=True))
        await service.finished(run_id)
        assert ended == ["dropped"]


# ---------------------------------------------------------------- triggers


async def test_a_paused_trigger_tells_when_to_come_again(tmp_path: Path) -> None:
    clock = Clock()

    @flow(on=every("1h"))
    async def hourly() -> None: ...

    async with running(tmp_path, [hourly], now=clock) as service:
        operator, emitter = service.process.operator, service.process.emitters["every:1h"]
        for lasts, seconds in ((None, 60), (90, 90), (7200, 300)):
            length = None if lasts is None else timedelta(seconds=lasts)
            await operator.do(Pause("every:1h", length))
            with pytest.raises(Overloaded, match="trigger 'every:1h' is paused") as refused:
                await emitter([])
            assert refused.value.retry_after_seconds == seconds
        clock.at += timedelta(hours=1, minutes=59, seconds=59, milliseconds=500)
        with pytest.raises(Overloaded) as refused:
            await emitter([])
        assert refused.value.retry_after_seconds == 1
        assert "every:1h" not in str(service.process.problems())
        resumed = await operator.do(Resume("every:1h"))
        assert (resumed.name, resumed.waiting) == ("trigger:every:1h", 0)
        await emitter([])


async def test_what_came_to_a_paused_trigger_cannot_be_discarded(tmp_path: Path) -> None:
    @flow(on=every("1h"))
    async def hourly() -> None: ...

    async with running(tmp_path, [hourly]) as service:
        await service.process.operator.do(Pause("every:1h"))
        with pytest.raises(Refused, match="keeps nothing that could be discarded"):
            await service.process.operator.do(Resume("every:1h", discard=True))
        assert service.process.emitters["every:1h"].status.paused

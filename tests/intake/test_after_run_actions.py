"""What is to be done after an event's last run is done once that has ended, crash or not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from tests.support.running import eventually, make_event, running
from turnout import batch, flow
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import AfterRun, Emitter
from turnout.service.intake.after_run_actions import (
    AGAIN_SECONDS,
    FAILURES_A_SWEEP,
    AfterRunActions,
)
from turnout.service.journal.records import EndedEvent, Filter

ended: list[tuple[str, str | None]] = []
broken: list[str] = []


@dataclass(frozen=True)
class Tidy:
    """A trigger that writes down which events ended."""

    name: str = "tidy"
    kind: str = "tidy"
    calls: list[str] = field(default_factory=list, compare=False)

    def check(self) -> None: ...

    async def ended(self, event: Event, failure: str | None, emit: Emitter) -> Event | None:
        if broken:
            raise OSError(broken.pop())
        ended.append((event.id, failure))
        return replace(event, extensions={"fileurl": "file:///done/a"})


@flow
async def first(event: Event) -> None: ...


@flow
async def second(event: Event) -> None:
    if event.data == "bad":
        raise ValueError("bad")


async def test_an_action_follows_the_last_run_and_knows_how_it_ended(tmp_path: Path) -> None:
    ended.clear()
    async with running(tmp_path, [first, second]) as service:
        journal = service.process.journal
        emit = service.process.emitter(Tidy(), lambda _event: (first, second))
        service.process.emitters["tidy"] = emit
        good, bad = make_event("good"), make_event("bad")
        await emit([good, bad])

        async def both() -> bool:
            stored = [*await journal.event(good.id), *await journal.event(bad.id)]
            return [one.event.path for one in stored] == [Path("/done/a")] * 2

        await eventually(both)
        assert await service.process.after_run_actions.sweep() == 0
        told = [(good.id, None), (bad.id, "second: ValueError: bad")]
        assert sorted(ended) == sorted(told)


async def a_service_whose_action_fails(folder: Path) -> None:
    """Run one to its stop; the action of its one event is still to be carried out."""
    ended.clear()
    async with running(folder, [first]) as service:
        emit = service.process.emitter(Tidy(), lambda _event: (first,))
        service.process.emitters["tidy"] = emit
        broken.append("the share is gone")
        await emit([make_event()])

        async def tried() -> bool:
            return not broken

        await eventually(tried)
        assert await service.process.journal.runs(Filter())
        assert not ended


async def test_an_action_that_fails_is_carried_out_by_a_later_sweep(tmp_path: Path) -> None:
    await a_service_whose_action_fails(tmp_path)
    async with running(tmp_path, [first]) as service:
        service.process.emitters["tidy"] = service.process.emitter(Tidy(), lambda _event: (first,))
        assert await service.process.after_run_actions.sweep() == 1
        assert len(ended) == 1


async def test_the_action_of_a_trigger_that_is_gone_is_dropped_when_its_event_is_old(
    tmp_path: Path,
) -> None:
    await a_service_whose_action_fails(tmp_path)
    async with running(tmp_path, [first]) as service:
        process, now = service.process, service.process.now()
        actions, later = process.after_run_actions, now + timedelta(days=1)
        process.emitters["tidy"] = process.emitter(Tidy(), lambda _event: (first,))
        assert await actions.drop_old(later) == 0, "its trigger is there"
        process.emitters.pop("tidy").status.retire()
        assert await actions.sweep() == 0
        assert await actions.drop_old(now - timedelta(days=1)) == 0, "it may return"
        assert len(await process.journal.due_actions(0, 9)) == 1
        assert await actions.drop_old(later) == 1
        assert await process.journal.due_actions(0, 9) == []
        pruned = await process.journal.prune(
            finished_before=later, failed_before=later, unmatched_before=later,
            dedupe_before=later, now=later, limit=99,
        )  # fmt: skip
        assert pruned and not await process.journal.runs(Filter())
        assert not ended


@dataclass(frozen=True)
class Untidy(Tidy):
    """The same trigger after its author has removed the action."""

    after_run: AfterRun | None = None


async def test_an_action_that_its_author_has_removed_is_not_carried_out_later(
    tmp_path: Path,
) -> None:
    await a_service_whose_action_fails(tmp_path)
    async with running(tmp_path, [first]) as service:
        for trigger, count in ((Untidy(), 1), (Tidy(), 0)):
            emitter = service.process.emitter(trigger, lambda _event: (first,))
            service.process.emitters["tidy"] = emitter
            assert await service.process.after_run_actions.sweep() == count
        assert not ended


async def test_what_is_due_after_other_events_is_not_done_by_each_run_of_a_window(
    tmp_path: Path,
) -> None:
    @flow(on=batch(Tidy(), 2, "1h"))
    async def store(events: list[Event]) -> None: ...

    await a_service_whose_action_fails(tmp_path)
    async with running(tmp_path, [first, store]) as service:
        emit = service.process.emitter(Tidy(), lambda _event: (store,))
        service.process.emitters["tidy"] = emit
        members = [make_event("n"), make_event("n")]
        await emit(members)

        async def done() -> bool:
            return len(ended) >= len(members)

        await eventually(done)
        assert sorted(ended) == sorted((each.id, None) for each in members)
        assert await service.process.after_run_actions.sweep() == 1


async def a_sweep_of(
    folder: Path, events: int, seconds: list[float]
) -> list[tuple[int, float | None]]:
    """Let the actions of so many events fail, and look after each of these seconds.

    Returns how many were tried by the sweep then, and the figure of those that fail.
    """
    ended.clear()
    broken.clear()
    found: list[tuple[int, float | None]] = []
    async with running(folder, [first]) as service:
        emit = service.process.emitter(Tidy(), lambda _event: (first,))
        await emit([make_event(f"{number}") for number in range(events)])

        async def all_ended() -> bool:
            return len(await service.process.journal.due_actions(0, events)) == events

        await eventually(all_ended)
        clock = 0.0
        actions = AfterRunActions(
            service.process.journal, lambda: {"tidy": emit}, monotonic=lambda: clock
        )
        for each in seconds:
            clock = each
            broken[:] = ["the share is gone"] * events
            await actions.sweep()
            found.append((events - len(broken), emit.status.figures.get("failing_actions")))
        broken.clear()
        clock += AGAIN_SECONDS[1]
        assert await actions.sweep() == len(ended) == events
        assert emit.status.figures["failing_actions"] == 0
    return found


async def test_an_action_that_fails_is_tried_ever_more_rarely_and_shown(tmp_path: Path) -> None:
    first_wait, longest = AGAIN_SECONDS
    tries = [0.0]
    while tries[-1] < 10 * longest:
        wait = min(first_wait * 2 ** (len(tries) - 1), longest)
        tries.append(tries[-1] + wait)
    moments = sorted([*tries, *(moment - 1 for moment in tries[1:])])
    found = await a_sweep_of(tmp_path, 1, moments)
    assert found == [(int(moment in tries), 1) for moment in moments]


async def test_a_sweep_leaves_a_trigger_whose_actions_all_fail_to_the_next_one(
    tmp_path: Path,
) -> None:
    most = FAILURES_A_SWEEP
    assert await a_sweep_of(tmp_path, most + 5, [0, 1, 2]) == [
        (most, most), (5, most + 5), (0, most + 5),
    ]  # fmt: skip


async def test_what_a_removed_trigger_left_is_not_read_again_one_by_one(tmp_path: Path) -> None:
    await a_service_whose_action_fails(tmp_path)
    async with running(tmp_path, [first]) as service:
        journal, read = service.process.journal, list[int]()
        honest = journal.event_ended

        async def counted(event_seq: int) -> EndedEvent | None:
            read.append(event_seq)
            return await honest(event_seq)

        journal.event_ended = counted  # type: ignore[method-assign]  # the real one, counted
        assert await service.process.after_run_actions.sweep() == 0
        assert read == []
        service.process.emitters["tidy"] = service.process.emitter(Tidy(), lambda _event: (first,))
        assert await service.process.after_run_actions.sweep() == 1

"""Batch: events that run together, so many or after a time."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from turnout import Event, batch, emit, event, flow, webhook
from turnout.service.app.reload import reload_project
from turnout.service.domain.event import mint_id
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Filter
from turnout.service.journal.sqlite.events import AppendJob
from turnout.service.journal.sqlite.outcomes import OutcomeJob
from turnout.service.journal.sqlite.writer import CallJob, Job, Writer
from turnout.service.project import Project
from turnout.testing import serve, webhook_event
from turnout.testing.service import Service

HOOK = webhook("/reading")
MEBIBYTE = 2**20
Seen = list[Any]


class Reading(BaseModel):
    """What a sensor sends."""

    n: int
    filler: str = ""


class Checked(BaseModel):
    """A reading that notes each time it is validated."""

    numbers: ClassVar[list[int]] = []
    n: int

    @field_validator("n")
    @classmethod
    def note(cls, number: int) -> int:
        cls.numbers.append(number)
        return number


def collecting(seen: Seen, *how: Any, **options: Any) -> Any:
    @flow(on=batch(HOOK, *how, **options))
    async def store(readings: list[Reading]) -> int:
        seen.append([each.n for each in readings])
        return len(readings)

    return store


def reading(service: Service, number: object, size: int = 0) -> Event:
    body = {"n": number, "filler": "x" * size}
    return webhook_event(HOOK, json=body, at=service.clock.now())


async def send(service: Service, number: object, size: int = 0) -> None:
    await service.emit(reading(service, number, size))


async def stored(service: Service, state: RunState | None = None) -> list[Run]:
    return list(reversed(await service.journal.runs(Filter(state=state))))


@pytest.mark.anyio
async def test_the_nth_event_starts_the_run_at_once_and_the_next_one_opens_another_batch() -> None:
    seen: Seen = []
    async with serve(collecting(seen, 3, "10s")) as service:
        for number in range(4):
            await send(service, number)
        assert seen == [[0, 1, 2]]
        await service.advance("10s")
    assert seen == [[0, 1, 2], [3]]


@pytest.mark.anyio
async def test_the_first_event_fixes_the_deadline() -> None:
    seen: Seen = []
    async with serve(collecting(seen, 100, "10s")) as service:
        for number in range(3):
            await send(service, number)
            await service.advance("4s")
        assert seen == [[0, 1, 2]]


@pytest.mark.anyio
async def test_events_that_would_be_too_large_together_are_two_batches() -> None:
    seen: Seen = []
    async with serve(collecting(seen, 100, "10s"), max_body_bytes=8 * MEBIBYTE) as service:
        for number in range(3):
            await send(service, number, size=2 * MEBIBYTE - 40)
        await service.advance("10s")
        assert seen == [[0, 1], [2]]
        await send(service, 4, size=5 * MEBIBYTE)
        assert seen[2:] == [[4]]  # one that is larger alone runs alone, at once


@pytest.mark.anyio
async def test_an_event_that_does_not_fit_is_a_dead_letter_alone() -> None:
    seen: Seen = []

    @flow(on=batch(event("reading"), 3, "10s"))
    async def store(readings: list[Reading]) -> None:
        seen.append([each.n for each in readings])

    def made(number: object) -> Event:
        return Event(
            id=mint_id(), source="t", type="reading", time=service.clock.now(),
            trigger="event:reading",
            body=f'{{"n": {number}}}'.encode(), minted=True,
        )  # fmt: skip

    @flow(on=event("reading"))
    async def other() -> None: ...

    async with serve(store, other) as service:
        for number in (1, '"x"', 2, 3):
            await service.emit(made(number), None)
        assert seen == [[1, 2, 3]]
        (dead,) = await stored(service, RunState.FAILED)
        assert dead.flow == "store" and dead.events == 1
        assert dead.error is not None and dead.error.type == "invalid_data"


@pytest.mark.anyio
async def test_a_batch_that_fills_in_one_emit_is_written_as_its_run_at_once() -> None:
    seen: Seen = []
    async with serve(collecting(seen, 5, "10s")) as service:
        emit = service.process.emitters[HOOK.name]
        await emit([reading(service, number) for number in range(12)])
        await service.advance("1ms")
        assert sorted(seen) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]  # they run beside each other
        assert await service.journal.open_windows() == {"store": 1}
        first, second = await stored(service)
        assert (first.events, second.events) == (5, 5)
        window = await service.journal.window_of_run(first.seq)
        assert window is not None and window.state == "fired"
        members = await service.journal.window_members(window.seq)
        assert [each.position for each in members] == [1, 2, 3, 4, 5]
        assert members[0].event_id == first.event_id


@pytest.mark.anyio
async def test_a_duplicate_is_no_member_and_is_answered_with_the_run() -> None:
    seen: Seen = []
    hook = webhook("/reading", id=lambda event: event.data["n"])

    @flow(on=batch(hook, 2, "10s"))
    async def store(readings: list[Reading]) -> None:
        seen.append([each.n for each in readings])

    async with serve(store) as service:
        emit = service.process.emitters[hook.name]
        one = webhook_event(hook, json={"n": 1}, at=service.clock.now())
        await emit([one, one])
        assert seen == []
        await emit([webhook_event(hook, json={"n": 2}, at=service.clock.now())])
        await service.advance("1ms")
        assert seen == [[1, 2]]
        (receipt,) = await emit([one])
        (run,) = await stored(service)
        assert receipt.duplicate and receipt.runs == (run.id,)


@pytest.mark.anyio
async def test_a_duplicate_behind_a_batch_that_fills_in_the_same_emit_is_no_member() -> None:
    seen: Seen = []
    hook = webhook("/reading", id=lambda event: event.data["n"])

    @flow(on=batch(hook, 2, "10s"))
    async def store(readings: list[Reading]) -> None:
        seen.append([each.n for each in readings])

    async with serve(store) as service:
        emit = service.process.emitters[hook.name]
        now = service.clock.now()
        one, two = (webhook_event(hook, json={"n": n}, at=now) for n in (1, 2))
        await emit([one, two])  # the queue of the flow has been read by now
        await service.advance("1ms")
        three, four = (webhook_event(hook, json={"n": n}, at=now) for n in (3, 4))
        await emit([three, four, three])
        await service.advance("1ms")
        assert seen == [[1, 2], [3, 4]]


@pytest.mark.anyio
async def test_the_members_of_a_batch_that_fills_in_one_emit_are_decoded_and_validated_once() -> (
    None
):
    @flow(on=batch(HOOK, 3, "10s"))
    async def store(readings: list[Checked], events: list[Event]) -> list[int]:
        assert [each.data["n"] for each in events] == [each.n for each in readings]
        return [each.n for each in readings]

    async with serve(store) as service:
        emit = service.process.emitters[HOOK.name]
        for first in (0, 3):
            Checked.numbers.clear()
            await emit([reading(service, first + number) for number in range(3)])
            await service.advance("1ms")  # the queue of the flow has been read by now
        assert Checked.numbers == [3, 4, 5]
        assert [each.result for each in await stored(service)] == [b"[0,1,2]", b"[3,4,5]"]


@pytest.mark.anyio
async def test_a_batch_survives_a_kill_at_any_member() -> None:
    seen: Seen = []
    async with serve(collecting(seen, 4, "10s")) as service:
        for number in range(4):
            await send(service, number)
            await service.restart()
            await service.advance("1ms")
        assert seen == [[0, 1, 2, 3]]


@pytest.mark.anyio
async def test_retry_of_a_failed_batch_runs_all_its_members_again() -> None:
    seen: Seen = []

    @flow(on=batch(HOOK, 2, "10s"), retry=1)
    async def store(readings: list[Reading]) -> None:
        seen.append([each.n for each in readings])
        if len(seen) == 1:
            raise RuntimeError("the warehouse is closed")

    async with serve(store) as service:
        await send(service, 1)
        await send(service, 2)
        await service.advance("10m")
    assert seen == [[1, 2], [1, 2]]


@pytest.mark.anyio
async def test_a_flow_over_a_batch_called_by_another_flow_takes_a_list() -> None:
    seen: Seen = []
    store = collecting(seen, 100, "10s")

    @flow(on=webhook("/call"))
    async def caller() -> int:
        found: int = await store([Reading(n=1), Reading(n=2)])
        return found

    async with serve(store, caller) as service:
        (result,) = await service.emit(webhook_event(caller))
        assert result.result == 2
    assert seen == [[1, 2]]


@pytest.mark.anyio
async def test_a_batch_that_fills_in_one_emit_takes_two_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: Seen = []
    written: list[type[Job]] = []
    submit = Writer.submit

    def counted(writer: Writer, job: Job) -> Any:
        written.append(type(job))
        return submit(writer, job)

    async with serve(collecting(seen, 500, "10s")) as service:
        emit = service.process.emitters[HOOK.name]
        await emit([reading(service, number) for number in range(500)])
        await service.advance("1ms")  # the queue of the flow has been read by now
        monkeypatch.setattr(Writer, "submit", counted)
        await emit([reading(service, number) for number in range(500)])
        await service.advance("1ms")
        assert seen == [list(range(500)), list(range(500))]
        assert [each for each in written if each is not CallJob] == [AppendJob, OutcomeJob]
        assert [run.events for run in await stored(service)] == [500, 500]
        assert await emit.credit() == 500
        await emit([reading(service, number) for number in range(200)])
        assert await emit.credit() == 300
        await service.advance("10s")
        assert len(seen) == 3 and await emit.credit() == 500


@pytest.mark.anyio
async def test_a_trigger_fetches_what_single_runs_ask_for_once_a_reload_has_ended_its_batches() -> (
    None
):
    @flow(name="store", on=HOOK)
    async def store_one(reading: Reading) -> None: ...

    async def credit(service: Service) -> int:
        await service.process.emitters[HOOK.name]([reading(service, 0)])
        await service.advance("1ms")
        return await service.process.emitters[HOOK.name].credit()

    async with serve(store_one) as service:
        expected = await credit(service)
    async with serve(collecting([], 700, "10s")) as service:
        assert await credit(service) == 699
        await reload_project(service.process, Project.of([store_one]))
        assert await credit(service) == expected


@pytest.mark.anyio
async def test_full_batches_that_find_no_free_slot_wait_for_one() -> None:
    seen: Seen = []
    async with serve(collecting(seen, 5, "10s"), concurrency=1) as service:
        emit = service.process.emitters[HOOK.name]
        await emit([reading(service, number) for number in range(20)])
        await service.advance("1ms")
        assert [each[0] for each in seen] == [0, 5, 10, 15]
        assert service.process.dispatcher.free_slots == 1


@pytest.mark.anyio
async def test_events_that_a_flow_emits_fill_a_batch() -> None:
    seen: Seen = []

    @flow(on=batch(event("row"), 3, "1h"))
    async def store(rows: list[Reading]) -> None:
        seen.append([each.n for each in rows])

    @flow(on=webhook("/three"))
    async def three() -> None:
        for number in range(3):
            await emit("row", {"n": number})

    async with serve(store, three) as service:
        await service.emit(webhook_event(three))
        await service.advance("1ms")
    assert seen == [[0, 1, 2]]

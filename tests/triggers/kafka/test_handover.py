"""What is under way when a member gives its partitions back, or stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

import pytest

from tests.support.brokers import Broker, unique
from tests.support.running import eventually
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.service.domain.errors import JournalError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Receipt
from turnout.triggers.kafka import consumer, writing
from turnout.triggers.kafka import kafka as records_of
from turnout.triggers.kafka.commits import Commits
from turnout.triggers.kafka.positions import Positions
from turnout.triggers.kafka.writing import Writing

from .reading import emitter_for


async def test_nothing_is_journaled_behind_the_last_commit_of_a_rebalance(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await kafka.create_topic()
    trigger = records_of(topic, group=unique("group"), start="earliest", session="2s")
    emit = emitter_for(kafka)
    positions = Positions()
    lock, each = positions.lock, iter([positions, Positions()])
    monkeypatch.setattr(consumer, "Positions", lambda: next(each))
    behind: list[int] = []

    async def waited_for() -> bool:
        return bool(lock._waiters)

    honest = Commits.commit

    async def unhurried(self: Commits) -> None:
        await honest(self)
        if lock.locked():
            lock.release()
        for _ in range(100):  # turns of the loop, enough for an emit
            await asyncio.sleep(0)
        behind.append(len(emit.deliveries))

    async with watch(trigger, emit):
        await lock.acquire()  # as a hand-back does
        await kafka.send(topic, [b"1"])
        await eventually(waited_for)
        monkeypatch.setattr(Commits, "commit", unhurried)
        async with asyncio.TaskGroup() as tasks:
            joining = tasks.create_task(trigger.run(emitter_for(kafka)))  # a journal of its own
            await emit.until(lambda: emit.figures["rebalances"] == 2, 15)
            joining.cancel()
        assert behind[0] == 0


async def test_a_stopped_turn_drops_what_waits_and_holds_the_lock_for_what_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing, "CANCEL_SECONDS", 0.01)
    lock, answer, begun = asyncio.Lock(), asyncio.Event(), asyncio.Event()
    stored: list[int] = []

    async def write(number: int, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.shield(before)
        begun.set()
        await answer.wait()
        stored.append(number)

    async def turn() -> None:
        async with Writing(lock) as batches:
            for number in range(3):
                await batches.add(lambda before, which=number: write(which, before))  # type: ignore[misc]

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(turn())
        await begun.wait()
        task.cancel()
    assert lock.locked(), "the journal has not answered"
    answer.set()
    async with asyncio.timeout(5), lock:
        pass
    assert stored == [0], "and what waited behind it is not stored"


async def test_a_member_that_stops_reading_shows_no_lag(kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = records_of(topic, group=unique("group"), start="earliest", session="2s")
    emit: RecordingEmitter = emitter_for(kafka)
    async with watch(trigger, emit):
        emit.hold()
        await kafka.send(topic, [b"%d" % n for n in range(10)])
        await emit.until(lambda: emit.lags.get(f"{topic}/0", 0) > 0)
        emit.release()
        await emit.stored(10)
        emit.hold()
        await kafka.send(topic, [b"%d" % n for n in range(10)])
        await emit.until(lambda: emit.held > 1 and emit.lags[f"{topic}/0"] > 0)
    assert emit.lags[f"{topic}/0"] == 0


class CannotStore(RecordingEmitter):
    """Stores positions, but no event."""

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] | None = None,
        *,
        after: Awaitable[object] | None = None,
    ) -> Sequence[Receipt]:
        if events:
            raise JournalError("this cannot be stored")
        return await super().__call__(events, positions, after=after)


def failing_emitter(kafka: Broker) -> CannotStore:
    emit = CannotStore()
    emit.connections = emitter_for(kafka).connections
    return emit


async def test_what_a_failing_trigger_has_not_read_shows_as_lag(kafka: Broker) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = records_of(topic, group=unique("group"), start="earliest", session="2s")
    failing = failing_emitter(kafka)
    await kafka.send(topic, [b"1", b"2"], partition=1)
    async with watch(trigger, failing):
        for _ in range(3):  # it restarts each time, and fails before it has looked once
            await failing.until(lambda: failing.down_reason is not None)
            assert failing.lags == {f"{topic}/0": 0, f"{topic}/1": 2}
            failing.down_reason = None


async def test_a_failing_trigger_shows_no_lag_of_what_another_member_reads(kafka: Broker) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = records_of(topic, group=unique("group"), start="earliest", session="2s")
    for partition in (0, 1):
        await kafka.send(topic, [b"1", b"2"], partition=partition)
    failing, other = failing_emitter(kafka), emitter_for(kafka)
    with pytest.raises(JournalError):
        await trigger.run(failing)
    assert failing.lags == {f"{topic}/0": 2, f"{topic}/1": 2}
    async with watch(trigger, other):
        await other.stored(4)
        async with watch(trigger, failing):  # it gets one of the two
            await failing.until(lambda: failing.lags == {f"{topic}/0": 0, f"{topic}/1": 0})

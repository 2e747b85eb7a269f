"""Positions that somebody else has moved: a stale session stores nothing, and reads them again."""

from __future__ import annotations

from tests.support.brokers import Broker, unique
from tests.support.trigger_contract import RecordingSession, watch
from turnout.triggers.kafka.positions import Position, read_position

from .reading import emitter_for, kafka_trigger
from .test_topic_recreated import delivered, send


async def test_a_position_that_is_moved_beside_a_reader_is_read_on_from_there(
    kafka: Broker,
) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    journal = emitter_for(kafka)
    session = RecordingSession(journal)
    async with watch(trigger, session):
        for partition in (0, 1):
            await send(kafka, topic, 0, 10, partition)
        await session.stored(20)
        stored = read_position(journal.stored_positions[f"{topic}/0"])
        assert stored is not None
        back = Position(4, 2, sought=True, topic=stored.topic)
        journal.stored_positions[f"{topic}/0"] = back.text()
        await send(kafka, topic, 10, 12, 0)
        await session.until(lambda: len(journal.deliveries) >= 28)
        await send(kafka, topic, 10, 11, 1)
        await session.stored(29)
    assert session.moved == 1
    assert delivered(journal)[20:28] == [("2", "0", str(n)) for n in range(4, 12)]
    assert delivered(journal)[28:] == [("1", "1", "10")]


async def test_a_write_that_a_stopped_session_left_behind_is_not_repeated_by_the_next(
    kafka: Broker,
) -> None:
    """The next session reads its positions while the journal still has the write before it."""
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    journal = emitter_for(kafka)
    before, after = RecordingSession(journal), RecordingSession(journal)
    async with watch(trigger, before):
        before.hold()
        await send(kafka, topic, 0, 10)
        await before.until(lambda: before.held > 0)
    after.hold()
    async with watch(trigger, after):
        await after.until(lambda: after.held > 0)
        before.release()
        await before.stored(10)
        after.release()
        await send(kafka, topic, 10, 12)
        await after.stored(12)
    assert delivered(journal) == [("1", "0", str(n)) for n in range(12)]
    assert after.moved == 1
    assert len(journal.deliveries) == len(journal.by_identity)


async def test_a_stale_session_stores_nothing_of_several_batches_on_their_way(
    kafka: Broker,
) -> None:
    topic = await kafka.create_topic(partitions=4)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    journal = emitter_for(kafka)
    session = RecordingSession(journal)
    async with watch(trigger, session):
        for turn in range(5):
            for partition in range(4):
                await send(kafka, topic, turn * 50, turn * 50 + 50, partition)
            key = f"{topic}/{turn % 4}"
            stored = read_position(journal.stored_positions[key])
            assert stored is not None
            # As if another session had stored the same position in other words.
            journal.stored_positions[key] = journal.stored_positions[key].replace("{", "{ ", 1)
        await session.stored(1000)
    assert session.moved >= 1
    found = delivered(journal)
    assert len(found) == len(set(found)) == 1000
    for partition in range(4):
        offsets = [int(offset) for _, number, offset in found if number == str(partition)]
        assert offsets == list(range(250)), "in the order of the partition"

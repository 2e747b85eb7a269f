"""An operator's seek on a real broker; `test_positions` tests the decisions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from tests.support import inside
from tests.support.brokers import Broker, unique
from tests.support.running import eventually, running
from turnout.handlers.flow import flow
from turnout.service.domain.errors import Refused
from turnout.service.domain.trigger import Seek
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Move
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.operate.verbs import SeekTrigger
from turnout.triggers.kafka import kafka as records_of
from turnout.triggers.kafka.positions import Position

from .reading import Item, commit, ended, runs_of, serving


async def test_seek_says_what_it_does_and_does_it(tmp_path: Path, kafka: Broker) -> None:
    topic, group = await kafka.create_topic(), unique("group")
    trigger = records_of(topic, group=group, start="earliest")

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(4)])
    async with serving(tmp_path, kafka, keep) as process:
        operator = process.process.operator
        await ended(process, 4)
        with pytest.raises(Refused, match="runs 4 records again"):
            await operator.do(SeekTrigger(trigger.name, Seek(to="start")))
        plan = await operator.do(SeekTrigger(trigger.name, Seek(to="1", rerun=True), dry_run=True))
        assert "3 records will run again" in plan.sentences[0]
        assert len(await runs_of(process)) == 4
        await operator.do(SeekTrigger(trigger.name, Seek(to="1", rerun=True)))
        runs = await ended(process, 7)
        assert [run.result for run in runs[4:]] == [b"1", b"2", b"3"]
        assert {run.event_id.split("/")[2] for run in runs[4:]} == {"2"}
        with pytest.raises(Refused, match="no offset 9"):
            await operator.do(SeekTrigger(trigger.name, Seek(to="9", rerun=True)))


async def test_seek_to_the_end_skips_what_nobody_read(tmp_path: Path, kafka: Broker) -> None:
    topic, group = await kafka.create_topic(), unique("group")
    trigger = records_of(topic, group=group, start="earliest")

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    await kafka.send(topic, [b'{"id": 1}'])
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 1)
    await kafka.send(topic, [b'{"id": 2}'])
    async with running(tmp_path, [keep], kafka_bootstrap_servers=kafka.bootstrap) as process:
        plan = await process.process.operator.do(SeekTrigger(trigger.name, Seek(to="end")))
        assert "1 record will never be read" in plan.sentences[0]
    await kafka.send(topic, [b'{"id": 3}'])
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 2)
    assert [run.result for run in runs] == [b"1", b"3"]


async def test_a_pattern_seeks_no_topic_of_kafkas_own(kafka: Broker) -> None:
    topic, group = await kafka.create_topic(), unique("group")
    trigger = records_of(pattern=f"{topic}|__.*", group=group)
    await commit(kafka, group, topic, 0)  # so that there is a topic of Kafka's own
    plan = await trigger.plan(Seek(to="end"), {}, {"bootstrap_servers": [kafka.bootstrap]})
    assert set(plan.positions) == {topic, f"{topic}/0"}


async def test_a_seek_comes_behind_what_is_on_its_way_into_the_journal(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic()
    trigger = records_of(topic, group=unique("group"), start="earliest")

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(9)])
    async with running(tmp_path, [keep], kafka_bootstrap_servers=kafka.bootstrap) as app:
        journal, gate = app.process.journal, threading.Event()
        assert isinstance(journal, SqliteJournal)
        partition = f"{topic}/0"

        @asynccontextmanager
        async def stopped(name: str) -> AsyncIterator[None]:
            asyncio.get_running_loop().call_later(0.3, gate.set)  # longer than it takes to plan
            yield

        operator = replace(app.process.operator, stopped=stopped)
        known = (await journal.positions(trigger.name)).get(partition)
        busy = inside.occupy_writer(journal, lambda: gate.wait(10))
        moves = {partition: Move(known, Position(7).text())}
        moved = journal.append([], trigger=trigger.name, positions=moves, now=utc_now())
        plan = await operator.do(SeekTrigger(trigger.name, Seek(to="end")))
        await moved
        assert busy.done()
    assert plan.sentences == [f"{topic}/0: goes on from 7 to 9: 2 records will never be read"]


async def test_a_seek_takes_nothing_back_that_was_accepted(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = records_of(topic, group=unique("group"), start="earliest")
    gate = asyncio.Event()

    @flow(on=trigger, ordered_by="partition")
    async def keep(item: Item) -> int:
        await gate.wait()
        return item.id

    await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(9)])
    async with serving(tmp_path, kafka, keep) as process:

        async def journaled() -> bool:
            return len(await runs_of(process)) == 9

        await eventually(journaled)
        plan = await process.process.operator.do(SeekTrigger(trigger.name, Seek(to="end")))
        gate.set()
        runs = await ended(process, 9)
    assert plan.sentences == [f"{topic}/0: stays at 9"]
    assert [run.result for run in runs] == [b"%d" % n for n in range(9)]

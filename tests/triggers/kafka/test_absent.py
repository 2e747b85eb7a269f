"""An absence over Kafka: told only once everything is read that was there at the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.brokers import Broker, unique
from tests.support.running import Running, eventually, running
from turnout import Event, absent, event, flow
from turnout.service.domain.event import mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.triggers.kafka import cluster_check
from turnout.triggers.kafka import kafka as make_trigger
from turnout.triggers.kafka.batches import Batches


class Clock:
    ahead = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


class Stalled:
    """Lets a consumer read nothing while it goes on to watch the cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = True
        self.stands = asyncio.Event()
        poll = Batches.poll

        async def stalled(batches: Batches, seconds: float, most: int) -> Any:
            if self.reads:
                return await poll(batches, seconds, most)
            self.stands.set()
            await asyncio.sleep(0.05)
            return {}

        monkeypatch.setattr(Batches, "poll", stalled)


def silence_over(topic: str) -> Flow[..., Any]:
    @flow(
        on=absent(
            make_trigger(topic, group=unique("group"), start="earliest"),
            "2h",
            after=event("begun"),
        ),
        when=lambda event: event.trigger == "api" or event.data.get("done"),
    )
    def alarm(begun: Event) -> str:
        return begun.type

    return alarm


@asynccontextmanager
async def watched(
    tmp_path: Path, broker: Broker, alarm: Flow[..., Any], clock: Clock
) -> AsyncIterator[Running]:
    """Serve the flow until its topic is read to the end, and open its window."""
    chosen: dict[str, Any] = {"kafka_bootstrap_servers": broker.bootstrap}
    async with running(tmp_path, [alarm], now=clock, **chosen) as service:
        await service.process.start_triggers()
        emitter = next(
            emitter for name, emitter in service.process.emitters.items() if "kafka:" in name
        )

        async def is_read() -> bool:
            return emitter.status.told_to is not None

        await eventually(is_read)
        made = Event(
            id=mint_id(), source="/t", type="begun", time=utc_now(), body=b"{}", trigger="api"
        )
        await service.process.api([made])
        yield service


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_check, "CHECK_SECONDS", 0.2)


@pytest.mark.parametrize(("record", "firings"), [({"done": True}, 0), ({"done": False}, 1)])
async def test_a_partition_that_lags_behind_the_deadline_is_read_before_an_absence_is_told(
    tmp_path: Path,
    kafka: Broker,
    monkeypatch: pytest.MonkeyPatch,
    record: dict[str, bool],
    firings: int,
) -> None:
    topic, clock, stalled = await kafka.create_topic(), Clock(), Stalled(monkeypatch)
    alarm = silence_over(topic)
    async with watched(tmp_path, kafka, alarm, clock) as service:
        stalled.reads = False
        await stalled.stands.wait()
        await kafka.send(topic, [orjson.dumps(record)])
        clock.ahead += timedelta(hours=3)
        service.process.clock_set()

        async def is_held() -> bool:
            words = service.process.suspended().get("alarm", "")
            return words.endswith("has not read up to the deadline yet")

        await eventually(is_held)
        await asyncio.sleep(1)  # several checks of the cluster later
        assert await is_held()
        assert not await service.process.journal.runs(Filter())
        stalled.reads = True

        async def is_closed() -> bool:
            return not await service.process.journal.windows()

        await eventually(is_closed)
        runs = await service.all_finished()
        assert [run.result for run in runs] == [b'"begun"'] * firings

"""Up to when a topic is read: what was in it by then has been emitted."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.brokers import Broker, unique
from tests.support.running import eventually
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.triggers.kafka import cluster_check
from turnout.triggers.kafka import kafka as make_trigger


async def test_what_was_in_a_topic_is_emitted_before_that_is_told(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_check, "CHECK_SECONDS", 0.1)
    topic, emit = await kafka.create_topic(), RecordingEmitter()
    emit.connections["kafka"] = {
        "bootstrap_servers": [kafka.bootstrap],
        "security_protocol": "PLAINTEXT",
    }
    async with watch(make_trigger(topic, group=unique("group"), start="earliest"), emit):
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def is_told() -> bool:
            return emit.told_at > began

        await eventually(is_told)
        emit.hold()
        await kafka.send(topic, [b"{}"])
        began = loop.time()
        await emit.until(lambda: emit.held > 0)
        await asyncio.sleep(0.5)
        assert emit.told_at < began, "the record is read, but not yet stored"
        emit.release()
        await eventually(is_told)
        assert len(emit.events) == 1

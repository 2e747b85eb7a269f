"""A full topic, read by one program: each record has exactly one run, whatever the pace."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.brokers import Broker
from tests.support.program import until

from .ledger import snapshot
from .records import Group, judge

pytestmark = pytest.mark.timeout(900)

PARTITIONS = 12


def test_a_full_topic_has_a_run_for_each_record(
    kafka: Broker, tmp_path: Path, full: bool, say: Say
) -> None:
    if kafka.kind == "mesh":
        pytest.skip("its end offsets count batches of one only, which takes too long to fill")
    count = 200_000 if full else 10_000
    group = Group.on(kafka, partitions=PARTITIONS)
    asyncio.run(fill(kafka, group.topic, count))
    with group.program(tmp_path / "member") as program:
        program.start().ready()
        started = time.monotonic()
        until(lambda: not group.unread_by(program), 300, "every record journaled")
        accepted = time.monotonic() - started
        program.quiet(300)
        ended = time.monotonic() - started
        assert program.stop() == 0
        program.check_journal()
    truth = group.truth()
    verdict = judge(truth, [snapshot(program.data)])
    say(
        f"{len(truth)} records: {len(verdict.lost)} lost, {verdict.doubled} doubled; "
        f"{count / accepted:,.0f}/s accepted, {count / ended:,.0f}/s run to their end"
    )
    assert sorted(truth.values()) == list(range(count))
    assert (verdict.lost, verdict.doubled, verdict.wrong[:5]) == ([], 0, [])
    assert group.committed() == asyncio.run(kafka.ends(group.topic))


async def fill(kafka: Broker, topic: str, count: int) -> None:
    """Fill a topic with records of 300 bytes."""
    async with kafka.producer(linger_ms=5) as producer:
        for number in range(count):
            value = json.dumps({"number": number, "padding": "x" * 264})
            await producer.send(topic, value.encode(), partition=number % PARTITIONS)

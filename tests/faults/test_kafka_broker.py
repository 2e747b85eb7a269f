"""Brokers die by SIGKILL while records come and go: each record still has exactly one run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.brokers import Broker
from tests.support.program import Program, until

from .ledger import snapshot
from .records import SHORT_SESSION, Feeder, Group, judge, stopped

pytestmark = pytest.mark.timeout(1200)

FORGET_POSITIONS = """
from turnout.triggers.kafka import commits, start_offsets
from turnout.triggers.kafka.positions import Position, Start

def forgetful(stored, bounds, default_start):
    return Start(Position(default_start if bounds.committed is None else bounds.committed))

async def careless(self):
    pass

start_offsets.choose_start = forgetful
commits.Commits.commit = careless
"""


def accepted(program: Program) -> float:
    found = program.metrics("turnout_events_total")
    return sum(count for labels, count in found.items() if 'result="accepted"' in labels)


def has_read(program: Program, count: int) -> None:
    until(lambda: accepted(program) >= count, 60, f"{count} records read")


def kill_brokers(
    group: Group, program: Program, dice: random.Random, kills: int, apart: int
) -> list[float]:
    """Kill and restart each time `apart` more records are read.

    Returns the seconds from each broker that is ready again to the next new run.
    """
    recoveries = []
    for kill in range(1, kills + 1):
        has_read(program, kill * apart)
        time.sleep(dice.uniform(0, 0.3))
        group.broker.kill()
        time.sleep(dice.uniform(0, 1.0))
        group.broker.spawn()
        group.broker.wait_ready()
        ready_at = time.monotonic()
        has_read(program, round(accepted(program)) + 1)
        recoveries.append(time.monotonic() - ready_at)
    return recoveries


def test_killed_brokers_lose_and_double_nothing(
    lone_kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    if not lone_kafka.keeps_data:
        pytest.skip(f"{lone_kafka.kind} forgets everything in a restart")
    group = Group.on(lone_kafka, partitions=6)
    count, kills = (50_000, 20) if full else (200, 1)
    feeder = Feeder(broker=lone_kafka, topic=group.topic, pace=2500 if full else 400)
    with group.program(tmp_path / "member") as program:
        program.start().ready()
        with feeder.running():
            # A kill every so many records, and as many again behind the last one.
            apart = count // (kills + 1)
            recoveries = kill_brokers(group, program, random.Random(seed), kills, apart)
            feeder.has_sent(count)
        group.all_read(program)
        with stopped(program):
            assert not group.ahead(program)
        assert program.log_text().count("service.started") == 1, "it was restarted"
        assert program.stop() == 0
        program.check_journal()
    truth = group.truth()
    verdict = judge(truth, [snapshot(program.data)])
    say(
        f"{len(truth)} records, {len(recoveries)} brokers killed: {len(verdict.lost)} lost, "
        f"{verdict.doubled} doubled; read again {max(recoveries):.2f} s after the restart at most"
    )
    assert len(truth) >= count
    assert feeder.acknowledged <= set(truth.values()), "the broker lost what it had acknowledged"
    assert (verdict.lost, verdict.doubled, verdict.wrong[:5]) == ([], 0, [])
    assert max(recoveries) <= 10.0


def test_a_consumer_without_positions_is_noticed(lone_kafka: Broker, tmp_path: Path) -> None:
    """The negative control: where to read on is asked of Kafka alone, and nothing was committed."""
    if not lone_kafka.keeps_data:
        pytest.skip(f"{lone_kafka.kind} forgets everything in a restart")
    group = Group.on(lone_kafka, partitions=6)
    feeder = Feeder(broker=lone_kafka, topic=group.topic, pace=400)
    with group.program(tmp_path / "member", sabotage=FORGET_POSITIONS, **SHORT_SESSION) as program:
        program.start().ready()
        with feeder.running():
            until(lambda: accepted(program) > 100, 30, "a hundred records read")
            program.kill()
            program.start().ready()
            until(lambda: accepted(program) > 100, 30, "a hundred records read again")
        until(lambda: not group.unread_by(program), 30, "every record journaled")
        program.quiet(30)
        assert program.stop() == 0
    assert judge(group.truth(), [snapshot(program.data)]).doubled

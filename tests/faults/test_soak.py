"""A service under every kind of load for long, killed now and then, neither grows nor slows down.

At full size it takes 15 minutes, or as many as TURNOUT_TEST_SOAK_MINUTES says. A process that is
killed every two minutes has hardly filled its caches; so another one lives until it has had 100,000
events, under as much load as it takes, and must not grow once it is warm.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles

import psutil  # type: ignore[import-untyped]  # no stubs among the project's dependencies
import pytest

from tests.conftest import Say
from tests.support.brokers import Broker
from tests.support.program import Program, until

from .records import Feeder, Group
from .test_everything import FOLDERS, Load, counted, problems, program_for

MINUTES = float(os.environ.get("TURNOUT_TEST_SOAK_MINUTES", "15"))
LIFE_SECONDS = 120.0
WARM_SECONDS = 30.0
WARM_EVENTS = 80_000
"""What a process takes to fill its caches: the pages of SQLite are most, the last of them slow."""

LIFE_EVENTS = 60_000

MIB_PER_100_000 = 1.0
MIB_BETWEEN_LIVES = 8.0
DESCRIPTORS = 10
P99 = 1.5

TIMERS = """
from turnout import cron, every, flow, sleep

@flow(on=every("1s"))
async def ticks() -> None:
    await sleep("500ms")

@flow(on=cron("* * * * *", tz="UTC"))
async def minutely() -> None: ...
"""
LEAKS = """
from turnout.service.intake.emitter import TriggerEmitter

honest, hoard = TriggerEmitter.__call__, []

async def greedy(self, events, positions=None, **more):
    hoard.append(bytearray(b"x" * 4096))
    return await honest(self, events, positions or {}, **more)

TriggerEmitter.__call__ = greedy
"""

pytestmark = [pytest.mark.full, pytest.mark.timeout(2 * 3600)]


@dataclass(frozen=True)
class Sample:
    """What one process used at an instant, after so many events of its own."""

    life: int
    age: float
    events: int
    rss_mib: float
    descriptors: int


def soak(
    group: Group,
    folder: Path,
    seed: int,
    *,
    seconds: float,
    life: float,
    most: int = 10**9,
    pause: float = 0.03,
    sabotage: str = "",
) -> tuple[Program, Load, list[Sample], list[float]]:
    """Load a service for so long, or with so many events, killing it after each life.

    Returns what it used, and when it was killed.
    """
    program = program_for(group, folder)
    program.sabotage, program.spawned = sabotage, True
    flows = folder / "flows"
    flows.mkdir()
    shutil.copy(program.flows, flows)
    (flows / "timers.py").write_text(TIMERS)
    program.flows = flows
    moved = [each for each in FOLDERS if each != "shadow"]  # what stays is remembered, and grows
    load = Load(program.port, folder / "inbox", random.Random(seed), 10**9, pause, moved)
    samples: list[Sample] = []
    kills: list[float] = []
    feeder = Feeder(broker=group.broker, topic=group.topic, pace=30, most=10**9)
    with program:
        program.start().ready(60)
        with load.running(), feeder.running():
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at and sent(load) < most:
                samples += life_of(program, load, len(kills), min(life, seconds), most)
                if time.monotonic() < ends_at and sent(load) < most:
                    kills.append(time.monotonic())
                    program.kill()
                    program.start().ready(120)
        group.all_read(program, timeout=600)
        load.finish()
        until(lambda: not counted(program, "windows WHERE state = 'open'"), 120, "all closed")
        assert program.stop(60) == 0
        program.check_journal()
    return program, load, samples, kills


def life_of(
    program: Program, load: Load, number: int, seconds: float, most: int
) -> Iterable[Sample]:
    """Look at one process until it has lived so long, or so many events have been sent."""
    began, before = time.monotonic(), sent(load)
    while (age := time.monotonic() - began) < seconds and sent(load) < most:
        time.sleep(1)
        used = psutil.Process(program.pid)
        yield Sample(
            number, age, sent(load) - before,
            used.memory_info().rss / 2**20, used.num_fds(),
        )  # fmt: skip


def sent(load: Load) -> int:
    """Return how many events the load has made so far: timers and Kafka come on top."""
    return len(load.accepted) + len(load.dropped)


def growth(samples: Sequence[Sample]) -> float:
    """Return by how many MiB processes grow in 100,000 events: the slope within their lives."""
    above = below = 0.0
    for life in {each.life for each in samples}:
        own = [each for each in samples if each.life == life]
        events, rss = mean(each.events for each in own), mean(each.rss_mib for each in own)
        above += sum((each.events - events) * (each.rss_mib - rss) for each in own)
        below += sum((each.events - events) ** 2 for each in own)
    return 100_000 * above / below


def p99(answered: Sequence[tuple[float, float]]) -> float:
    return quantiles([took for _, took in answered], n=100)[-1]


def test_it_neither_grows_nor_slows_down_and_loses_nothing(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    group = Group.on(kafka, partitions=2)
    seconds, life, warm = (MINUTES * 60, LIFE_SECONDS, WARM_SECONDS) if full else (16, 8, 3)
    program, load, samples, kills = soak(
        group, tmp_path / "service", seed, seconds=seconds, life=life
    )
    found, sources, flows = problems(program.data, load)
    assert [each for each in found if "have not ended" not in each] == []
    assert set(sources) == {"webhook", "api", "files", "kafka", "every", "cron"} or not full
    assert {"ticks"} < flows

    warmed = [each for each in samples if each.age > warm]
    descriptors = [each.descriptors for each in warmed]
    first, last = warmed[0].life, warmed[-1].life
    most = [max(each.descriptors for each in warmed if each.life == n) for n in (first, last)]
    rss = [max(each.rss_mib for each in warmed if each.life == n) for n in (first, last)]
    third = len(load.answered) // 3
    slow = [p99(load.answered[:third]), p99(load.answered[-third:])]
    say(
        f"{len(load.accepted)} accepted events and {sum(sources.values())} in all, {len(kills)} "
        f"kills; most RSS {rss[0]:.0f} MiB in the first life, {rss[1]:.0f} in the last; "
        f"descriptors {min(descriptors)} to {max(descriptors)}; "
        f"p99 {slow[0] * 1000:.0f} and {slow[1] * 1000:.0f} ms"
    )
    assert kills
    if full:
        assert rss[1] <= rss[0] + MIB_BETWEEN_LIVES
        assert most[1] <= most[0] + DESCRIPTORS
        assert slow[1] <= slow[0] * P99


def test_a_long_life_does_not_grow(kafka: Broker, tmp_path: Path, seed: int, say: Say) -> None:
    group = Group.on(kafka, partitions=2)
    seconds = MINUTES * 60 * 2  # a busy machine may need them
    _, _, samples, kills = soak(
        group, tmp_path / "service", seed,
        seconds=seconds, life=seconds, most=WARM_EVENTS + LIFE_EVENTS, pause=0.003,
    )  # fmt: skip
    assert not kills
    warmed = [each for each in samples if each.events > WARM_EVENTS]
    events, grown = warmed[-1].events, growth(warmed)
    say(f"{events} events; RSS {warmed[-1].rss_mib:.0f} MiB, {grown:+.2f} MiB in 100,000 events")
    assert events > WARM_EVENTS + LIFE_EVENTS * 0.9
    assert grown <= MIB_PER_100_000


def test_a_leak_is_seen(kafka: Broker, tmp_path: Path, seed: int) -> None:
    group = Group.on(kafka, partitions=2)
    *_, samples, _ = soak(group, tmp_path / "service", seed, seconds=8, life=8, sabotage=LEAKS)
    assert growth([each for each in samples if each.age > 3]) > 100 * MIB_PER_100_000

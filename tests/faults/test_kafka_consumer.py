"""Members of a group die, come and go, and find their disk full: no record is lost.

With one journal no record runs twice either. Members with a journal each may double what a killed
one had journaled and not yet committed, and no more. Kafka is never told of an offset
that no journal holds: looked at in stopped and in dead processes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.brokers import Broker, unique
from tests.support.program import Program, until
from tests.support.running import Running, running
from turnout import Event, flow
from turnout.service.domain.errors import PositionsMoved, TriggerError
from turnout.triggers.kafka import KafkaTrigger
from turnout.triggers.kafka import kafka as records_of

from .ledger import snapshot
from .machine import Ballast, small_disk
from .records import SHORT_SESSION, Feeder, Group, judge, numbers, places, stopped

pytestmark = pytest.mark.timeout(1200)

COMMIT_FIRST = """
import asyncio
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.domain.event import mint_id
from turnout.service.domain.trigger import Receipt

honest, late = TriggerEmitter.__call__, set()

async def hasty(self, events, positions=None, **more):
    async def later():
        await asyncio.sleep(0.5)  # commits go out every 0.2 s
        await honest(self, events, positions, **more)
    late.add(asyncio.get_running_loop().create_task(later()))
    return [Receipt(event=event.id, runs=(mint_id(),)) for event in events]

TriggerEmitter.__call__ = hasty
"""

FORGET_OWN_COMMITS = """
from turnout.triggers.kafka.positions import Bounds

Bounds.seen_by = lambda self, member: self
"""

ACCEPT_UNWRITTEN = """
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.domain.errors import JournalFull

honest = TriggerEmitter.__call__

async def careless(self, events, positions=None, **more):
    try:
        return await honest(self, events, positions, **more)
    except JournalFull:
        return []

TriggerEmitter.__call__ = careless
"""


def kill_once(group: Group, program: Program, dice: random.Random) -> list[str]:
    """Start a member, kill it while it reads; returns where Kafka was told too much."""
    program.start().ready()
    before = sum(places(program.data, live=True).values())
    until(lambda: sum(places(program.data, live=True).values()) > before, 30, "a record read")
    time.sleep(dice.uniform(0.02, 0.8))
    program.kill()
    return group.ahead(program)


def test_killed_consumers_lose_and_double_nothing(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    group, dice, ahead = Group.on(kafka, partitions=6), random.Random(seed), []
    feeder = Feeder(broker=kafka, topic=group.topic, pace=1000 if full else 600)
    with group.program(tmp_path / "member", **SHORT_SESSION) as program:
        with feeder.running():
            for _ in range(20 if full else 2):
                ahead += kill_once(group, program, dice)
            program.start().ready()
            for _ in range(20 if full else 3):
                time.sleep(dice.uniform(0.02, 0.3))
                with stopped(program):
                    ahead += group.ahead(program)
        group.all_read(program)
        assert program.stop() == 0
        program.check_journal()
        ahead += group.ahead(program)
    truth = group.truth()
    verdict = judge(truth, [snapshot(program.data)])
    say(f"{len(truth)} records: {len(verdict.lost)} lost, {verdict.doubled} doubled")
    assert feeder.acknowledged == set(truth.values())
    assert (verdict.lost, verdict.doubled, verdict.wrong[:5], ahead) == ([], 0, [], [])


@pytest.mark.full
@pytest.mark.parametrize("knows_its_own", [True, False], ids=["reads again", "loses"])
def test_committing_before_the_journal_is_noticed(
    kafka: Broker, tmp_path: Path, seed: int, knows_its_own: bool
) -> None:
    """A journal that finds its own commits ahead of it reads again, as one that was restored."""
    sabotage = COMMIT_FIRST + ("" if knows_its_own else FORGET_OWN_COMMITS)
    group, dice, ahead = Group.on(kafka, partitions=6), random.Random(seed), []
    feeder = Feeder(broker=kafka, topic=group.topic, pace=600)
    with group.program(tmp_path / "member", sabotage=sabotage, **SHORT_SESSION) as program:
        with feeder.running():
            for _ in range(10):
                ahead += kill_once(group, program, dice)
                if ahead:
                    break
        program.start().ready()
        group.all_read(program)
        assert program.stop() == 0
    assert ahead
    assert bool(judge(group.truth(), [snapshot(program.data)]).lost) is not knows_its_own


COMMIT_ROUND_SECONDS = 0.4  # commits go out every 0.2 s, and take a while


# ---- many members


@contextmanager
def three_members(group: Group, folder: Path) -> Iterator[Sequence[Program]]:
    """Start three programs that read as one group, with a journal each."""
    with ExitStack() as stack:
        members = [
            stack.enter_context(group.program(folder / f"member-{number}")) for number in range(3)
        ]
        for member in members:
            member.start()
        for member in members:
            member.ready()
        yield members


def test_members_with_a_journal_each_double_only_what_a_kill_left_uncommitted(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    group, dice = Group.on(kafka, partitions=6), random.Random(seed)
    feeder = Feeder(broker=kafka, topic=group.topic, pace=400)
    ahead: list[str] = []
    deaths, longest = (20, 2.0) if full else (2, 0.7)
    # What a death leaves is looked up after it, when the next owner of a partition may already
    # have read it again and committed: that hides up to what one round of commits covers.
    bound = deaths * round(feeder.pace * COMMIT_ROUND_SECONDS)
    untold = 0
    with three_members(group, tmp_path) as members:
        with feeder.running():
            feeder.has_sent(200)
            for _ in range(deaths):
                member = dice.choice(members)
                if dice.random() < 0.3:
                    assert member.stop() == 0
                    untold += _uncommitted(group, member)
                else:
                    member.kill()
                    bound += _uncommitted(group, member)
                time.sleep(dice.uniform(0, longest))
                member.start().ready()
                time.sleep(dice.uniform(0, longest))
            with ExitStack() as held:
                for member in members:
                    held.enter_context(stopped(member))
                ahead += group.ahead(*members)
        group.all_read(*members)
        for member in members:
            assert member.stop() == 0
        ahead += group.ahead(*members)
    truth = group.truth()
    verdict = judge(truth, [snapshot(member.data) for member in members])
    say(
        f"{len(truth)} records: {len(verdict.lost)} lost, {verdict.doubled} doubled, "
        f"{bound} allowed; {untold} not committed by clean stops"
    )
    assert (verdict.lost, verdict.wrong[:5], ahead) == ([], [], [])
    assert verdict.doubled <= bound + untold


@pytest.mark.full
def test_members_that_come_and_go_cleanly_double_nothing(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    """A clean stop and a rebalance tell Kafka all that is journaled, so no other journal has it."""
    group, dice = Group.on(kafka, partitions=6), random.Random(seed)
    feeder = Feeder(broker=kafka, topic=group.topic, pace=800)
    untold: list[int] = []
    with three_members(group, tmp_path) as members:
        with feeder.running():
            feeder.has_sent(200)
            for _ in range(20 if full else 2):
                member = dice.choice(members)
                assert member.stop() == 0
                untold.append(_uncommitted(group, member))
                time.sleep(dice.uniform(0, 1 if full else 0.5))
                member.start().ready()
                time.sleep(dice.uniform(0, 1 if full else 0.5))
        group.all_read(*members)
        for member in members:
            assert member.stop() == 0
            untold.append(_uncommitted(group, member))
    truth = group.truth()
    verdict = judge(truth, [snapshot(member.data) for member in members])
    say(f"{len(truth)} records, {len(untold)} clean stops: {verdict.doubled} doubled")
    assert (verdict.lost, verdict.doubled, verdict.wrong[:5]) == ([], 0, [])
    assert not any(untold), untold


def _uncommitted(group: Group, member: Program) -> int:
    """Return how many records a dead member had journaled and not committed."""
    committed = group.committed()
    held = places(member.data)
    return sum(max(0, offset - committed.get(at, 0)) for at, offset in held.items())


@pytest.mark.full
async def test_six_members_of_one_journal_lose_and_double_nothing(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    if kafka.kind == "mesh":
        pytest.skip("a leader that leaves while a group rebalances leaves it waiting on mesh")
    count, dice = (50_000 if full else 3_000), random.Random(seed)
    topic = await kafka.create_topic(partitions=12)
    trigger = records_of(topic, group=unique("group"), start="earliest", session="2s")
    done = asyncio.Event()
    reads = 0
    joined: list[float] = []

    @flow(on=trigger)
    async def read(event: Event) -> int:
        nonlocal reads
        reads += 1
        if reads >= count:
            done.set()
        number: int = event.data["number"]
        return number

    async with running(tmp_path, [read], kafka_bootstrap_servers=kafka.bootstrap) as app:
        await app.process.start_triggers()  # the first member, which stays
        async with asyncio.TaskGroup() as tasks:
            longest = 3.0 if full else 1.5
            others = [
                tasks.create_task(_come_and_go(app, trigger, dice, joined, longest))
                for _ in range(5)
            ]
            for first in range(0, count, 200):
                values = [b'{"number": %d}' % number for number in range(first, first + 200)]
                await kafka.send(topic, values)
                await asyncio.sleep(0.2 if full else 0.25)
            for other in others:
                other.cancel()
        async with asyncio.timeout(180):
            await done.wait()
        await app.all_finished()
    truth = numbers(await kafka.records(topic))
    verdict = judge(truth, [snapshot(tmp_path)])
    say(
        f"{len(truth)} records, {len(joined)} members joined and left: "
        f"{len(verdict.lost)} lost, {verdict.doubled} doubled"
    )
    assert len(truth) == count
    assert (verdict.lost, verdict.doubled, verdict.wrong[:5]) == ([], 0, [])
    assert len(joined) > 7, "nobody came back"


async def _come_and_go(
    app: Running, trigger: KafkaTrigger, dice: random.Random, joined: list[float], longest: float
) -> None:
    """Be a second member in the same process, for some time, again and again."""
    while True:
        joined.append(dice.uniform(0.5, longest))
        with suppress(TimeoutError, TriggerError, PositionsMoved):  # its supervisor begins anew
            async with asyncio.timeout(joined[-1]):
                await trigger.run(app.process.emitters[trigger.name].session())
        await asyncio.sleep(dice.uniform(0, longest - 1))


# ---- the disk


def fill_while_reading(group: Group, program: Program, place: Path) -> list[str]:
    """Fill the disk under a reading member and free it; returns where Kafka was told too much."""
    ballast = Ballast(place)
    until(lambda: sum(places(program.data, live=True).values()) > 500, 30, "records read")
    ballast.fill()
    until(lambda: _is_paused(program), 30, "paused partitions")
    until(lambda: group.committed() == places(program.data, live=True), 30, "all journaled told")
    with stopped(program):
        ahead, told, held = group.ahead(program), group.committed(), places(program.data)
    time.sleep(1.0)
    with stopped(program):
        ahead += group.ahead(program)
        if (group.committed() != told) and (places(program.data) == held):
            ahead.append("committed while nothing was journaled")
    ballast.free()
    return ahead


def _is_paused(program: Program) -> bool:
    figures = program.metrics("turnout_trigger_figures")
    return any(value > 0 for labels, value in figures.items() if "paused_partitions" in labels)


def test_nothing_is_committed_on_a_full_disk_and_nothing_lost(
    kafka: Broker, tmp_path: Path, say: Say
) -> None:
    group = Group.on(kafka, partitions=6)
    feeder = Feeder(broker=kafka, topic=group.topic, pace=400, padding=2_000)
    with small_disk(tmp_path / "disk", 48) as place, group.program(place / "member") as program:
        program.log = tmp_path / "log"
        program.start().ready()
        with feeder.running():
            ahead = fill_while_reading(group, program, place)
            freed = time.monotonic()
            until(lambda: not _is_paused(program), 30, "resumed partitions")
            recovered = time.monotonic() - freed
        group.all_read(program)
        assert program.stop() == 0
        program.check_journal()
        verdict = judge(group.truth(), [snapshot(program.data)])
    say(f"{len(group.truth())} records; reading again {recovered:.2f} s after there was room")
    assert (verdict.lost, verdict.doubled, verdict.wrong[:5], ahead) == ([], 0, [], [])
    assert recovered <= 10.0


def test_a_swallowed_refusal_is_noticed(kafka: Broker, tmp_path: Path) -> None:
    group = Group.on(kafka, partitions=6)
    feeder = Feeder(broker=kafka, topic=group.topic, pace=400, padding=2_000)
    with (
        small_disk(tmp_path / "disk", 48) as place,
        group.program(place / "member", sabotage=ACCEPT_UNWRITTEN) as program,
    ):
        program.log = tmp_path / "log"
        program.start().ready()
        with feeder.running():
            ballast = Ballast(place)
            feeder.has_sent(500)
            ballast.fill()
            until(lambda: _is_full(program), 30, "a full journal")
            feeder.has_sent(len(feeder.acknowledged) + 500)
            with stopped(program):
                ahead = group.ahead(program)
            ballast.free()
    assert ahead


def _is_full(program: Program) -> bool:
    answer = program.ask("/readyz")
    return answer is not None and b"journal" in answer.body

"""Priority: classes share starts 8 : 2 : 1, none starves, and a key goes with its head."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.running import Running, make_event, running
from turnout import flow, limit
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.flowcontrol.priority import HIGH, LOW, NORMAL, ClassTurns
from turnout.service.operate.verbs import ReplayDead


def shares(turns: ClassTurns, ready: set[int], starts: int) -> Counter[int]:
    taken: Counter[int] = Counter()
    for _ in range(starts):
        chosen = turns.next(ready)
        turns.started(chosen, ready)
        taken[chosen] += 1
    return taken


def test_classes_share_starts_8_to_2_to_1_and_an_idle_one_gives_its_share_away() -> None:
    turns = ClassTurns()
    assert shares(turns, {HIGH, NORMAL, LOW}, 110) == {HIGH: 80, NORMAL: 20, LOW: 10}
    assert shares(turns, {NORMAL, LOW}, 30) == {NORMAL: 20, LOW: 10}
    assert shares(turns, {LOW}, 5) == {LOW: 5}, "one class alone gets all"
    busy = shares(turns, {HIGH, LOW}, 9)
    assert busy == {HIGH: 8, LOW: 1}, "what was idle has saved nothing up"


async def test_an_urgent_run_goes_before_a_backlog_which_still_gets_its_share(
    tmp_path: Path,
) -> None:
    started: list[str] = []

    @flow(priority=lambda event: event.data, concurrency=limit(2))
    async def work(event: Event) -> None:
        started.append(event.data)
        await asyncio.sleep(0)

    async with running(tmp_path, [work]) as service:
        service.process.dispatcher.pause("work")
        for _ in range(600):  # more than a window of the queue holds
            await service.send("normal")
        for _ in range(88):
            await service.send("high")
        service.process.dispatcher.resume("work")
        runs = await service.all_finished()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    last = max(at for at, name in enumerate(started) if name == "high")
    assert 100 <= last < 130, "88 urgent runs and a fifth as many others"
    assert 15 <= started[:last].count("normal") <= 40


async def test_a_run_that_comes_as_a_slot_is_free_does_not_take_the_turn_of_an_urgent_one(
    tmp_path: Path,
) -> None:
    started: list[str] = []
    began, go = asyncio.Event(), asyncio.Event()

    @flow(priority="high", when=lambda event: event.data == "urgent")
    async def urgent() -> None:
        started.append("urgent")

    @flow(priority="low", when=lambda event: event.data == "bulk")
    async def bulk() -> None:
        started.append("bulk")
        began.set()
        await go.wait()

    async with running(tmp_path, [urgent, bulk], concurrency=1) as service:
        await service.send("bulk")
        await began.wait()
        await service.send("urgent")
        go.set()
        while not service.process.dispatcher.free_slots:  # noqa: ASYNC110  for a turn of the loop
            await asyncio.sleep(0)
        await service.send("bulk")
        await service.all_finished()
    assert started == ["bulk", "urgent", "bulk"]


async def test_runs_of_a_key_have_the_class_of_its_head(tmp_path: Path) -> None:
    @flow(priority=lambda event: event.data, ordered_by=lambda event: "key")
    async def work(event: Event) -> None: ...

    async with running(tmp_path, [work]) as service:
        service.process.dispatcher.pause("work")
        ids = [(await service.send(name)).runs[0] for name in ("low", "high", "normal")]
        classes = [row.priority for row in await service.process.journal.queued("work", 0, 9)]
        assert classes == [LOW, LOW, LOW]
        service.process.dispatcher.resume("work")
        for run_id in ids:
            assert (await service.finished(run_id)).state is RunState.SUCCEEDED


async def test_a_replay_while_the_flow_is_not_loaded_stays_behind_its_key(tmp_path: Path) -> None:
    started: list[str] = []

    @flow(priority="low", ordered_by=lambda event: "key", on_dead="block")
    async def work(event: Event) -> None:
        started.append(event.data)
        if started == ["fails"]:
            raise ValueError

    @flow(when=lambda event: False)
    async def other() -> None: ...

    async with running(tmp_path, [work]) as service:
        first = (await service.send("fails")).runs[0]
        await service.finished(first)
        await service.send("waits")
    async with running(tmp_path, [other]) as service:
        await service.process.operator.do(ReplayDead(first))
        classes = [row.priority for row in await service.process.journal.queued("work", 0, 9)]
        assert classes == [LOW, LOW]
    async with running(tmp_path, [work]) as service:
        await service.all_finished()
    assert started == ["fails", "waits", "fails"]


async def test_runs_queued_before_classes_were_declared_are_normal_and_start(
    tmp_path: Path,
) -> None:
    def work(**policy: Any) -> Any:
        @flow(name="work", **policy)
        async def work(event: Event) -> None: ...

        return work

    async with running(tmp_path, [work()]) as service:
        service.process.dispatcher.pause("work")
        for number in range(3):
            await service.send(number)
    async with running(tmp_path, [work(priority="high")]) as service:
        await service.send(3)
        runs = await service.all_finished()
    assert len(runs) == 4
    assert {run.state for run in runs} == {RunState.SUCCEEDED}


async def test_a_priority_that_is_no_class_is_a_dead_letter(tmp_path: Path) -> None:
    urgent: Any = lambda event: "urgent"  # noqa: E731

    @flow(priority=urgent)
    async def work(event: Event) -> None: ...

    async with running(tmp_path, [work]) as service:
        run = await service.run((await service.send(1)).runs[0])
    assert run.dead and run.error is not None
    assert 'priority= is "high", "normal" or "low", not \'urgent\'' in run.error.message


@pytest.mark.parametrize("given", ["urgent", 1])
def test_a_priority_that_is_no_class_is_refused_by_name(given: Any) -> None:
    with pytest.raises(SetupError, match='write "high", "normal" or "low", or a function'):

        @flow(priority=given)
        async def work(event: Event) -> None: ...


WORK_SECONDS = 0.01


def busy(waits: dict[str, list[float]]) -> Any:
    """Return a flow of 10 ms of work, which notes how long each run has waited, by class."""

    @flow(priority=lambda event: event.data[0])
    async def work(event: Event) -> None:
        name, sent = event.data
        waits.setdefault(name, []).append(time.monotonic() - sent)
        await asyncio.sleep(WORK_SECONDS)

    return work


async def backlog(service: Running, count: int) -> None:
    """Queue so many normal runs."""
    for start in range(0, count, 500):
        at = time.monotonic()
        events = [make_event(("normal", at)) for _ in range(min(500, count - start))]
        await service.emitter(events)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_urgent_runs_wait_a_second_at_most_behind_a_backlog(
    tmp_path: Path, full: bool, say: Say
) -> None:
    waits: dict[str, list[float]] = {}
    async with running(tmp_path, [busy(waits)], concurrency=8) as service:
        service.process.dispatcher.pause("work")
        await backlog(service, 60_000 if full else 3_000)
        service.process.dispatcher.resume("work")
        for _ in range(300 if full else 60):
            await service.send(("high", time.monotonic()))
            await asyncio.sleep(0.05)
        await eventually_all(waits, "high", 300 if full else 60)
        left = service.process.journal.counts()[0]["queued"]
        service.process.dispatcher.pause("work")
    high = sorted(waits["high"])
    say(f"p99 of high {high[int(len(high) * 0.99)]:.3f} s, {left} normal runs left")
    assert left > 0, "the backlog was there all the time"
    assert high[int(len(high) * 0.99)] <= 1.0


@pytest.mark.timeout(600)
async def test_a_flood_of_urgent_runs_leaves_the_others_their_share(
    tmp_path: Path, full: bool, say: Say
) -> None:
    waits: dict[str, list[float]] = {}
    async with running(tmp_path, [busy(waits)], concurrency=8) as service:
        service.process.dispatcher.pause("work")
        count = 10_000 if full else 800
        await backlog(service, count)
        at = time.monotonic()
        for _ in range(0, count, 200):
            await service.emitter([make_event(("high", at)) for _ in range(200)])
        service.process.dispatcher.resume("work")
        await eventually_all(waits, "high", count // 2)
        service.process.dispatcher.pause("work")
    normal, high = len(waits["normal"]), len(waits["high"])
    say(f"normal had {normal / (normal + high):.3f} of the starts")
    assert normal / (normal + high) >= 0.18


async def eventually_all(waits: dict[str, list[float]], name: str, count: int) -> None:
    """Wait until so many runs of a class have started."""
    async with asyncio.timeout(300):
        while len(waits.get(name, ())) < count:  # noqa: ASYNC110  what the flow has noted
            await asyncio.sleep(0.01)

"""Priority: classes share starts 8 : 2 : 1, none starves, and a key goes with its head."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import running
from turnout import flow, limit
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.flowcontrol.priority import HIGH, LOW, NORMAL, ClassTurns


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

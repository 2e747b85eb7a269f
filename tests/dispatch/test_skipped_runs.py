"""Runs that end while they wait leave memory: no claim is made for them, and they hold no key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import make_event, running
from turnout import flow, limit
from turnout.service.domain.event import Event
from turnout.service.operate.verbs import Cancel

MANY = 100


@pytest.mark.parametrize(
    "options",
    [{}, {"concurrency": limit(1, per=lambda event: "a")}, {"ordered_by": lambda event: "a"}],
    ids=["alone", "at a limit", "in order"],
)
@pytest.mark.parametrize("slots", [1, 8])
async def test_of_many_outdated_runs_only_the_newest_is_in_memory_and_claimed(
    tmp_path: Path, options: dict[str, Any], slots: int
) -> None:
    may_end, started = asyncio.Event(), []

    @flow(mode="latest", **options)
    async def work(event: Event) -> None:
        started.append(event.data)
        await may_end.wait()

    async with running(tmp_path, [work], concurrency=slots) as service:
        claims = inside.count_claims(service.process)
        for number in range(MANY):
            await service.emitter([make_event(number)])
            await asyncio.sleep(0)
        (queue,) = inside.queues(service.process)
        assert len(list(queue.rows())) <= 2
        may_end.set()
        await service.all_finished()
        assert started[-1] == MANY - 1
        assert len(claims) <= MANY / 10, "none for most of the runs, which never start"


async def test_no_run_is_claimed_in_vain_while_newer_ones_keep_coming(tmp_path: Path) -> None:
    """A claim behind the write of a newer run finds nothing: none would start before a lull."""
    may_end, started = asyncio.Event(), []
    in_vain: list[int] = []

    @flow(mode="latest")
    async def work(event: Event) -> None:
        started.append(event.data)
        await may_end.wait()

    async with running(tmp_path, [work]) as service:
        claim = service.process.journal.claim

        async def claiming(seqs: Sequence[int], **rest: Any) -> Any:
            claimed = await claim(seqs, **rest)
            in_vain.extend({*seqs} - {run.claim.run_seq for run in claimed})
            return claimed

        service.process.journal.claim = claiming  # type: ignore[method-assign]
        service.process.dispatcher.pause("work")
        await service.send(0)
        service.process.dispatcher.resume("work")
        for number in range(1, MANY):
            await service.send(number)
        assert len(started) == 1, "it has not waited for a lull"
        may_end.set()
        await service.all_finished()
    assert started[-1] == MANY - 1
    assert in_vain == []


class Began:
    """The names of runs that have begun."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._another = asyncio.Condition()

    async def note(self, name: str) -> None:
        async with self._another:
            self._names.add(name)
            self._another.notify_all()

    async def has(self, name: str) -> None:
        """Wait until a run has begun."""
        async with asyncio.timeout(10), self._another:
            await self._another.wait_for(lambda: name in self._names)


async def test_a_run_that_is_cancelled_before_it_asks_does_not_take_its_ordering_key(
    tmp_path: Path,
) -> None:
    began = Began()
    may_end = {"short": asyncio.Event(), "long": asyncio.Event()}

    @flow(
        concurrency=limit(1, per=lambda event: event.data["account"]),
        ordered_by=lambda event: event.data["order"],
    )
    async def work(event: Event) -> None:
        await began.note(event.data["name"])
        if event.data["name"] in may_end:
            await may_end[event.data["name"]].wait()

    async with running(tmp_path, [work], concurrency=2) as service:
        await service.send({"name": "short", "order": "a", "account": "x"})
        await service.send({"name": "long", "order": "b", "account": "y"})
        cancelled = await service.send({"name": "never", "order": "c", "account": "y"})
        await service.process.operator.do(Cancel(cancelled.runs[0]))
        may_end["short"].set()
        await service.send({"name": "next", "order": "c", "account": "z"})
        await began.has("next")
        may_end["long"].set()


async def test_a_run_that_is_replaced_as_it_arrives_does_not_take_its_ordering_key(
    tmp_path: Path,
) -> None:
    """The one that replaces it, of another ordering key, comes in the same delivery."""
    began, may_end = Began(), asyncio.Event()

    @flow(
        mode="replace",
        key=lambda event: event.data["repository"],
        ordered_by=lambda event: event.data["order"],
    )
    async def deploy(event: Event) -> None:
        await began.note(event.data["name"])
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            await may_end.wait()  # it takes its time to end
            raise

    patient = timedelta(seconds=60)
    async with running(tmp_path, [deploy], concurrency=4, grace=patient) as service:
        await service.send({"name": "first", "order": "a", "repository": "x"})
        await began.has("first")
        both = [("replaced", "b"), ("newest", "c")]
        await service.emitter(
            [make_event({"name": name, "order": order, "repository": "x"}) for name, order in both]
        )
        await service.send({"name": "other", "order": "b", "repository": "y"})
        await began.has("other")
        may_end.set()

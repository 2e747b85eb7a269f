"""How far ahead a trigger reads depends on the progress of its runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit
from turnout.service.dispatch.backpressure import MAX_CREDIT
from turnout.service.dispatch.queue import Queue
from turnout.service.domain.event import Event


@flow
async def at_once(event: Event) -> None:
    pass


async def feed(service: Running, count: int, *, asks: bool = True) -> None:
    """Emit `count` events as a pull trigger does; `asks`: it asks for credit first."""
    sent = 0
    while sent < count:
        credit = await service.emitter.credit() if asks else MAX_CREDIT
        assert 1 <= credit <= MAX_CREDIT
        numbers = range(sent, min(sent + credit, count))
        await service.emitter([make_event(number) for number in numbers])
        sent = numbers.stop


def queue_of(service: Running, flow_name: str) -> Queue:
    return inside.scheduler(service.process).queue(flow_name)


def watch_claims(service: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every later claim adds the seqs of its runs."""
    claimed: list[int] = []
    claim = service.process.journal.claim

    async def claiming(seqs: Sequence[int], **rest: Any) -> Any:
        claimed.extend(seqs)
        return await claim(seqs, **rest)

    monkeypatch.setattr(service.process.journal, "claim", claiming)
    return claimed


@pytest.mark.parametrize("asks", [True, False])
async def test_runs_that_end_as_fast_as_they_arrive_never_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    async with running(tmp_path, [at_once]) as service:
        claimed = watch_claims(service, monkeypatch)
        await feed(service, 4000, asks=asks)
        assert len(await service.all_finished()) == 4000
    assert (max(claimed, default=0) < 2500) is asks, "the first arrive before anything is measured"


async def test_credit_is_for_events_that_can_start_all_their_runs(tmp_path: Path) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    @flow(concurrency=30)
    async def narrow(event: Event) -> None:
        started.set()
        await gate.wait()

    async with running(tmp_path, [at_once], concurrency=50) as service:
        assert await service.emitter.credit() == MAX_CREDIT, "no flow has runs yet"
        await feed(service, 50)
        await service.all_finished()
        assert await service.emitter.credit() == 50
    async with running(tmp_path / "two", [at_once, narrow], concurrency=50) as service:
        await service.send(1)
        await started.wait()
        assert await service.emitter.credit() == 24
        gate.set()


@pytest.mark.parametrize("asks", [True, False])
async def test_longer_runs_are_fed_from_a_short_queue(tmp_path: Path, asks: bool) -> None:
    now, most, longest = 0, 0, 0

    @flow
    async def longer(event: Event) -> None:
        nonlocal now, most, longest
        now += 1
        most = max(most, now)
        longest = max(longest, inside.window(queue_of(service, "longer")))
        await asyncio.sleep(0.002)
        now -= 1

    async with running(tmp_path, [longer], concurrency=40) as service:
        await feed(service, 2000, asks=asks)
        assert len(await service.all_finished()) == 2000
    assert most == 40
    assert longest > 0
    assert (longest < 1000) is asks, "the first arrive before any progress"


async def test_runs_that_became_fast_no_longer_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    async def faster(event: Event) -> None:
        if event.data < 500:
            await asyncio.sleep(0.002)

    async with running(tmp_path, [faster]) as service:
        claimed = watch_claims(service, monkeypatch)
        await feed(service, 4000)
        assert len(await service.all_finished()) == 4000
    assert claimed
    assert max(claimed) < 3500


@pytest.mark.parametrize("slots", [1, 64])
async def test_without_progress_credit_does_not_wait(tmp_path: Path, slots: int) -> None:
    gate = asyncio.Event()

    @flow(concurrency=limit(slots))
    async def stuck(event: Event) -> None:
        await gate.wait()

    async with running(tmp_path, [stuck]) as service:
        await feed(service, 3 * MAX_CREDIT)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        for _ in range(10):
            assert await service.emitter.credit() == MAX_CREDIT
        assert loop.time() - asked < 0.1
        gate.set()
        await service.all_finished()
        assert await service.emitter.credit() == (64 if slots == 64 else MAX_CREDIT)


@pytest.mark.parametrize("stuck", [True, False])
async def test_a_flow_with_nothing_to_do_does_not_wait_for_one_that_has_enough(
    tmp_path: Path, stuck: bool
) -> None:
    gate, done = asyncio.Event(), 0

    @flow
    async def quick(event: Event) -> None:
        nonlocal done
        done += 1

    @flow(concurrency=1)
    async def slow(event: Event) -> None:
        await (gate.wait() if stuck else asyncio.sleep(0.002))

    async def all_quick() -> bool:
        return done == 500 and not inside.scheduler(service.process).starting

    async with running(tmp_path, [quick, slow], concurrency=50) as service:
        await feed(service, 500, asks=False)
        await eventually(all_quick)
        for _ in range(3):
            assert inside.window(queue_of(service, "slow"))
            assert 20 <= await service.emitter.credit() <= 25
        gate.set()

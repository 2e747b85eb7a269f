"""What rules cost: five on a flow, and keys, compared with the same load in the same run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.running import Running, make_event, running
from turnout import flow, limit
from turnout.service.domain.event import Event


def key(event: Event) -> int:
    return int(event.data["key"])


def work(name: str, **policy: Any) -> Any:
    @flow(name=name, **policy)
    async def work(event: Event) -> None: ...

    return work


async def seconds(service: Running, to: Any, events: int, keys: int) -> float:
    """Return the processor time that so many events and their runs take."""
    service.emitter.flows = lambda _event: (to,)
    began = time.process_time()
    for start in range(0, events, 250):
        made = [make_event({"key": number % keys}) for number in range(start, start + 250)]
        await service.emitter(made)
    await service.all_finished()
    return time.process_time() - began


async def ratio(
    folder: Path, first: Any, second: Any, events: int, keys: int, rounds: int
) -> float:
    """Return how much more processor time the second flow takes than the first, by turns.

    The lowest time of each counts: whatever else the machine does only adds to it.
    """
    async with running(folder, [first, second], concurrency=64) as service:
        for each in (first, second):
            await seconds(service, each, 250, keys)
        pairs = [
            (
                await seconds(service, first, events, keys),
                await seconds(service, second, events, keys),
            )
            for _ in range(rounds)
        ]
    return min(dear for _, dear in pairs) / min(cheap for cheap, _ in pairs)


@pytest.mark.timeout(900)
async def test_five_rules_cost_little_more_than_one(tmp_path: Path, full: bool, say: Say) -> None:
    one = work("one", concurrency=limit(50, per=key))
    five = work("five", concurrency=[limit(50 + number, per=key) for number in range(5)])
    events, rounds = (5_000, 5) if full else (750, 6)
    found = await ratio(tmp_path, one, five, events, 100, rounds)
    say(f"five rules: {found:.2f} x of one")
    assert found <= (1.3 if full else 1.6)


@pytest.mark.timeout(900)
async def test_keys_with_order_and_a_limit_keep_most_of_the_throughput(
    tmp_path: Path, full: bool, say: Say
) -> None:
    plain = work("plain")
    keyed = work("keyed", ordered_by=key, concurrency=limit(1, per=key))
    events, keys, rounds = (25_000, 10_000, 2) if full else (750, 300, 6)
    found = await ratio(tmp_path, plain, keyed, events, keys, rounds)
    say(f"keys: {1 / found:.2f} x of the throughput without")
    assert 1 / found >= (0.7 if full else 0.5)

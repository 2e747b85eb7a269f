"""What rules cost: five on a flow, and keys, compared with the same load in the same run."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit
from turnout.service.domain.event import Event

pytestmark = [pytest.mark.slow, pytest.mark.alone]

AT_ONCE = 250


def key(event: Event) -> int:
    return int(event.data["key"])


class Load:
    """Sends events over so many keys to flows, which note in which order they come."""

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self.seen: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._numbers = count()
        self._dice = Random(keys)

    def flow(self, name: str, **policy: Any) -> Any:
        """Return a flow that notes its events by key."""

        @flow(name=name, **policy)
        async def work(event: Event) -> None:
            self.seen[name, event.data["key"]].append(event.data["number"])

        return work

    async def seconds(self, service: Running, to: Any, events: int) -> float:
        """Return the processor time that so many events and their runs take."""
        service.emitter.flows = lambda _event: (to,)
        began = time.process_time()
        for _ in range(0, events, AT_ONCE):
            keys = self._dice.choices(range(self.keys), k=AT_ONCE)
            made = [make_event({"key": key, "number": next(self._numbers)}) for key in keys]
            await service.emitter(made)
        journal = service.process.journal
        await eventually(lambda: asyncio.sleep(0, not any(journal.counts()[0].values())))
        return time.process_time() - began

    async def ratio(self, folder: Path, first: Any, second: Any, events: int, rounds: int) -> float:
        """Return how much more processor time the second flow takes than the first, by turns.

        The lowest time of each counts: whatever else the machine does only adds to it.
        """
        async with running(folder, [first, second], concurrency=64) as service:
            for each in (first, second):
                await self.seconds(service, each, AT_ONCE)
            gc.collect()
            gc.freeze()  # as the program does: what other tests have loaded is not looked at again
            try:
                pairs = [
                    (
                        await self.seconds(service, first, events),
                        await self.seconds(service, second, events),
                    )
                    for _ in range(rounds)
                ]
            finally:
                gc.unfreeze()
        return min(dear for _, dear in pairs) / min(cheap for cheap, _ in pairs)


@pytest.mark.timeout(900)
async def test_five_rules_cost_little_more_than_one(tmp_path: Path, full: bool, say: Say) -> None:
    load = Load(keys=100)
    one = load.flow("one", concurrency=limit(50, per=key))
    five = load.flow("five", concurrency=[limit(50 + number, per=key) for number in range(5)])
    events, rounds = (5_000, 8) if full else (750, 6)
    found = await load.ratio(tmp_path, one, five, events, rounds)
    say(f"five rules: {found:.2f} x of one")
    assert found <= (1.3 if full else 1.6)


@pytest.mark.timeout(900)
async def test_keys_with_order_and_a_limit_keep_most_of_the_throughput_and_the_order(
    tmp_path: Path, full: bool, say: Say
) -> None:
    load = Load(keys=10_000 if full else 300)
    plain = load.flow("plain")
    keyed = load.flow("keyed", ordered_by=key, concurrency=limit(1, per=key))
    events, rounds = (5_000, 10) if full else (750, 6)  # 50,000 of each flow
    found = await load.ratio(tmp_path, plain, keyed, events, rounds)
    say(f"keys: {1 / found:.2f} x of the throughput without")
    ordered = [numbers for (name, _), numbers in load.seen.items() if name == "keyed"]
    assert sum(map(len, ordered)) == events * rounds + AT_ONCE
    assert all(numbers == sorted(numbers) for numbers in ordered), "the order is exact"
    assert 1 / found >= (0.7 if full else 0.5)

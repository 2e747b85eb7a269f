"""Measures what rules cost, in a process of its own: `python -m tests.support.rules_load`.

A process that has run thousands of tests has a heap of its own: there five rules took 2.3 times as
long as one, in a fresh one 1.2 times. Arguments: a folder, `rules` or `keys`, how many keys, how
many events in a round, how many rounds. Prints `Found` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit
from turnout.service.app.serve import tune_garbage_collector
from turnout.service.domain.event import Event

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
            tune_garbage_collector()
            pairs = [
                (
                    await self.seconds(service, first, events),
                    await self.seconds(service, second, events),
                )
                for _ in range(rounds)
            ]
        return min(dear for _, dear in pairs) / min(cheap for cheap, _ in pairs)


class Found(NamedTuple):
    """How much longer the flow with rules took, and what it noted for each key."""

    ratio: float
    ordered: list[list[int]]


async def measure(folder: Path, what: str, keys: int, events: int, rounds: int) -> Found:
    load = Load(keys)
    if what == "rules":
        plain = load.flow("plain", concurrency=limit(50, per=key))
        ruled = load.flow("ruled", concurrency=[limit(50 + each, per=key) for each in range(5)])
    else:
        plain = load.flow("plain")
        ruled = load.flow("ruled", ordered_by=key, concurrency=limit(1, per=key))
    ratio = await load.ratio(folder, plain, ruled, events, rounds)
    return Found(ratio, [numbers for (name, _), numbers in load.seen.items() if name == "ruled"])


def found(folder: Path, what: str, **sizes: int) -> Found:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", __name__, str(folder), what, *map(str, sizes.values())]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return Found(*json.loads(ended.stdout.splitlines()[-1]))


if __name__ == "__main__":
    place, measured, *numbers = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(Path(place), measured, *map(int, numbers)))))  # noqa: T201

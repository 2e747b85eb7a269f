"""Back-pressure: how many events a pull trigger should fetch next.

A run whose event arrives while a slot is free starts on insert; otherwise it is written as queued
and claimed by a second write (measured: a third more work for the journal). So while runs end as
fast as they arrive, a trigger is asked for as many events as there are free slots. When runs take
longer, a short queue keeps every slot busy. When runs make no progress, the trigger is not slowed:
the journal is the queue then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from .queue import Queue
from .scheduling import Scheduler

MAX_CREDIT = 128
"""Most events asked for at once: with more, their data falls out of the processor's cache."""

MIN_SLOTS = 16  # with fewer, a batch for the free ones would be too small
_LOOP_TURNS = 3  # turns of the loop in which a run that awaits nothing starts and ends
PROBE_EVERY = 16  # refills of a queue before it is left to run empty: runs may be fast again
_POLL_SECONDS = 0.02
_MAX_WAIT_SECONDS = 0.2


class Backpressure:
    """Paces one trigger by the progress of the flows it starts."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._taken = 0
        self._refills: Counter[str] = Counter()

    async def credit(self, flows: Sequence[str]) -> int:
        """Return how many events to fetch; wait up to 0.2 s while runs make progress."""
        queues = [self._scheduler.queue(flow) for flow in flows]
        loop = asyncio.get_running_loop()
        polled_at = loop.time()
        deadline = polled_at + _MAX_WAIT_SECONDS
        taken, self._taken = self._taken, _taken(queues)
        while queues and loop.time() < deadline:
            credit = self._credit(queues)
            if credit:
                return credit
            if taken == self._taken and any(queue.waiting for queue in queues):
                break
            progressed = await self._wait_for_progress(_POLL_SECONDS)
            if not progressed or loop.time() - polled_at > _POLL_SECONDS:
                polled_at = loop.time()
                taken, self._taken = self._taken, _taken(queues)
        return MAX_CREDIT

    def _credit(self, queues: Sequence[Queue]) -> int:
        """Return how many events to fetch now, 0 to wait.

        A flow that has enough to do is left out, so that no other flow waits for it.
        """
        credits = [self._credit_of(queue, len(queues)) for queue in queues]
        return min(filter(None, credits), default=0)

    def _credit_of(self, queue: Queue, queue_count: int) -> int:
        """Return how many events one of `queue_count` queues can use now."""
        busy = len(queue.gates.inside)
        free = min(queue.gates.free_slots(), self._scheduler.free_slots // queue_count)
        queued = queue.waiting
        if not queued and free >= busy and free + busy >= MIN_SLOTS:
            self._refills[queue.flow] = 0
            return min(free, MAX_CREDIT)
        if queued:
            keeps_busy = queued <= (free + busy) // 2 and self._refills[queue.flow] % PROBE_EVERY
        else:
            keeps_busy = not queue.starting
        if keeps_busy:
            self._refills[queue.flow] += 1
            return MAX_CREDIT
        return 0

    async def _wait_for_progress(self, seconds: float) -> bool:
        """Wait until a run starts or ends, and until those that end at once have ended."""
        self._scheduler.progressed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._scheduler.progressed.wait()
            for _ in range(_LOOP_TURNS):
                await asyncio.sleep(0)
            return True
        return False


def _taken(queues: Sequence[Queue]) -> int:
    return sum(queue.taken for queue in queues)

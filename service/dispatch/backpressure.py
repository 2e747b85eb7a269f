"""How many events a trigger had best bring now, when its source keeps the others.

A run whose event comes while a slot is free is born running; one that comes earlier is written as
queued first and claimed by another write (measured: a third more work for the journal). So while
runs end as fast as they come, a trigger is asked for as many events as there are free slots. When
they take longer, a short queue keeps every slot busy. When they do not get on at all, nothing is
waited for: the journal is the queue then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from turnout.service.flowcontrol.admission import Admission

from .queue import Lane
from .scheduling import Queues

MOST = 128
"""Events asked for at once; of more, what they take leaves the processor's cache meanwhile."""

_FEWEST_SLOTS = 16  # with fewer, a batch for the free ones would be too small
_TURNS = 3  # of the loop, in which a run that waits for nothing has started and ended
_PROBE = 16  # refills of a queue, before it is let run empty: runs may be fast again
_LOOK_SECONDS = 0.02
_LONGEST_SECONDS = 0.2


class Pull:
    """Paces one trigger by the runs of the flows that it feeds."""

    def __init__(self, queues: Queues, admission: Admission) -> None:
        self._queues = queues
        self._admission = admission
        self._taken = 0
        self._refills: Counter[str] = Counter()

    async def credit(self, flows: Sequence[str]) -> int:
        """Wait for room while runs of these flows get on, 0.2 s at most; say for how many."""
        lanes = [self._queues.lane(flow) for flow in flows]
        loop = asyncio.get_running_loop()
        looked = loop.time()
        end = looked + _LONGEST_SECONDS
        taken, self._taken = self._taken, _taken(lanes)
        while lanes and loop.time() < end:
            most = self._most(lanes)
            if most:
                return most
            if taken == self._taken and any(map(_queued, lanes)):
                break
            moved = await self._moved(_LOOK_SECONDS)
            if not moved or loop.time() - looked > _LOOK_SECONDS:
                looked = loop.time()
                taken, self._taken = self._taken, _taken(lanes)
        return MOST

    def _most(self, lanes: Sequence[Lane]) -> int:
        """Return how many events had best come now, 0 to wait for more room.

        A flow that has enough to do is not asked: none waits for a slower one.
        """
        wanted = [self._wanted(lane, len(lanes)) for lane in lanes]
        return min(filter(None, wanted), default=0)

    def _wanted(self, lane: Lane, of: int) -> int:
        """Return how many events a lane, one `of` so many, could do with now."""
        free, busy = self._admission.slots(lane.flow)
        free = min(free, self._admission.free // of)
        queued = _queued(lane)
        if not queued and free >= busy and free + busy >= _FEWEST_SLOTS:
            self._refills[lane.flow] = 0
            return min(free, MOST)
        if queued:
            keeps_busy = queued <= (free + busy) // 2 and self._refills[lane.flow] % _PROBE
        else:
            keeps_busy = not lane.starting
        if keeps_busy:
            self._refills[lane.flow] += 1
            return MOST
        return 0

    async def _moved(self, seconds: float) -> bool:
        """Wait until something started or ended, and whatever ends at once has."""
        self._queues.moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._queues.moved.wait()
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            return True
        return False


def _queued(lane: Lane) -> int:
    return lane.arriving + sum(map(len, (lane.window, lane.ready, lane.due, lane.called)))


def _taken(lanes: Sequence[Lane]) -> int:
    return sum(lane.taken for lane in lanes)

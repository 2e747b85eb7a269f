"""Bounds on how many runs may wait: of one flow (`max_queued=`), and of all together.

A full queue tells senders when to come again: when a tenth of it is free, at the rate at which runs
left it in the last minute. Not here: what a refused delivery leaves (`append`: nothing).
"""

from __future__ import annotations

from collections import Counter, deque
from math import ceil

import apsw

from turnout.service.domain.errors import QueueFull, TooManyRuns

from .statements import load

FULL_SHARE = 0.9
"""Senders are asked to come again once the queue is this full."""

SHORTEST_SECONDS, LONGEST_SECONDS = 1, 300
UNKNOWN_SECONDS = 5
"""When to come again while the rate is not known yet."""

_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_SQL = load("conditions")
_COUNT_QUEUED, _IS_PAUSED = _SQL["count_queued"], _SQL["is_paused"]


class Drain:
    """How fast runs leave a queue: how many had left at moments of the last minute."""

    __slots__ = ("_moments", "noted_at")

    def __init__(self) -> None:
        self._moments: deque[tuple[int, int]] = deque()
        self.noted_at = -_SECOND

    def note(self, at: int, left: int) -> None:
        """Note how many runs have left so far (an instant in microseconds, a running total)."""
        since = at - self.noted_at
        if 0 <= since < _SECOND:
            return
        moments = self._moments
        if since < 0:
            moments.clear()  # the clock was set back
        self.noted_at = at
        moments.append((at, left))
        while len(moments) > 1 and moments[1][0] <= at - _MINUTE:
            moments.popleft()

    def retry_after(self, waiting: int, bound: int, at: int, left: int) -> int:
        """Return in how many seconds the queue will be `FULL_SHARE` full."""
        self.note(at, left)
        since, had_left = self._moments[0]
        if at - since < _SECOND:
            return UNKNOWN_SECONDS
        too_many = waiting - FULL_SHARE * bound
        drained = left - had_left
        if too_many <= 0:
            return SHORTEST_SECONDS
        if drained <= 0:
            return LONGEST_SECONDS
        seconds = ceil(too_many * (at - since) / (drained * _SECOND))
        return min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)


class _FlowQueue:
    """The queue of one flow: at most how many runs wait in it, when that was counted, and so on.

    `accepted` counts the runs that were ever queued here, `counted_in` the last append in which
    the queue was counted.
    """

    __slots__ = ("accepted", "counted_at", "counted_in", "drain", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.counted_at = -_MINUTE
        self.counted_in = 0
        self.accepted = 0
        self.drain = Drain()


class Bounds:
    """The bounds on all queues, inside the transaction the writer opened.

    The queue of a flow is counted in the journal once a second, and whenever it may be full, but
    once for all deliveries that are written together.
    """

    def __init__(self, connection: apsw.Connection, max_unfinished: int) -> None:
        self._connection = connection
        self.max_unfinished = max_unfinished
        self._drain = Drain()
        self._queues: dict[str, _FlowQueue] = {}
        self._appends = 0
        self._accepted: Counter[_FlowQueue] = Counter()  # runs of the delivery, by queue

    def begin(self, at: int, unfinished: int, made: int) -> None:
        """Begin an append; `made` is how many runs were ever made."""
        self._appends += 1
        if not 0 <= at - self._drain.noted_at < _SECOND:
            self._drain.note(at, made - unfinished)

    def too_many(self, at: int, unfinished: int, made: int) -> TooManyRuns:
        """Return why no more runs are taken at all, once there are `max_unfinished`."""
        seconds = self._drain.retry_after(unfinished, self.max_unfinished, at, made - unfinished)
        return TooManyRuns(
            f"{unfinished} runs are unfinished, and no more are taken", retry_after_seconds=seconds
        )

    def begin_delivery(self) -> None:
        """Begin a delivery, which is taken as a whole."""
        self._accepted.clear()

    def refuse_full(self, flow: str, bound: int, at: int, *, freed: int) -> None:
        """Raise `QueueFull` if the queue of a flow has no room for a run that frees so many.

        A delivery finds the queue full at its first run or not at all: one with more runs than
        `bound` would otherwise never be taken.
        """
        queue = self._queues.get(flow)
        if queue is None:
            queue = self._queues[flow] = _FlowQueue()
        may_be_full = queue.waiting - freed >= bound
        if may_be_full or not 0 <= at - queue.counted_at < _SECOND:
            self._count(flow, queue, bound, at)
        has_place = queue in self._accepted or queue.waiting - freed < bound
        if has_place or self._is_paused(flow, at):
            queue.waiting += 1 - freed
            queue.accepted += 1
            self._accepted[queue] += 1
            return
        left = queue.accepted - queue.waiting
        raise QueueFull(
            f"flow {flow!r} has {queue.waiting} runs queued, and max_queued={bound} are the most",
            retry_after_seconds=queue.drain.retry_after(queue.waiting, bound, at, left),
        )

    def take_back_delivery(self) -> None:
        """Forget what the delivery has added to queues: nothing of it is stored."""
        for queue, runs in self._accepted.items():
            queue.waiting -= runs
            queue.accepted -= runs
        self._accepted.clear()

    def _count(self, flow: str, queue: _FlowQueue, bound: int, at: int) -> None:
        if queue.counted_in == self._appends:
            return
        queue.counted_in, queue.counted_at = self._appends, at
        most = 2 * bound + 1_000  # a flow that was paused may have a million
        queue.waiting = self._connection.execute(_COUNT_QUEUED, (flow, most)).get
        queue.drain.note(at, queue.accepted - queue.waiting)

    def _is_paused(self, flow: str, at: int) -> bool:
        return self._connection.execute(_IS_PAUSED, (flow, at)).get is not None

"""Named limits: `limit("db", 3)` is one limit for every flow and every task that says it.

A run of a flow has a place while it runs; a task (`@task(limit=…)`) takes one for each try. A place
that becomes free goes to a task first: its run is under way and holds a slot meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime

from turnout.service.domain.decisions import Fact
from turnout.service.domain.waiting import Cause

from .gate import Answer, Candidate, Gate, NamedGates


def _nobody(_gate: Gate) -> None:
    """Tell nobody that a place is free."""


class NamedLimit(Gate):
    """At most `count` runs and tries of tasks at once.

    `freed` is called when a task has given a place back that no other task waits for.
    """

    name = "limit"
    cause = Cause.LIMIT

    def __init__(self, named: str, count: int) -> None:
        self.named = named
        self.count = count
        self.is_declared = False  # by a flow
        self.freed: Callable[[Gate], None] = _nobody
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @classmethod
    def by_name(cls, name: str, count: int, named: NamedGates) -> NamedLimit:
        """Return the limit of a name, made at its first use; the last `count` that is said holds.

        A lower one stops nothing that runs.
        """
        gate = named.get((cls.name, name))
        if not isinstance(gate, NamedLimit):
            gate = named[cls.name, name] = cls(name, count)
        elif gate.count != count:
            gate.count = count
            gate._hand_over()
        gate.is_declared = True
        return gate

    @classmethod
    def for_task(cls, name: str, count: int, named: NamedGates) -> NamedLimit:
        """Return the limit of a name for a task; if flows say it too, what they say counts."""
        gate = named.get((cls.name, name))
        if isinstance(gate, NamedLimit) and (gate.is_declared or gate.count == count):
            return gate
        made = cls.by_name(name, count, named)
        made.is_declared = False
        return made

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while a place is free."""
        return None if self._running < self.count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run."""
        self._running += 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more."""
        self._running -= 1
        self._hand_over()

    def places(self) -> int | None:
        """Return how many places are free; below 0 after the limit was lowered."""
        return self.count - self._running

    def used(self) -> Mapping[str | None, int]:
        """Return how many places are in use, by runs and tries of tasks."""
        return {None: self._running} if self._running else {}

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the rule, and how many places are in use."""
        rule = f'limit("{self.named}", {self.count})'
        return {"rule": rule, "count": self._running, "limit": self.count}

    @property
    def waiting(self) -> int:
        """How many tries of tasks wait for a place."""
        return len(self._waiting)

    # ------------------------------------------------------------ tries of tasks

    async def take(self) -> None:
        """Wait for a place, in the order of asking; on the loop only."""
        if self._running < self.count:
            self._running += 1
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._waiting.remove(granted)
            else:
                self.release()  # it was granted in the same turn of the loop
            raise

    def release(self) -> None:
        """Give a place back that `take` has taken; on the loop only."""
        self._running -= 1
        self._hand_over()
        if self._running < self.count:
            self.freed(self)

    def _hand_over(self) -> None:
        """Give free places to the tries that have waited longest."""
        while self._waiting and self._running < self.count:
            granted = self._waiting.popleft()
            if not granted.done():
                self._running += 1
                granted.set_result(None)

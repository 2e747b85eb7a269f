"""Named limits: `limit("db", 3)` is one limit for every flow and every task that says it.

A run of a flow has a slot while it runs; a task (`@task(limit=…)`) takes one for each try. A slot
that becomes free goes to a task first: its run is under way and holds a slot meanwhile.

A try that waits keeps its run, and so the slots of the run, until it has had its turn. Runs that
wait for each other's slots in that way would never end: the try that would make it so is refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from turnout.service.domain.decisions import Fact
from turnout.service.domain.waiting import Cause

from .gate import Answer, Candidate, Gate, NamedGates


def _nobody(_gate: Gate) -> None:
    """Tell nobody that a slot is free."""


class NeverFree(Exception):
    """A slot of `limit` is held until the asking run ends.

    The run `holder` has it, and does not end before it has had a slot of `awaited`.
    """

    def __init__(self, limit: NamedLimit, holder: str, awaited: NamedLimit) -> None:
        super().__init__(holder)
        self.limit = limit
        self.holder = holder
        self.awaited = awaited


class _Asking(NamedTuple):
    """A try that waits for a slot: its run, and what it waits on."""

    run_id: str
    granted: asyncio.Future[None]


class NamedLimit(Gate):
    """At most `count` runs and tries of tasks at once.

    `freed` is called when a task has given a slot back that no other task waits for.
    """

    name = "limit"
    cause = Cause.LIMIT

    def __init__(self, named: str, count: int) -> None:
        self.named = named
        self.count = count
        self.is_declared = False  # by a flow
        self.freed: Callable[[Gate], None] = _nobody
        self._running = 0
        self._runs: Counter[str] = Counter()  # of these, those that runs have, by run id
        self._waiting: deque[_Asking] = deque()

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
            gate._refuse_deadlock(named, [*reversed(gate._waiting)])
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

    @property
    def words(self) -> str:
        """The limit as its author writes it."""
        return f'limit("{self.named}", {self.count})'

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while a slot is free."""
        return None if self._running < self.count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run."""
        self._running += 1
        self._runs[run.id] += 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more."""
        self._running -= 1
        self._runs[run.id] -= 1
        if not self._runs[run.id]:
            del self._runs[run.id]
        self._hand_over()

    def free_slots(self) -> int | None:
        """Return how many slots are free; below 0 after the limit was lowered."""
        return self.count - self._running

    def used(self) -> Mapping[str | None, int]:
        """Return how many slots are in use, by runs and tries of tasks."""
        return {None: self._running} if self._running else {}

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the rule, and how many slots are in use."""
        return {"rule": self.words, "count": self._running, "limit": self.count}

    @property
    def waiting(self) -> int:
        """How many tries of tasks wait for a slot."""
        return len(self._waiting)

    # ------------------------------------------------------------ tries of tasks

    async def take(self, run_id: str, named: NamedGates) -> None:
        """Wait for a slot for a try of a run, in the order of asking; on the loop only.

        Raises `NeverFree` if it would wait for ever.
        """
        if self._running < self.count:
            self._running += 1
            return
        asking = _Asking(run_id, asyncio.get_running_loop().create_future())
        self._waiting.append(asking)
        if any(gate._runs[run_id] for gate in _limits(named)):  # else nobody waits for this run
            self._refuse_deadlock(named, [asking])
        try:
            await asking.granted
        except asyncio.CancelledError:
            if asking.granted.cancelled():
                with suppress(ValueError):  # passed over already, by a slot that became free
                    self._waiting.remove(asking)
            else:
                self.release()  # it was granted in the same turn of the loop
            raise

    def release(self) -> None:
        """Give a slot back that `take` has taken; on the loop only."""
        self._running -= 1
        self._hand_over()
        if self._running < self.count:
            self.freed(self)

    def _hand_over(self) -> None:
        """Give free slots to the tries that have waited longest."""
        while self._waiting and self._running < self.count:
            _, granted = self._waiting.popleft()
            if not granted.done():
                self._running += 1
                granted.set_result(None)

    # ------------------------------------------------------------ deadlock

    def _refuse_deadlock(self, named: NamedGates, tries: Iterable[_Asking]) -> None:
        """Refuse those of these tries that would wait for ever."""
        for asking in tries:
            stuck = _stuck(named)
            if asking.run_id in stuck and not self._is_freed_by_others(stuck):
                holder = next(run_id for run_id in self._runs if run_id in stuck)
                awaited = next(iter(stuck[holder]))
                self._waiting.remove(asking)
                asking.granted.set_exception(NeverFree(self, holder, awaited))

    def _is_freed_by_others(self, stuck: Container[str]) -> bool:
        """Whether a slot becomes free though these runs never end; the tries inside do."""
        kept = sum(count for run_id, count in self._runs.items() if run_id in stuck)
        return kept < self.count


def _limits(named: NamedGates) -> Iterator[NamedLimit]:
    return (gate for gate in named.values() if isinstance(gate, NamedLimit))


def _stuck(named: NamedGates) -> Mapping[str, Sequence[NamedLimit]]:
    """Return the runs that never end as things are, with the limits that their tries wait for."""
    waits: dict[str, list[NamedLimit]] = defaultdict(list)
    for gate in _limits(named):
        for asking in gate._waiting:
            if not asking.granted.done():
                waits[asking.run_id].append(gate)
    while True:
        able = [
            run_id
            for run_id, limits in waits.items()
            if all(each._is_freed_by_others(waits) for each in limits)
        ]
        if not able:
            return waits
        for run_id in able:
            del waits[run_id]

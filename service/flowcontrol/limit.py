"""Concurrency limits: `concurrency=limit(8)` for a flow, `limit(8, per=…)` for each of its keys.

Counted are the runs that are running now. Lowering a limit stops no run. Order is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.project import AnyFlow

from .gate import Answer, Candidate, Gate, NamedGates


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` runs of a flow at once; with `per`, at most that many for each key."""

    count: int
    per: Callable[[Event], Hashable] | None = None
    place: str = "limit"
    name: ClassVar[str | None] = None
    option: ClassVar[str] = "per="

    @property
    def words(self) -> str:
        """The rule as it is written."""
        return f"limit({self.count}{', per=…' if self.per else ''})"


def limit(count: int, *, per: Callable[[Event], Hashable] | None = None) -> Limit:
    """Declare a concurrency limit: `limit(8, per=lambda event: event.data["customer"])`.

    `per` is asked once, when the event arrives; its answer is kept on the run as text.
    Raises `SetupError` for a count below 1.
    """
    if count < 1:
        raise SetupError(f"limit({count}): a flow that may never run is `turnout pause`, not 0")
    return Limit(count, per)


def limit_gates(flow: AnyFlow, named: NamedGates) -> list[Gate]:
    """Return the gates of a flow's declared limits."""
    limits = [rule for rule in flow.concurrency if isinstance(rule, Limit)]
    return [
        FlowLimit(each.count) if each.per is None else KeyLimit(each.count, each.place)
        for each in limits
    ]


class FlowLimit(Gate):
    """At most `count` runs of the flow at once."""

    name = "flow"

    def __init__(self, count: int) -> None:
        self._count = count
        self._running = 0

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while fewer than `count` run."""
        return None if self._running < self._count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run."""
        self._running += 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more."""
        self._running -= 1

    def places(self) -> int | None:
        """Return how many more may run; below 0 after the limit was lowered."""
        return self._count - self._running


class KeyLimit(Gate):
    """At most `count` runs of each limit key at once; a run without a key waits for nobody."""

    name = "limit"

    def __init__(self, count: int, place: str = "limit") -> None:
        self._count = count
        self.place = place
        self._running: dict[str, int] = {}

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while fewer than `count` runs of its key run."""
        key = self.key(run)
        return None if key is None or self._running.get(key, 0) < self._count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run under its key."""
        key = self.key(run)
        if key is not None:
            self._running[key] = self._running.get(key, 0) + 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more; a key that no run holds is forgotten."""
        key = self.key(run)
        if key is None:
            return
        left = self._running[key] - 1
        if left:
            self._running[key] = left
        else:
            del self._running[key]

"""Concurrency limits: `concurrency=limit(8)` for a flow, `limit(8, per=…)` for each of its keys.

Counted are the runs that are running now. Lowering a limit stops no run. Order is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.project import AnyFlow

from .gate import Answer, Candidate, Gate


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` runs of a flow at once; with `per`, at most that many for each key."""

    count: int
    per: Callable[[Event], Hashable] | None = None


def limit(count: int, *, per: Callable[[Event], Hashable] | None = None) -> Limit:
    """Declare a concurrency limit: `limit(8, per=lambda event: event.data["customer"])`.

    `per` is asked once, when the event arrives; its answer is kept on the run as text.
    Raises `SetupError` for a count below 1.
    """
    if count < 1:
        raise SetupError(f"limit({count}): a flow that may never run is `turnout pause`, not 0")
    return Limit(count, per)


def limit_gate(flow: AnyFlow) -> Gate | None:
    """Return the gate of a flow's declared limit, None if it declares none."""
    declared = flow.concurrency
    if not isinstance(declared, Limit):
        return None
    return FlowLimit(declared.count) if declared.per is None else KeyLimit(declared.count)


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

    def __init__(self, count: int) -> None:
        self._count = count
        self._running: dict[str, int] = {}

    def key(self, run: Candidate) -> str | None:
        """Return the run's limit key."""
        return run.limit_key

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while fewer than `count` runs of its key run."""
        if run.limit_key is None or self._running.get(run.limit_key, 0) < self._count:
            return None
        return "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run under its key."""
        if run.limit_key is not None:
            self._running[run.limit_key] = self._running.get(run.limit_key, 0) + 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more; a key that no run holds is forgotten."""
        if run.limit_key is None:
            return
        left = self._running[run.limit_key] - 1
        if left:
            self._running[run.limit_key] = left
        else:
            del self._running[run.limit_key]

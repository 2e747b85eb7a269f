"""Deadlock detection: refuse a child run that would wait for its own caller.

A run that waits for a child keeps its ordering key, and the child waits for the holder of its own
key. If that holder waits for the caller, directly or through other runs, none of them ever ends. Of
several calls at the same time each checks only earlier ones, so that one of them succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from turnout.service.domain.run import FINISHED, Fail
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Claim, run_topic

from .dispatcher import Dispatcher

MAX_RUNS_CHECKED = 1000
"""Runs checked at most in a search for a cycle."""

PendingCall: TypeAlias = tuple[int, str, str]
"""(the caller's seq, the child's flow, its ordering key)"""


class WaitGraph:
    """Which run waits for which: by the journal, by ordering keys, and by pending calls."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._pending_calls: list[PendingCall] = []

    @contextmanager
    def pending_call(
        self, run_seq: int, flow: str, order_key: str
    ) -> Iterator[Sequence[PendingCall]]:
        """Register a call until it is in the journal; yield the calls registered earlier."""
        earlier = tuple(self._pending_calls)
        call = (run_seq, flow, order_key)
        self._pending_calls.append(call)
        try:
            yield earlier
        finally:
            self._pending_calls.remove(call)

    async def refuse_deadlock(
        self, claim: Claim, flow: str, order_key: str, earlier: Sequence[PendingCall]
    ) -> None:
        """Raise `Fail` if the holder of the child's key waits for the caller."""
        holder = self._dispatcher.holder(flow, order_key)
        if holder is not None and await self._waits_for(holder, claim.run_seq, earlier):
            whose = "this run" if holder == claim.run_seq else "a run that waits for this one"
            raise Fail(
                f"the child run would wait for ever: key {order_key!r} of flow {flow!r} is held "
                f"until {whose} ends; give the child another key (ordered_by), or make it a task"
            )

    async def _waits_for(self, seq: int, goal: int, earlier: Sequence[PendingCall]) -> bool:
        """Whether a run waits, directly or through others, for the run `goal`."""
        seen: set[int] = set()
        ahead: list[int | None] = [seq]
        while ahead and len(seen) < MAX_RUNS_CHECKED:
            run_seq = ahead.pop()
            if run_seq == goal:
                return True
            if run_seq is None or run_seq in seen:
                continue
            seen.add(run_seq)
            for caller, flow, key in earlier:  # not in the journal yet
                if caller == run_seq:
                    ahead.append(self._dispatcher.holder(flow, key))
            ahead += await self._children(run_seq)
        return False

    async def _children(self, run_seq: int) -> list[int | None]:
        """Return the unfinished children a run waits for, and the holders of their keys."""
        found: list[int | None] = []
        for wait in await self._journal.waits(run_seq):
            if not wait.topic.startswith(run_topic("")):
                continue
            run = await self._journal.run(wait.topic.removeprefix(run_topic("")))
            if run is not None and run.state not in FINISHED:
                found.append(run.seq)
                if run.order_key is not None:
                    found.append(self._dispatcher.holder(run.flow, run.order_key))
        return found

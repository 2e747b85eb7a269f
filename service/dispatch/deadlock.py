"""Deadlock detection: refuse a child run that would wait for its own caller.

A run that waits for a child keeps its ordering key, and the child waits for the holder of its own
key. If that holder waits for the caller, directly or through other runs, none of them ever ends. Of
several calls at the same time each checks only earlier ones, so that one of them succeeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from turnout.service.domain.run import FINISHED, Fail
from turnout.service.journal.reads import RunReads
from turnout.service.journal.records import Claim, run_topic

from .dispatcher import Dispatcher

MAX_RUNS_CHECKED = 1000
"""Runs checked at most in a search for a cycle."""

PendingCall: TypeAlias = tuple[str, str, str]
"""(the caller's id, the child's flow, its ordering key)"""


class WaitGraph:
    """Which run waits for which: by the journal, by ordering keys, and by pending calls."""

    def __init__(self, journal: RunReads, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._pending_calls: list[PendingCall] = []

    @contextmanager
    def pending_call(
        self, run_id: str, flow: str, order_key: str
    ) -> Iterator[Sequence[PendingCall]]:
        """Register a call until it is in the journal; yield the calls registered earlier."""
        earlier = tuple(self._pending_calls)
        call = (run_id, flow, order_key)
        self._pending_calls.append(call)
        try:
            yield earlier
        finally:
            self._pending_calls.remove(call)

    async def refuse_deadlock(
        self, claim: Claim, flow: str, order_key: str, earlier: Sequence[PendingCall]
    ) -> None:
        """Raise `Fail` if a holder of the child's key waits for the caller."""
        holders = self._dispatcher.holders(flow, order_key)
        if holders and await self._wait_for(holders, claim.run_id, earlier):
            whose = "this run" if claim.run_id in holders else "a run that waits for this one"
            raise Fail(
                f"the child run would wait for ever: key {order_key!r} of flow {flow!r} is held "
                f"until {whose} ends; give the child another key (ordered_by), or make it a task"
            )

    async def _wait_for(
        self, runs: Collection[str], goal: str, earlier: Sequence[PendingCall]
    ) -> bool:
        """Whether one of these runs waits, directly or through others, for the run `goal`."""
        seen: set[str] = set()
        ahead = list(runs)
        while ahead and len(seen) < MAX_RUNS_CHECKED:
            run_id = ahead.pop()
            if run_id == goal:
                return True
            if run_id in seen:
                continue
            seen.add(run_id)
            for caller, flow, key in earlier:  # not in the journal yet
                if caller == run_id:
                    ahead += self._dispatcher.holders(flow, key)
            ahead += await self._children(run_id)
        return False

    async def _children(self, run_id: str) -> list[str]:
        """Return the unfinished children a run waits for, and the holders of their keys."""
        caller = await self._journal.run(run_id)
        found: list[str] = []
        for wait in [] if caller is None else await self._journal.waits(caller.seq):
            if not wait.topic.startswith(run_topic("")):
                continue
            run = await self._journal.run(wait.topic.removeprefix(run_topic("")))
            if run is not None and run.state not in FINISHED:
                found.append(run.id)
                if run.order_key is not None:
                    found += self._dispatcher.holders(run.flow, run.order_key)
        return found

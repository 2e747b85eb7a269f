"""Child runs that would wait for their own caller are found before they are started.

A run that waits for a child holds its ordering key, and a child waits for the holder of its own.
Where that leads back to the caller, also by way of other runs, nothing would ever go on. Of
several calls at the same moment only earlier ones are looked at, so that one goes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from turnout.service.domain.run import FINISHED, Fail
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Claim, run_topic

from .dispatcher import Dispatcher

MOST_LOOKED_AT = 1000
"""Runs looked at for one that waits for the caller."""

Calling: TypeAlias = tuple[int, str, str]
"""(the caller's seq, the child's flow, its ordering key)"""


class Callers:
    """Knows who waits for whom: by the journal, by ordering keys, by calls on their way there."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._calling: list[Calling] = []

    @contextmanager
    def calling(self, run_seq: int, flow: str, order_key: str) -> Iterator[Sequence[Calling]]:
        """Note a call until it is in the journal; yields those noted earlier."""
        earlier = tuple(self._calling)
        call = (run_seq, flow, order_key)
        self._calling.append(call)
        try:
            yield earlier
        finally:
            self._calling.remove(call)

    async def refuse_deadlock(
        self, claim: Claim, flow: str, order_key: str, earlier: Sequence[Calling]
    ) -> None:
        """Raise `Fail` if the holder of the child's key waits for the run that calls it."""
        holder = self._dispatcher.holder(flow, order_key)
        if holder is not None and await self._waits_for(holder, claim.run_seq, earlier):
            whose = "this run" if holder == claim.run_seq else "a run that waits for this one"
            raise Fail(
                f"the child run would wait for ever: key {order_key!r} of flow {flow!r} is held "
                f"until {whose} ends; give the child another key (ordered_by), or make it a task"
            )

    async def _waits_for(self, seq: int, goal: int, earlier: Sequence[Calling]) -> bool:
        """Whether a run cannot end before the run `goal` has."""
        seen: set[int] = set()
        ahead: list[int | None] = [seq]
        while ahead and len(seen) < MOST_LOOKED_AT:
            run_seq = ahead.pop()
            if run_seq == goal:
                return True
            if run_seq is None or run_seq in seen:
                continue
            seen.add(run_seq)
            for caller, flow, key in earlier:  # before the journal, where they soon are
                if caller == run_seq:
                    ahead.append(self._dispatcher.holder(flow, key))
            ahead += await self._children(run_seq)
        return False

    async def _children(self, run_seq: int) -> list[int | None]:
        """Return the unfinished runs that a run waits for, and those that these wait behind."""
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

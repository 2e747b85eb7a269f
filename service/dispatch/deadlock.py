"""Deadlock detection: refuse a child run that would wait for its own caller.

A run that waits for a child keeps its ordering key, and its slots at limits with `hold="run"`; the
child waits for the holders of what it needs. If they wait for the caller, directly or through other
runs, none of them ever ends. A key waits for any of its holders, a limit for all of them: one that
ends gives its slot. Of several calls at the same time each checks only earlier ones, so that one
of them succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from turnout.service.domain.run import FINISHED, Fail, Run
from turnout.service.journal.contract import RunReads
from turnout.service.journal.records import Claim, NewRun, run_topic

from .conflicts import Conflict
from .dispatcher import Dispatcher

MAX_RUNS_CHECKED = 1000
"""Runs checked at most in a search for a cycle."""


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A child run that is about to be written: its caller's id, and what it needs to start."""

    caller: str
    child: NewRun


class WaitGraph:
    """Which run waits for which: by the journal, by keys and slots, and by pending calls."""

    def __init__(self, journal: RunReads, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._pending_calls: list[PendingCall] = []

    @contextmanager
    def pending_call(self, caller: str, child: NewRun) -> Iterator[Sequence[PendingCall]]:
        """Register a call until it is in the journal; yield the calls registered earlier."""
        earlier = tuple(self._pending_calls)
        call = PendingCall(caller, child)
        self._pending_calls.append(call)
        try:
            yield earlier
        finally:
            self._pending_calls.remove(call)

    async def refuse_deadlock(
        self, claim: Claim, child: NewRun, earlier: Sequence[PendingCall]
    ) -> None:
        """Raise `Fail` if what the child needs is held until the caller ends."""
        search = _Search(self._journal, self._dispatcher, claim.run_id, earlier)
        for conflict in self._dispatcher.conflicts(child):
            if conflict.holders and await search.never_free(conflict):
                is_own = claim.run_id in conflict.holders
                whose = "this run" if is_own else "a run that waits for this one"
                raise Fail(
                    f"the child run would wait for ever: {conflict.words} of flow {child.flow!r} "
                    f"is held until {whose} ends; {conflict.advice}"
                )


class _Search:
    """Which runs can end before the caller does.

    A run can end when all children it waits for can end and get what they need. A limit is
    free when one of its holders ends, a key when all have. What cannot end waits for the caller, or
    is in a deadlock already.
    """

    def __init__(
        self,
        journal: RunReads,
        dispatcher: Dispatcher,
        caller: str,
        earlier: Sequence[PendingCall],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._caller = caller
        self._earlier = earlier
        self._children: dict[str, list[tuple[str, list[Conflict]]]] = {}

    async def never_free(self, conflict: Conflict) -> bool:
        """Whether what a run needs is held until the caller ends."""
        await self._look_at(conflict.holders)
        return not self._is_free(conflict, self._can_end())

    async def _look_at(self, runs: Iterable[str]) -> None:
        """Read what these runs wait for, directly or through others."""
        ahead = list(runs)
        while ahead and len(self._children) < MAX_RUNS_CHECKED:
            run_id = ahead.pop()
            if run_id in self._children or run_id == self._caller:
                continue
            found = await self._children_of(run_id)
            self._children[run_id] = found
            for child, conflicts in found:
                ahead.append(child)
                for conflict in conflicts:
                    ahead += conflict.holders

    def _can_end(self) -> set[str]:
        """Return which of the runs looked at can end: first those that wait for nothing."""
        able: set[str] = set()
        while True:
            more = {
                run_id
                for run_id, children in self._children.items()
                if run_id not in able and all(self._ends(child, able) for child in children)
            }
            if not more:
                return able
            able |= more

    def _ends(self, child: tuple[str, list[Conflict]], able: set[str]) -> bool:
        run_id, conflicts = child
        return self._is_able(run_id, able) and all(
            run_id in conflict.holders or self._is_free(conflict, able) for conflict in conflicts
        )

    def _is_free(self, conflict: Conflict, able: set[str]) -> bool:
        enough = any if conflict.is_limit else all
        return enough(self._is_able(holder, able) for holder in conflict.holders)

    def _is_able(self, run_id: str, able: set[str]) -> bool:
        """Whether a run can end; one that was not looked at is taken to."""
        return run_id != self._caller and (run_id in able or run_id not in self._children)

    async def _children_of(self, run_id: str) -> list[tuple[str, list[Conflict]]]:
        """Return the unfinished children that a run waits for, and what they need."""
        children: list[NewRun | Run] = [
            call.child for call in self._earlier if call.caller == run_id
        ]  # not in the journal yet
        run = await self._journal.run(run_id)
        for wait in [] if run is None else await self._journal.waits(run.seq):
            if wait.topic.startswith(run_topic("")):
                child = await self._journal.run(wait.topic.removeprefix(run_topic("")))
                if child is not None and child.state not in FINISHED:
                    children.append(child)
        return [(child.id, self._dispatcher.conflicts(child)) for child in children]

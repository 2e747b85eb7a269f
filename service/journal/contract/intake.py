"""What accepting events needs of a journal."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Backlog
from turnout.service.journal.records import NOTHING, Appended, EndedEvent, Entry, Move

Positions: TypeAlias = Mapping[str, Move]
"""How a trigger's positions move, by partition."""


class Intake(Protocol):
    """Accepting events, and giving them back."""

    def append(
        self,
        entries: Sequence[Entry],
        *,
        trigger: str = "",
        positions: Positions = NOTHING,
        now: datetime,
        dedupe: timedelta | None = None,
    ) -> Future[list[Appended]]:
        """Write events, their runs and decisions, and the trigger's positions, in one transaction.

        The call itself submits the write: a callback of the future is called even when the task
        that awaits it is cancelled. Where that may happen, await the future's result, not the
        future.

        Raises `PositionsMoved` when a position is not the one expected, counting the writes
        submitted before; then nothing of this call is stored.

        An event that is not `minted` is written once per (tenant, trigger, source, id) within the
        window `dedupe`, by default the one that `prune` is told. Then the `conditions` of each new
        run are decided, with every write that was submitted before in effect: unique, mode, rate
        limits, the bound. A run that is refused is stored as skipped with a decision, see
        `Appended`; if the queue of a flow is full, nothing of the call is stored (`QueueFull`). An
        event that `cancels` does so before its own runs are stored. Raises `Overloaded` (too many
        unfinished runs, too little free disk space), `JournalFull`, `JournalBroken`.
        """

    async def positions(self, trigger: str) -> dict[str, str]:
        """Return the stored positions of a trigger."""

    # ---- giving events back

    async def backlog(self, trigger: str, flows: Sequence[str]) -> Backlog:
        """Return a trigger's events that start these flows and have no run that has begun.

        Runs claimed before the call have begun. The answer stays true only while the caller keeps
        the flows from starting runs.
        """

    async def withdraw(
        self, seqs: Sequence[int], *, trigger: str, positions: Positions, now: datetime
    ) -> None:
        """Delete events of `backlog` with their runs, as if they had never arrived.

        Runs that await one of them are woken.

        There may be several transactions; the positions move in the first, or nothing is deleted
        and `PositionsMoved` is raised, as by `append`.
        """

    async def is_under_way(
        self,
        trigger: str,
        flows: Sequence[str],
        partitions: Sequence[str],
        *,
        due_by: datetime | None,
    ) -> bool:
        """Whether an event of these partitions has a run that is running or about to run.

        A retrying run counts when it is due by `due_by`; with None only running ones count.
        """

    # ---- a run's life

    async def shapes(self) -> list[Sequence[str]]:
        """Return the distinct shapes of open waits for events."""

    async def due_actions(
        self,
        after_seq: int,
        limit: int,
        *,
        of_run: int | None = None,
        accepted_before: datetime | None = None,
    ) -> list[EndedEvent]:
        """Return events whose after-run action is due, in order of arrival.

        With `of_run`, the seq of a windowed run, only events of its window.
        """

    async def record_action(self, event_seq: int, event: Event | None) -> None:
        """Record an event's after-run action as done, with the event's new extensions if given."""

    async def event_ended(self, event_seq: int) -> EndedEvent | None:
        """Return the event if its after-run action is due now, else None."""

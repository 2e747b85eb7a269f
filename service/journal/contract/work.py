"""What dispatching runs needs of a journal."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.event import Event
from turnout.service.domain.run import Keys, Outcome, Run, RunError, Start
from turnout.service.journal.records import (
    NOTHING,
    ClaimedRun,
    Decision,
    Queued,
    QueuedPage,
    Rescued,
)

from .reads import RunReads
from .writing import Writable


class Work(RunReads, Writable, Protocol):
    """The life of runs: what is queued and due, claims, outcomes."""

    async def queued(
        self, flow: str, after: int, limit: int, priority: int | None = None
    ) -> list[Queued]:
        """Return queued runs of a flow, or of one class, in arrival order, `after` one."""

    async def queued_past(
        self,
        flow: str,
        after: int,
        limit: int,
        blocked: Mapping[str, Sequence[str]],
        priority: int | None = None,
    ) -> QueuedPage:
        """Return queued runs as `queued` does, but not those that keys block, given by rule.

        A run is left out if it was never claimed and has one of these keys; if it has an ordering
        key, only for that one, which it must take before it waits for anything else. One call
        looks at a bounded stretch of the journal, so a page may be short and have `more` after it.
        """

    async def queued_for_key(
        self,
        flow: str,
        rule_id: str,
        key: str,
        limit: int,
        after: int = 0,
        priority: int | None = None,
    ) -> list[Queued]:
        """Return queued runs with this key by a rule in arrival order, `after` one.

        With `priority` only those of one class; a run without one is of the normal class.

        The id `order` is that of ordering keys.
        """

    async def set_keys(self, keys: Mapping[int, Keys]) -> None:
        """Give runs that do not run, by seq, the keys of rules that are newer than they are."""

    async def events_of_runs(self, seqs: Sequence[int]) -> Mapping[int, Event]:
        """Return the events of runs, by the seq of the run."""

    async def fail_queued(self, run_seq: int, error: RunError, *, now: datetime) -> list[Run]:
        """Make a dead letter of a run that does not run, and cancel the children it waits for.

        Returns it, then all cancelled runs; nothing if it runs or has ended.
        """

    async def suspended(self, flows: Sequence[str]) -> list[Queued]:
        """Return the retrying and waiting runs of these flows.

        They are read in their turn among the writes, as `held_keys`.
        """

    async def use_classes(self, flows: Sequence[str]) -> bool:
        """Note that only these flows declare classes; whether any queued run got one by that.

        Queued runs of theirs that have none are of the normal class from now on.
        """

    async def due(
        self, before: datetime, limit: int, *, after: Queued | None = None
    ) -> list[Queued]:
        """Return scheduled, retrying and waiting runs due by `before`, the earliest due first.

        Those that come `after` one of them, where it is given.
        """

    async def next_due_at(self, after: datetime | None = None) -> datetime | None:
        """Return when the next scheduled, retrying or waiting run is due, `after` an instant."""

    async def held_keys(self) -> list[tuple[str, str, str, bool]]:
        """Return (flow, order_key, run_id, dead) of runs that may hold their ordering key.

        Retrying and waiting runs do; a dead letter does when its flow says `on_dead="block"`. It is
        read in its turn among the writes: after those submitted before, and before later ones.
        """

    async def claim(
        self,
        seqs: Sequence[int],
        *,
        now: datetime,
        untouched: Mapping[int, ClaimedRun] | None = None,
        starts: Mapping[int, Sequence[Start]] | None = None,
    ) -> list[ClaimedRun]:
        """Make runs `running` under a new token; runs no longer claimable are left out.

        `starts` holds, by seq, what throttles count of those that are claimed; it is written in
        the same transaction.
        `untouched` holds, by seq, runs that were never claimed and whose event is in memory, as
        their first claim finds them.
        """

    async def skip(self, made: Mapping[int, Decision], *, now: datetime) -> list[Run]:
        """End queued runs that were never claimed as `skipped`, each by a decision; by seq.

        Returns those that were still queued. Whoever awaits such a run is woken.
        """

    async def starts(self) -> list[Start]:
        """Return the starts that throttles count, in their order; some may count no more."""

    async def record(
        self,
        run: ClaimedRun,
        outcome: Outcome,
        *,
        started_at: datetime,
        now: datetime,
        has_waits: bool = False,
        changed: Collection[str] = (),
        progress: Mapping[str, Any] = NOTHING,
    ) -> Sequence[Run]:
        """Record an attempt's outcome; raises `ClaimLost`. A failed run becomes a dead letter.

        So does each member of its window that failed for good (`failed_items`), as a run of its
        own. The next claim gets only the members that are `left`.

        Raises `StateMoved`, and records nothing, if another run has written what this one keeps
        between runs since it has read it.

        `has_waits` says that the attempt opened a wait: the waits of a run that ended are deleted,
        and the children it waited for are cancelled with it. Returns all cancelled runs.

        The next claim of a waiting run may read only the `changed` steps, those this attempt
        recorded, and then it finds `progress` again.
        """

    def record_breaker(self, breaker: StoredBreaker) -> Future[None]:
        """Submit a change of a breaker at once, in place of an earlier generation."""

    async def rescue(self, *, now: datetime) -> Rescued:
        """At start: requeue runs found running; this spends no attempt (see "Crash isolation").

        Windows that were opened after `now`, under a clock that was ahead, begin their time now.

        A run that has killed the process too often fails as `process_died`: that is recorded as
        the step `FAILED`, and only its undo and its hook are left to do. If these kill the process
        as often again, `tries` of that step rises, and the step they were about to do is skipped.
        """

    async def fail_orphaned_runs(self, flow: str, *, now: datetime) -> list[str]:
        """Make dead letters of a flow's queued runs that have failed; returns their ids.

        For a flow that is no longer served: neither their undo nor their hook is called. The
        children they wait for are cancelled.
        """

    async def rename_flows(self, renamed: Mapping[str, str]) -> int:
        """Give unfinished runs and dead letters of flows to their new names; returns how many.

        `renamed` maps old names to new ones, all at one moment among the writes. The pause of a
        flow and the limits set for it go along, unless the new name has its own.
        """

    async def orphans(self, flows: Sequence[str]) -> dict[str, int]:
        """Count unfinished runs of flows that are not in `flows`."""

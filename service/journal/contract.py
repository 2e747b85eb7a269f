"""What a journal promises, whatever database is under it.

Every write returns only after commit and fsync. A write about a run carries the run's claim
token; a stale token changes nothing and raises `ClaimLost`. Writes that arrive together share a
commit and are applied in the order they were called; a bad write fails only its caller. The suite
`tests/support/journal_contract.py` tests these promises, not SQLite.

Each user is typed against the smallest part it needs: `Intake`, `Work`, `Steps`, `Operations`,
`Reads`, `Upkeep`, `Lifecycle`. Not here: what is written (the router and the executor decide) and
when a run starts (the dispatcher).
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.conditions import Mode
from turnout.service.domain.event import Event
from turnout.service.domain.run import Keys, Outcome, Run, RunError, Start
from turnout.service.domain.trigger import Backlog

from .reads import Reads, RunReads
from .records import (
    NOTHING,
    Appended,
    Cached,
    Claim,
    ClaimedRun,
    Decision,
    Discarded,
    EndedEvent,
    Entry,
    Move,
    NewRun,
    Opening,
    Queued,
    Rescued,
    Retried,
    StepRecord,
    StoredOverride,
    StoredPause,
    UsedLink,
)

Positions: TypeAlias = Mapping[str, Move]
"""How a trigger's positions move, by partition."""


class Writable(Protocol):
    """Whether writes work."""

    @property
    def writable(self) -> str | None:
        """None while writes work, else the reason (disk full, broken)."""

    async def probe(self) -> None:
        """Try a durable write, to notice when a full disk has space again; raises as any write."""


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

    async def withdraw(self, seqs: Sequence[int], *, trigger: str, positions: Positions) -> None:
        """Delete events of `backlog` with their runs, as if they had never arrived.

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

    async def due_actions(self, after_seq: int, limit: int) -> list[EndedEvent]:
        """Return events whose after-run action is due, in order of arrival."""

    async def record_action(self, event_seq: int, event: Event | None) -> None:
        """Record an event's after-run action as done, with the event's new extensions if given."""

    async def event_ended(self, event_seq: int) -> EndedEvent | None:
        """Return the event if its after-run action is due now, else None."""

    # ---- operators


class Work(RunReads, Writable, Protocol):
    """The life of runs: what is queued and due, claims, outcomes."""

    async def queued(
        self, flow: str, after_seq: int, limit: int, priority: int | None = None
    ) -> list[Queued]:
        """Return queued runs of a flow, or of one class, in arrival order, after `after_seq`."""

    async def queued_for_key(
        self,
        flow: str,
        place: str,
        key: str,
        limit: int,
        after_seq: int = 0,
        priority: int | None = None,
    ) -> list[Queued]:
        """Return queued runs with this key at a place in arrival order, after `after_seq`.

        With `priority` only those of one class; a run without one is of the normal class.

        The place `order` is that of ordering keys.
        """

    async def set_keys(self, keys: Mapping[int, Keys]) -> None:
        """Give runs that do not run, by seq, the keys of rules that are newer than they are."""

    async def events_of_runs(self, seqs: Sequence[int]) -> Mapping[int, Event]:
        """Return the events of runs, by the seq of the run."""

    async def fail_queued(self, run_seq: int, error: RunError, *, now: datetime) -> bool:
        """Make a dead letter of a run that does not run; False if it does, or has ended."""

    async def suspended(self, flows: Sequence[str]) -> list[Queued]:
        """Return the retrying and waiting runs of these flows.

        They are read in their turn among the writes, as `held_keys`.
        """

    async def use_classes(self, flows: Sequence[str]) -> bool:
        """Note that only these flows declare classes; whether any queued run got one by that.

        Queued runs of theirs that have none are of the normal class from now on.
        """

    async def due(self, before: datetime, limit: int) -> list[Queued]:
        """Return scheduled, retrying and waiting runs due by `before`, the earliest due first."""

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
    ) -> None:
        """Record an attempt's outcome; raises `ClaimLost`. A failed run becomes a dead letter.

        `has_waits` says that the attempt opened a wait: the waits of a run that ended are deleted.
        The next claim of a waiting run may read only the `changed` steps, those this attempt
        recorded, and then it finds `progress` again.
        """

    def record_breaker(self, breaker: StoredBreaker) -> Future[None]:
        """Submit a change of a breaker at once, in place of an earlier generation."""

    async def rescue(self, *, now: datetime) -> Rescued:
        """At start: requeue runs found running; this spends no attempt (see "Crash isolation").

        A run that has killed the process too often fails as `process_died`: that is recorded as
        the step `FAILED`, and only its undo and its hook are left to do. If these kill the process
        as often again, `tries` of that step rises, and the step they were about to do is skipped.
        """

    async def fail_orphaned_runs(self, flow: str, *, now: datetime) -> list[str]:
        """Make dead letters of a flow's queued runs that have failed; returns their ids.

        For a flow that is no longer served: neither their undo nor their hook is called. The
        children they wait for are cancelled.
        """

    async def rename_flow(self, was: str, name: str) -> int:
        """Give a flow's unfinished runs and dead letters to its new name; returns how many."""

    async def orphans(self, flows: Sequence[str]) -> dict[str, int]:
        """Count unfinished runs of flows that are not in `flows`."""

    # ---- retention


class Steps(RunReads, Protocol):
    """What an attempt writes before its end."""

    def record_step(self, claim: Claim, step: StepRecord) -> Future[None]:
        """Submit a step at once; it is durable when the future is done. Raises `ClaimLost`."""

    def record_with(
        self,
        claim: Claim,
        step: StepRecord,
        *,
        entries: Sequence[Entry] = (),
        opening: Opening | None = None,
        again: StepRecord | None = None,
        now: datetime,
    ) -> Future[list[Appended]]:
        """Record a step together with events it causes and the wait it opens, in one transaction.

        The call itself submits the write, as `append` does.
        When an entry was stored before, `again` is recorded instead of `step`; when its id belongs
        to another event, no step is. Without `opening` the step's wait is closed. A child run that
        `unique` refuses is another one's work: the step then waits for that run. What wakes a
        wait (an awaited event, the end of a child run, `answer`) makes its waiting run due in the
        transaction that stores it. Raises what `record_step` and `append` raise.
        """

    def flush(self) -> None:
        """Block the loop until submitted writes are durable or have failed, for a second at most.

        For a write after which the process may end at once.
        """

    async def end_children(self, claim: Claim, *, now: datetime) -> tuple[list[Run], list[str]]:
        """Cancel the children a failed run waits for, as `cancel` does.

        Returns them, and the keys of the steps whose children are still being undone: the only
        waits the run keeps.
        """

    async def cache(self, cached: Cached) -> None:
        """Cache a result under its key, in place of an older one."""

    def store_blob(self, result: bytes) -> AbstractAsyncContextManager[str]:
        """Make a large result durable in a file of its own, and yield its name for `read_blob`.

        It is safe from pruning inside the block, and after it while a row names it. Raises what
        any write does.
        """

    def hold_blob(self, name: str) -> AbstractContextManager[None]:
        """Keep a stored large result from being pruned inside the block."""

    # ---- after the last run of an event


class Clearing(Protocol):
    """Clearing the cache of results, for operators and when they have expired."""

    async def clear_cache(
        self, *, task: str | None = None, over_by: datetime | None = None, limit: int = 1_000_000
    ) -> int:
        """Clear cached results, of one task or those expired by `over_by`; returns how many."""


class Operations(Reads, Clearing, Protocol):
    """Operators' writes."""

    async def replay(self, event_seq: int, runs: Sequence[NewRun], *, now: datetime) -> Appended:
        """Start new runs of a stored event; sets each run's `replay` to one above the highest.

        Their conditions are decided as by `append`.
        """

    async def cancel(
        self, run_id: str, *, now: datetime, reason: str = "", by: str = ""
    ) -> list[Run]:
        """Cancel the children an unfinished run waits for, then the run; their tokens become stale.

        Returns the run and those children. A run with something to undo is queued for that, after
        its children, with the step `FAILED`; it then ends as `cancelled`. Raises `NotFound`,
        `Refused` (it has ended, or it is being undone).
        """

    async def answer(
        self,
        run_id: str,
        key: str | None,
        said: bytes,
        *,
        link: UsedLink | None = None,
        now: datetime,
    ) -> str:
        """Store an approver's answer (JSON) to a run's open approval; returns the step's key.

        Raises `NotFound`; `Refused` when no approval is open, or several are and `key` is None;
        `Expired` for a `link` that was used before.
        """

    async def retry(
        self,
        run_id: str,
        from_step: str | None,
        *,
        mode: Mode | None = None,
        force: bool = False,
        now: datetime,
    ) -> Retried:
        """Queue a finished run again; `from_step` drops the steps recorded at and after it.

        It is asked under the `mode` of its flow as a new run is: `Refused` where `skip` would end
        it. With `force` it is not, and has no key of the mode from now on.

        Raises `NotFound`, `Refused`. Attempts count from 0 again, and the run is no dead letter any
        more. A run whose undo has failed only continues its undo, and is a dead letter until done.
        """

    async def drop(self, run_id: str, *, now: datetime) -> Run:
        """Take a dead letter off the list; the run stays `failed`. Raises `NotFound`, `Refused`."""

    async def pause(self, pause: StoredPause) -> None:
        """Store a pause, in place of one of the same name; if that has not ended, it began then."""

    async def resume(self, name: str) -> None:
        """Delete a pause."""

    async def end_pauses(self, *, now: datetime) -> list[StoredPause]:
        """Delete and return the pauses that end by `now`."""

    async def override(self, override: StoredOverride) -> None:
        """Store a limit that an operator has set, in place of one of the same name."""

    async def reset_limit(self, name: str) -> None:
        """Delete a limit that an operator has set."""

    async def end_overrides(self, *, now: datetime) -> list[StoredOverride]:
        """Delete and return the limits that end by `now`."""

    async def discard(
        self,
        flow: str,
        *,
        now: datetime,
        detail: str = "",
        by: str = "",
        after: int = 0,
        up_to: int | None = None,
    ) -> Discarded:
        """End some queued runs of a flow that were never claimed, as skipped and `dropped`.

        Those after one seq and up to another, by default the last there is now. Each leaves a
        decision with `detail` and `by`; whoever awaits such a run is woken and told that it was
        refused, and a file of its event stays.
        """


class Upkeep(Writable, Clearing, Protocol):
    """Retention, counts, and the space on disk."""

    async def prune(
        self,
        *,
        finished_before: datetime,
        failed_before: datetime,
        unmatched_before: datetime,
        dedupe_before: datetime,
        now: datetime,
        limit: int,
    ) -> int:
        """Delete up to `limit` old runs with steps, then events left without runs; returns rows.

        The window of events that have one of their own ends at `now`, whatever `dedupe_before` is,
        and what rates count no more at `now` goes too.
        Call it until it returns 0. It never prunes unfinished runs, their events, positions, or
        dead letters whose undo has failed.
        """

    async def prune_oldest(self, limit: int) -> int:
        """Delete the oldest finished events whatever their age; returns rows."""

    async def prune_blobs(self) -> int:
        """Delete large results that no row names any more; returns how many bytes."""

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return (unfinished runs by state, dead letters by flow); exact, from memory."""

    def not_undone(self) -> Mapping[str, int]:
        """Return how many dead letters, by flow, have an undo that failed; exact, from memory."""

    async def last_recorded_at(self) -> datetime | None:
        """Return the latest instant among the newest event and runs; None in an empty journal."""

    def size_bytes(self) -> int:
        """Return the journal's size on disk, its log and large results included."""

    @property
    def short_of_space(self) -> str | None:
        """None while the disk has enough free space for new events, else how much is missing."""


class Lifecycle(Writable, Protocol):
    """What the process around a journal needs of it, from opening it to its end."""

    broken: asyncio.Event
    """Set once the disk failed for good, or the files are lost: end the process (exit 74)."""

    last_written_at: datetime | None
    """When the files were last changed before they were opened."""

    async def look_at_files(self) -> str | None:
        """Return what happened to the files of the open journal, None when nothing did.

        Otherwise the journal is given up: `broken` is set.
        """

    async def check(self) -> None:
        """Check a large journal for damage, which opening it did not."""

    def write_url(self, url: str) -> None:
        """Publish the address of this process, for the command line."""

    async def close(self) -> None:
        """Finish queued writes and release everything; may be called twice."""


class Journal(Intake, Work, Steps, Operations, Upkeep, Protocol):
    """The one writer of a data folder."""

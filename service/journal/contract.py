"""What a journal promises, whatever database is under it.

Every write returns only after commit and fsync. A write about a run carries the run's claim
token; a stale token changes nothing and raises `ClaimLost`. Writes that arrive together share a
commit and are applied in the order they were called; one bad write fails its caller only. The
suite `tests/support/journal_contract.py` is written against this page, not against SQLite.

Not here: what to write (the router and the executor decide) and when to run (the dispatcher).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol

from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome, Run
from turnout.service.domain.trigger import Backlog

from .records import (
    Appended,
    AttemptRecord,
    Cached,
    ChildEnd,
    Claim,
    Entry,
    Filter,
    NewRun,
    Opening,
    Queued,
    Rescued,
    StepRecord,
    StoredEvent,
    UsedLink,
    Wait,
)


class JournalReader(Protocol):
    """Reading, which never waits for a writer and works with the service down."""

    async def run(self, run_id: str) -> Run | None:
        """Return one run by its id, or by a prefix of at least 8 characters that fits only one."""

    async def child(self, run_id: str) -> ChildEnd | None:
        """Return how a called run stands, or ended; None when it is no longer kept."""

    async def runs(self, which: Filter) -> list[Run]:
        """Return matching runs, newest first, without results of more than 4 KiB."""

    async def event(self, event_id: str, *, source: str | None = None) -> list[StoredEvent]:
        """Return the events with this id, newest first: several when sources share it.

        Only the newest, as many as there is room for in memory; `source` chooses among them.
        """

    async def event_of(self, run_seq: int) -> StoredEvent | None:
        """Return the event of a run."""

    async def events(self, which: Filter) -> list[StoredEvent]:
        """Return matching events, newest first; `flow` and `state` select by their runs.

        What an event carries (its body, headers, parameters, extensions) is left out.
        """

    async def steps(self, run_seq: int, *, at_most_bytes: int | None = None) -> list[StepRecord]:
        """Return a run's steps in the order they were first recorded, superseded ones too.

        What is kept for undoing them is no step and left out. With `at_most_bytes`, results past
        so many bytes together are left out.
        """

    async def is_used(self, link: bytes) -> bool:
        """Return whether the link of an approval, by its digest, was used."""

    async def attempts(self, run_seq: int) -> list[AttemptRecord]:
        """Return what is kept of a run's attempts, in order."""

    async def waits(self, run_seq: int, key: str | None = None) -> list[Wait]:
        """Return a run's open waits, or the one of a step."""

    async def awaited(
        self, name: str, run_seq: int, after_seq: int, limit: int
    ) -> list[tuple[int, Event]]:
        """Return the first events behind `after_seq` awaited under `name`, with their seq.

        Those accepted before the run was queued are left out.
        """

    async def shapes(self) -> list[Sequence[str]]:
        """Return the distinct shapes of open waits for events."""

    async def cached(self, key: bytes, *, now: datetime) -> Cached | None:
        """Return the result kept under a key, while it lasts."""

    async def read_blob(self, name: str) -> bytes:
        """Return a large result; raises `JournalError` when it is gone or damaged."""

    async def paused(self) -> dict[str, datetime]:
        """Return paused names (`flow:NAME`, `trigger:NAME`) and since when."""

    def examine(self) -> AsyncIterator[tuple[str, str | None]]:
        """Yield (check, problem or None) pairs for `turnout doctor`, as each check ends.

        Proves integrity, no event with a missing run, no run twice for one (event, flow, replay),
        no step recorded twice, legal states only.
        """

    async def close(self) -> None:
        """Release files."""


class Journal(JournalReader, Protocol):
    """The one writer of a data folder."""

    # ---- an event's way in

    def append(
        self,
        entries: Sequence[Entry],
        *,
        trigger: str = "",
        positions: Mapping[str, str | None] | None = None,
        now: datetime,
    ) -> Future[list[Appended]]:
        """Write events, their runs and decisions, and the trigger's positions, in one transaction.

        Submitted by the call itself: a callback of the future hears of it even when whoever awaits
        has been cancelled. Await the future's result, never the future, where that may happen.

        An event that is not `minted` is written once per (tenant, trigger, source, id) within the
        dedupe window. Raises `Overloaded` (too many
        unfinished runs), `JournalFull`, `JournalBroken`.
        """

    async def replay(self, event_seq: int, runs: Sequence[NewRun], *, now: datetime) -> list[str]:
        """Start new runs of a stored event; sets each run's `replay` to one above the highest."""

    async def positions(self, trigger: str) -> dict[str, str]:
        """Return the stored positions of a trigger."""

    # ---- an event's way back

    async def backlog(self, trigger: str, flows: Sequence[str]) -> Backlog:
        """Return a trigger's events that start these flows and of which no run has begun.

        What was claimed before the call counts as begun. Whoever wants the answer to stay true
        keeps the flows from starting anything.
        """

    async def withdraw(
        self, seqs: Sequence[int], *, trigger: str, positions: Mapping[str, str | None]
    ) -> None:
        """Delete events of `backlog` with their runs, as if they had never come.

        The positions move in the first transaction, and there may be several.
        """

    async def is_under_way(
        self,
        trigger: str,
        flows: Sequence[str],
        partitions: Sequence[str],
        *,
        due_by: datetime | None,
    ) -> bool:
        """Whether a trigger's event of these partitions has a run that runs or is about to.

        One that is to be tried again counts when it is due by then; None counts running ones only.
        """

    # ---- a run's life

    async def queued(self, flow: str, after_seq: int, limit: int) -> list[Queued]:
        """Return queued runs of a flow in arrival order, behind `after_seq`."""

    async def queued_for_key(
        self, flow: str, kind: Literal["order", "limit"], key: str, limit: int, after_seq: int = 0
    ) -> list[Queued]:
        """Return queued runs with this key in arrival order, behind `after_seq`."""

    async def due(self, before: datetime, limit: int) -> list[Queued]:
        """Return scheduled, retrying and waiting runs due by `before`, the longest due first."""

    async def next_due_at(self) -> datetime | None:
        """Return when the next scheduled, retrying or waiting run is due."""

    async def held_keys(self) -> list[tuple[str, str, int, bool]]:
        """Return (flow, order_key, run_seq, dead) of runs that may hold their ordering key.

        Retrying and waiting runs do; a dead letter does when its flow says `on_dead="block"`.
        """

    async def claim(
        self, seqs: Sequence[int], *, now: datetime, untouched: Mapping[int, Claim] | None = None
    ) -> list[Claim]:
        """Make runs `running` under a new token; runs no longer claimable are left out.

        `untouched` holds the first claims, by seq, of runs whose event is still at hand.
        """

    def record_step(self, claim: Claim, step: StepRecord) -> Future[None]:
        """Record a step, submitted by the call itself, durable once awaited; raises `ClaimLost`."""

    def flush(self) -> None:
        """Block the loop until what was submitted is durable, or could not be; a second at most.

        For a write behind which the process may end at once.
        """

    async def record(
        self, claim: Claim, outcome: Outcome, *, started_at: datetime, now: datetime
    ) -> None:
        """Record an attempt's outcome; raises `ClaimLost`. A failed run becomes a dead letter."""

    async def record_with(
        self,
        claim: Claim,
        step: StepRecord,
        *,
        entries: Sequence[Entry] = (),
        opening: Opening | None = None,
        again: StepRecord | None = None,
        now: datetime,
    ) -> list[Appended]:
        """Record a step together with events it causes and the wait it opens, in one transaction.

        `again` is recorded instead when an entry was stored before, and no step when an entry's id
        was used for another event.
        Without `opening` the step's wait is closed. What wakes a wait (an awaited event, the end
        of a child run, `answer`) makes its waiting run due in the transaction that stores it.
        Raises what `record_step` and `append` raise.
        """

    async def rescue(self, *, now: datetime) -> Rescued:
        """At start: requeue runs found running (decision 15), spending no attempt.

        One under which the process died again and again has failed as `process_died`: that is
        recorded as the step `FAILED`, so that only its ending is left to do. Dying under that
        as often again raises the step's `tries`, which tells the ending to go on behind what
        it was about.
        """

    async def fail_orphaned_runs(self, flow: str, *, now: datetime) -> list[str]:
        """Make dead letters of a flow's queued runs that have failed; returns their ids.

        For a flow nobody serves any more: what their ending would do (`FAILED`) is not done. The
        children they wait for are cancelled.
        """

    async def cache(self, cached: Cached) -> None:
        """Keep a result under its key, in place of an older one."""

    def store_blob(self, result: bytes) -> AbstractAsyncContextManager[str]:
        """Make a large result durable outside the rows, and yield the name for `spilled`.

        In the block it is safe from pruning; behind it, if a row names it. Raises what any write
        does.
        """

    def hold_blob(self, name: str) -> AbstractContextManager[None]:
        """Keep a large result that is there from pruning in the block."""

    # ---- an event's end

    async def due_actions(self, after_seq: int, limit: int) -> list[tuple[int, Event, str | None]]:
        """Return (event_seq, event, why a run failed) of ended events whose effect is due.

        Why is None when all runs succeeded, or skipped; else the first that did not, in words.
        """

    async def record_action(self, event_seq: int, event: Event | None) -> None:
        """Mark an event's effect as done, storing the event's new extensions if given."""

    async def event_ended(self, event_seq: int) -> tuple[Event, str | None] | None:
        """Return the event and why a run of it failed, if its effect is due now; else None."""

    # ---- operators

    async def cancel(
        self, run_id: str, *, now: datetime, reason: str = "", by: str = ""
    ) -> list[Run]:
        """Cancel an unfinished run, behind the children it waits for; their tokens die with them.

        Returns the run and those children. One with something to undo is queued for its ending,
        recorded as the step `FAILED`, and ends as `cancelled` then: behind its children's.
        Raises `NotFound`, `Refused` (it has ended, or only its ending is left).
        """

    async def end_children(self, claim: Claim, *, now: datetime) -> tuple[list[Run], list[str]]:
        """Cancel the children a run that has failed waits for, as `cancel` does; returns them.

        And the keys of the steps at which children are being undone still: the run's only waits.
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
        """Keep what an approver said (JSON) for a run's open approval, once; returns its key.

        Raises `NotFound`, `Refused` when none is open, or several and `key` names none, and
        `Expired` for a `link` that was used before, whatever became of the run since.
        """

    async def retry(self, run_id: str, from_step: str | None, *, now: datetime) -> Run:
        """Queue a finished run again; `from_step` drops the steps recorded at and after it.

        Raises `NotFound`, `Refused`. The run's attempts start again from 0; it is dead no more.
        One whose undo has failed goes on with that, and nothing else; it stays dead until then.
        """

    async def drop(self, run_id: str, *, now: datetime) -> Run:
        """Take a dead letter off the list; the run stays `failed`. Raises `NotFound`, `Refused`."""

    async def pause(self, name: str, *, now: datetime) -> None:
        """Remember that `flow:NAME` or `trigger:NAME` is paused."""

    async def resume(self, name: str) -> None:
        """Forget a pause."""

    async def clear_cache(
        self, *, task: str | None = None, over_by: datetime | None = None, limit: int = 1_000_000
    ) -> int:
        """Forget kept results: of one task, or those whose time is over; returns how many."""

    async def rename_flow(self, was: str, name: str) -> int:
        """Give a flow's unfinished runs and dead letters to its new name; returns how many."""

    async def orphans(self, flows: Sequence[str]) -> dict[str, int]:
        """Count unfinished runs of flows that are not in `flows`."""

    # ---- upkeep

    async def prune(
        self,
        *,
        finished_before: datetime,
        failed_before: datetime,
        unmatched_before: datetime,
        dedupe_before: datetime,
        limit: int,
    ) -> int:
        """Delete up to `limit` old runs with steps, then events left without runs; returns rows.

        Call until it returns 0. Unfinished runs, their events and positions are never pruned, nor
        are dead letters that are not undone.
        """

    async def prune_oldest(self, limit: int) -> int:
        """Delete the oldest finished events whatever their age; returns rows."""

    async def prune_blobs(self) -> int:
        """Delete large results that no row names any more; returns how many bytes."""

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return (unfinished runs by state, dead letters by flow), kept in memory, exact."""

    def not_undone(self) -> Mapping[str, int]:
        """Return how many dead letters, by flow, are not undone; in memory, exact."""

    def size_bytes(self) -> int:
        """Return the journal's size on disk, its log and large results included."""

    @property
    def writable(self) -> str | None:
        """None while writes work; else why not (disk full, broken)."""

    async def probe(self) -> None:
        """Try a durable write; raises like any write. How recovery from a full disk is noticed."""

    @property
    def short_of_space(self) -> str | None:
        """None while the disk has room for what comes in; else how much is missing."""

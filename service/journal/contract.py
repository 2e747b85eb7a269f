"""What a journal promises, whatever database is under it.

Every write returns only after commit and fsync. A write about a run carries the run's claim
token; a stale token changes nothing and raises `ClaimLost`. Writes that arrive together share a
commit and are applied in the order they were called; one bad write fails its caller only. The
contract suite in `tests/journal_contract.py` is written against this page, not against SQLite.

Not here: what to write (the router and the executor decide) and when to run (the dispatcher).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from turnout.service.event import Event
from turnout.service.run import Outcome, Run, RunError, RunState

# ---------------------------------------------------------------- what is written


@dataclass(slots=True, kw_only=True)
class NewRun:
    """A run to be born with its event: queued, scheduled, already claimed, or a dead letter.

    Born `running` its token is 1. `append` sets `seq`, which grows in arrival order.
    """

    id: str
    flow: str
    state: RunState
    order_key: str | None = None
    limit_key: str | None = None
    due_at: datetime | None = None
    error: RunError | None = None
    code_version: str = ""
    replay: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Why an event did not start a run of a flow: `filtered`, `duplicate`, `unmatched`….

    `flow` is empty when the decision is about the event itself.
    """

    flow: str
    verdict: str
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One event with what the router made of it; `append` writes it whole or not at all.

    `effect` asks for the event to be listed by `effects()` once all its runs have ended.
    `awaited` is the name runs wait for such events under, `topics` what wakes those that do.
    """

    event: Event
    runs: list[NewRun] = field(default_factory=list)
    decisions: Sequence[Decision] = ()
    effect: bool = False
    awaited: str | None = None
    topics: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class Appended:
    """What `append` did with an entry.

    For a duplicate: nothing was stored but a decision; `event_seq`, `event` and `runs` are the
    first delivery's (runs empty if they are pruned). `conflict`: same identity, another body.
    """

    event_seq: int
    event: str
    runs: tuple[str, ...] = ()
    duplicate: bool = False
    conflict: bool = False


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """A recorded call of a task inside a run; `key` is stable over retries and restarts.

    `retrying` keeps the next try's number and, in `result`, when it is due, `waiting` what is
    waited for (both JSON);
    `succeeded` and `failed` are facts never run again, except a `failed` one that escaped the
    flow (`Outcome.error.step`), which is superseded. A `succeeded` one with an `error` is a
    fallback used after that error. `origin` is the run a cached result comes from, or the child
    run; `spilled` names a large result kept with `spill` instead of in `result`. `aside` says
    that it was called while an error was being handled: another attempt may never come to it.
    """

    key: str
    task: str
    state: Literal["succeeded", "failed", "retrying", "waiting"]
    tries: int
    started_at: datetime
    finished_at: datetime | None = None
    encoding: Literal["json", "pickle"] = "json"
    result: bytes | None = None
    error: RunError | None = None
    superseded: bool = False
    origin: str | None = None
    spilled: str | None = None
    aside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A result kept for calls that ask the same; `run_id` is the run that computed it."""

    key: bytes
    task: str
    run_id: str
    encoding: Literal["json", "pickle"]
    result: bytes | None
    spilled: str | None = None
    stored_at: datetime
    expires_at: datetime


# ---------------------------------------------------------------- what is waited for

APPROVAL = "approval:"
"""How the topics of approvals begin."""


def run_topic(run_id: str) -> str:
    """Return the topic that the end of a run wakes."""
    return f"run:{run_id}"


def approval_topic(run_id: str, key: str) -> str:
    """Return the topic that the answer to an approval wakes."""
    return f"{APPROVAL}{run_id}:{key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a step begins to wait for: see `Journal.record_with`.

    `shape` is the trigger and the fields a topic of events compares; `since` the first event to
    look at.
    """

    topic: str
    shape: Sequence[str] = ()
    since: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """An open wait: the first and last event not looked at yet, the answer that came (JSON)."""

    key: str
    topic: str
    woken: int | None = None
    latest: int | None = None
    answer: bytes | None = None


# ---------------------------------------------------------------- what is claimed


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child run ended."""

    id: str
    state: RunState
    result: bytes | None
    error: RunError | None


@dataclass(slots=True, kw_only=True)
class Claim:
    """The right to run one attempt: every write of the attempt carries `token`.

    `attempt` counts from 1. `recorded` holds the steps earlier attempts left, by key.
    `arguments` are the flow's bound arguments when the router already validated them.
    `code_version` is the flow file's when the run was made; empty when nobody needs to compare.
    `waited` says that the run may have open waits, which go when it ends; `unwoken` are those
    (by step) nothing has come for, `ended` the children that have ended since (large results must
    be read). `changed` are the steps this attempt records, `kept_bytes` is the size of what is
    `recorded`. `progress` is the attempt's own note to the next one, which may not get it.
    """

    run_seq: int
    run_id: str
    flow: str
    event_seq: int
    event: Event
    token: int
    attempt: int
    crashes: int
    replay: int
    order_key: str | None
    limit_key: str | None
    due_at: datetime
    suspect: bool = False
    recorded: dict[str, StepRecord] = field(default_factory=dict)
    arguments: Mapping[str, Any] | None = None
    code_version: str = ""
    waited: bool = False
    unwoken: frozenset[str] = frozenset()
    ended: dict[str, ChildEnd] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    progress: dict[str, Any] = field(default_factory=dict)
    kept_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class Queued:
    """The little the dispatcher holds in memory of a run that is not running.

    `claim` is the claim it gets if nobody has touched it since its birth: then its event need not
    be read again.
    """

    seq: int
    flow: str
    order_key: str | None
    limit_key: str | None
    due_at: datetime | None
    suspect: bool
    claim: Claim | None = None


# ---------------------------------------------------------------- what is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The history of one attempt; kept for attempts that failed or wrote log lines.

    `log` is JSON Lines, as captured.
    """

    attempt: int
    started_at: datetime
    finished_at: datetime | None
    state: RunState
    error: RunError | None
    log: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event with its place in the journal, its runs and its decisions."""

    seq: int
    event: Event
    accepted_at: datetime
    runs: tuple[str, ...] = ()
    decisions: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs or events to read; None means any. Newest first, at most `limit`.

    `cursor` continues after a row already seen (its seq). `dead` reads dead letters only.
    """

    flow: str | None = None
    state: RunState | None = None
    trigger: str | None = None
    event: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    dead: bool | None = None
    cursor: int | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Rescued:
    """What `rescue` found at start: runs requeued, and runs dead-lettered as `process_died`."""

    requeued: int
    blamed: tuple[str, ...]


class Reader(Protocol):
    """Reading, which never waits for a writer and works with the service down."""

    async def run(self, run_id: str) -> Run | None:
        """Return one run by its id, or by a prefix of at least 8 characters that fits only one."""

    async def runs(self, which: Filter) -> list[Run]:
        """Return matching runs, newest first."""

    async def event(self, event_id: str) -> list[StoredEvent]:
        """Return the events with this id, newest first: several when sources share it."""

    async def events(self, which: Filter) -> list[StoredEvent]:
        """Return matching events, newest first; `flow` and `state` select by their runs."""

    async def steps(self, run_seq: int) -> list[StepRecord]:
        """Return a run's steps in the order they were first recorded, superseded ones too."""

    async def attempts(self, run_seq: int) -> list[Attempt]:
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

    async def spilled(self, name: str) -> bytes:
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


class Journal(Reader, Protocol):
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

    # ---- a run's life

    async def queued(self, flow: str, after_seq: int, limit: int) -> list[Queued]:
        """Return queued runs of a flow in arrival order, behind `after_seq`."""

    async def queued_for_key(
        self, flow: str, kind: Literal["order", "limit"], key: str, limit: int
    ) -> list[Queued]:
        """Return the first queued runs with this ordering or limit key, in arrival order."""

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

    async def record_step(self, claim: Claim, step: StepRecord) -> None:
        """Record a step, durable on return; raises `ClaimLost`."""

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
        now: datetime,
    ) -> list[Appended]:
        """Record a step together with events it causes and the wait it opens, in one transaction.

        Without `opening` the step's wait is closed. What wakes a wait (an awaited event, the end
        of a child run, `answer`) makes its waiting run due in the transaction that stores it.
        Raises what `record_step` and `append` raise.
        """

    async def rescue(self, *, now: datetime) -> Rescued:
        """At start: requeue runs found running (decision 15), spending no attempt."""

    async def cache(self, cached: Cached) -> None:
        """Keep a result under its key, in place of an older one."""

    def spill(self, result: bytes) -> AbstractAsyncContextManager[str]:
        """Make a large result durable outside the rows, and yield the name for `spilled`.

        In the block it is safe from pruning; behind it, if a row names it. Raises what any write
        does.
        """

    def hold(self, name: str) -> AbstractContextManager[None]:
        """Keep a large result that is there from pruning in the block."""

    # ---- an event's end

    async def effects(self, after_seq: int, limit: int) -> list[tuple[int, Event, bool]]:
        """Return (event_seq, event, all its runs succeeded) of ended events whose effect is due."""

    async def record_effect(self, event_seq: int, event: Event | None) -> None:
        """Mark an event's effect as done, storing the event's new extensions if given."""

    async def event_ended(self, event_seq: int) -> tuple[Event, bool] | None:
        """Return the event and whether all runs succeeded, if its effect is due now; else None."""

    # ---- operators

    async def cancel(self, run_id: str, *, now: datetime) -> Run:
        """Cancel an unfinished run and the children it waits for; their tokens die with them.

        Raises `NotFound`, `Refused`.
        """

    async def answer(self, run_id: str, key: str | None, said: bytes, *, now: datetime) -> str:
        """Keep what an approver said (JSON) for a run's open approval, once; returns its key.

        Raises `NotFound`, and `Refused` when none is open, or several and `key` names none.
        """

    async def retry(self, run_id: str, from_step: str | None, *, now: datetime) -> Run:
        """Queue a finished run again; `from_step` drops the steps recorded at and after it.

        Raises `NotFound`, `Refused`. The run's attempts start again from 0; it is dead no more.
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
        """Give the unfinished runs of a renamed flow to its new name; returns how many."""

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

        Call until it returns 0. Unfinished runs, their events and positions are never pruned.
        """

    async def prune_oldest(self, limit: int) -> int:
        """Delete the oldest finished events whatever their age; returns rows."""

    async def prune_spilled(self) -> int:
        """Delete large results that no row names any more; returns how many bytes."""

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return (unfinished runs by state, dead letters by flow), kept in memory, exact."""

    def size_bytes(self) -> int:
        """Return the journal's size on disk, its log and large results included."""

    @property
    def writable(self) -> str | None:
        """None while writes work; else why not (disk full, broken)."""

    async def probe(self) -> None:
        """Try a durable write; raises like any write. How recovery from a full disk is noticed."""

"""The values that go into a journal and come out: written, waited for, claimed, read.

Plain data, the same for every database. Not here: what the journal does with them (`contract`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

from turnout.service.domain.conditions import MODE_PLACE, UNIQUE_PLACE, Conditions
from turnout.service.domain.decisions import Fact, Reason
from turnout.service.domain.event import CALLED, Event
from turnout.service.domain.run import Keys, Run, RunError, RunState, Start
from turnout.service.domain.waiting import Cause

NOTHING: Mapping[str, Any] = MappingProxyType({})

# ---------------------------------------------------------------- what is written


ORDER_PLACE = "order"
"""The place of ordering keys, which are in a field of their own."""


@dataclass(slots=True, kw_only=True)
class NewRun:
    """A run to insert with its event: queued, scheduled, already running, or a dead letter.

    A run started on insert (`running`) has claim token 1. `append` sets `seq`, which grows in
    arrival order. `token` is the number of its admission while it is inside the gates, else 0.
    `keys` are those of its flow's keyed rules, None if it has none; `priority` is its class.
    `conditions` are decided where it is stored; None for a flow that declares none.
    `starts` are written with a run that starts on insert: the throttles that count it.
    """

    isolated: ClassVar[bool] = False
    cause: ClassVar[Cause] = Cause.NONE
    queued_at: ClassVar[datetime | None] = None
    resumes: ClassVar[bool] = False

    id: str
    flow: str
    state: RunState
    order_key: str | None = None
    keys: Keys | None = None
    priority: int | None = None
    conditions: Conditions | None = None
    due_at: datetime | None = None
    error: RunError | None = None
    code_version: str = ""
    replay: int = 0
    seq: int = 0
    token: int = 0
    starts: Sequence[Start] = ()

    def start_past_mode(self) -> None:
        """Start beside what is under way, as an operator wants it: no mode is asked."""
        if self.conditions is not None and self.conditions.mode is not None:
            self.conditions = self.conditions.past_mode()
            self.keys = {**(self.keys or {}), MODE_PLACE: None}


@dataclass(frozen=True, slots=True)
class Decision:
    """Why an event did not simply start a run of a flow; see `domain.decisions`.

    `flow` is empty when the decision is about the event itself. `detail` is a sentence for people,
    `facts` what was asked and its answer.
    """

    flow: str
    reason: Reason
    detail: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Entry:
    """One event with what the router decided; `append` writes all of it or nothing.

    With `after_run_action` the event is listed by `due_actions()` once all its runs have ended.
    `awaited` is the name under which runs wait for such events, `topics` wakes those runs.
    `cancels` are the (flow, key) of earlier runs that the event cancels.
    """

    event: Event
    runs: list[NewRun] = field(default_factory=list)
    decisions: Sequence[Decision] = ()
    after_run_action: bool = False
    awaited: str | None = None
    topics: Sequence[str] = ()
    cancels: Sequence[tuple[str, str]] = ()

    @property
    def is_idle(self) -> bool:
        """Whether the event starts nothing, and no run can wait for it or be cancelled by it."""
        return not self.runs and self.awaited is None and not self.cancels


@dataclass(slots=True, kw_only=True)
class Appended:
    """What `append` did with an entry.

    For a duplicate only a decision is stored; `event_seq`, `event` and `runs` are those of the
    first delivery (no runs once they are pruned). `conflict`: same identity, another body.

    `refused` are the runs that conditions have refused, by id: they are stored as skipped. In
    `runs` the first run that was asked for the same stands for one that `unique` has refused.
    `cancelled` and `skipped` are older runs that the entry has ended; a cancelled one with steps to
    undo is queued for that. `decided` are the decisions about all of them.
    """

    event_seq: int
    event: str
    runs: tuple[str, ...] = ()
    duplicate: bool = False
    conflict: bool = False
    refused: Mapping[str, Decision] = field(default_factory=lambda: NOTHING)
    cancelled: Sequence[Run] = ()
    skipped: Sequence[Run] = ()
    decided: Sequence[Decision] = ()


@dataclass(slots=True, kw_only=True)
class Retried:
    """What `retry` did: the run as it is now, and the runs that it ended, as in `Appended`."""

    run: Run
    cancelled: Sequence[Run] = ()
    skipped: Sequence[Run] = ()
    decided: Sequence[Decision] = ()


FAILED = "~failed"
"""The key of the step that marks a run as failed: only its undo and its hook are left to do.

For a cancelled run that must be undone, the step's error is `CANCELLED`. Its `tries` are one more
than the number of times this work was given up because it killed the process.
"""

REGISTERED = "~on_undo"
"""The task of records that say how to undo a step; they are not listed as steps."""

PAUSED = "~pause"
"""The task of records that say that the run has paused a dependency; they are not listed either."""


@dataclass(frozen=True, slots=True)
class RecordedArguments:
    """The arguments of a step: their digest, and the call as text."""

    digest: str
    words: str


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """A recorded call of a task in a run; `key` stays the same over retries and restarts.

    In state `retrying`, `tries` is the number of the next try and `result` holds when it is due;
    in state `waiting`, `result` holds what it waits for (both JSON). `succeeded` and `failed` are
    facts: such a step never runs again, except a failed one whose error escaped the flow
    (`Outcome.error.step`), which is superseded. A `succeeded` step with an `error` used its
    fallback after that error. `origin` is the run a cached result comes from, or the child run;
    `blob` names a large result stored in a file instead of in `result`. `in_error_handler` is true
    when it was called while an error was being handled: another attempt may never reach it.
    `arguments` is what it was called with; None in records of earlier versions.
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
    blob: str | None = None
    in_error_handler: bool = False
    arguments: RecordedArguments | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A cached result of a task; `run_id` is the run that computed it."""

    key: bytes
    task: str
    run_id: str
    encoding: Literal["json", "pickle"]
    result: bytes | None
    blob: str | None = None
    stored_at: datetime
    expires_at: datetime


class Move(NamedTuple):
    """How a position of a trigger moves: from the `expected` value, None if it was not stored.

    To None: it is deleted.
    """

    expected: str | None
    to: str | None


# ---------------------------------------------------------------- what is waited for

APPROVAL = "approval:"
"""The prefix of topics of approvals."""


def run_topic(run_id: str) -> str:
    """Return the topic that is woken when a run ends."""
    return f"run:{run_id}"


def approval_topic(run_id: str, key: str) -> str:
    """Return the topic that is woken when an approval is answered."""
    return f"{APPROVAL}{run_id}:{key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The wait that a step opens, see `Journal.record_with`.

    `shape` is the trigger and the fields that a topic of events compares, `since` the first event
    to look at.
    """

    topic: str
    shape: Sequence[str] = ()
    since: int | None = None


@dataclass(frozen=True, slots=True)
class UsedLink:
    """The link through which an approval was answered; it works once."""

    digest: bytes
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """An open wait: the first and last event not looked at yet, and the answer given (JSON)."""

    key: str
    topic: str
    woken: int | None = None
    latest: int | None = None
    answer: bytes | None = None


# ---------------------------------------------------------------- what is claimed


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child run ended; `returned` is a pickle where JSON (`result`) cannot hold the value.

    `refused` says that a rule of its flow has refused it: the reason, and the run that goes on
    instead.
    """

    id: str
    state: RunState
    result: bytes | None
    error: RunError | None
    returned: bytes | None = None
    refused: tuple[str, str | None] | None = None


class Claim(NamedTuple):
    """The right to write about a run: every write about it carries one.

    It is lost when the run is cancelled or claimed anew; a write under it then raises `ClaimLost`.
    """

    run_seq: int
    run_id: str
    token: int


class ClaimedRun(NamedTuple):
    """A run under a claim, and what it resumes from; the same for the whole attempt.

    `attempt` counts from 1. `arguments` are the flow's bound arguments if the router has validated
    them. `code_version` is that of the flow file when the run was made, empty if it need not be
    compared. `dead` says that the run is a dead letter whose undo is retried, `undo_failed` that it
    is counted as not undone.

    From earlier attempts: `recorded` are their steps, by key, and `recorded_bytes` the size of the
    results. `has_waits` says that the run may have open waits; `unwoken` are the steps whose wait
    nothing has woken, `ended` the children that have ended (large results are read later).
    `progress` is what the last attempt noted for this one, if it is still in memory.
    """

    # A named tuple, because one is made for each run and a frozen dataclass costs twice as much.
    claim: Claim
    flow: str
    event_seq: int
    event: Event
    attempt: int
    crashes: int
    replay: int
    order_key: str | None
    keys: Keys | None
    due_at: datetime
    isolated: bool = False
    arguments: Mapping[str, Any] | None = None
    code_version: str = ""
    dead: bool = False
    undo_failed: bool = False
    recorded: Mapping[str, StepRecord] = NOTHING
    recorded_bytes: int = 0
    has_waits: bool = False
    unwoken: frozenset[str] = frozenset()
    ended: Mapping[str, ChildEnd] = NOTHING
    progress: Mapping[str, Any] = NOTHING

    @property
    def may_be_awaited(self) -> bool:
        """Whether another run may await its end: as its child, or as the first of unique work."""
        return self.event.type == CALLED or bool(self.keys and UNIQUE_PLACE in self.keys)

    def log_fields(self) -> dict[str, Any]:
        """Return the fields that every log record of the attempt carries."""
        return {
            "flow": self.flow,
            "run": self.claim.run_id,
            "attempt": self.attempt,
            "trigger": self.event.trigger,
            "event": self.event.id,
            "tenant": self.event.tenant,
        }


@dataclass(slots=True, kw_only=True)
class Queued:
    """What the dispatcher holds in memory of a run that is queued or due, and of one it starts.

    `claimed` is the run as its first claim finds it, while its event is in memory and need not be
    read again. `is_due` says that the run was scheduled, retrying or waiting before, not queued.
    `begun` says that it was claimed before, `resumes` that it comes back from a wait or for the
    next try of a task, and `woken` that its key became free while it was set aside. `weight` is its
    estimated memory in bytes. `token` is the number of its admission while it is inside the gates,
    else 0. `cause` is what first kept it from starting, `starts` is what throttles have counted:
    nothing of a run that resumes.
    """

    seq: int
    id: str
    flow: str
    order_key: str | None
    keys: Keys | None
    due_at: datetime | None
    isolated: bool
    queued_at: datetime
    priority: int | None = None
    begun: bool = False
    resumes: bool = False
    claimed: ClaimedRun | None = None
    is_due: bool = False
    woken: bool = False
    weight: int = 0
    token: int = 0
    cause: Cause | None = None
    starts: Sequence[Start] = ()


# ---------------------------------------------------------------- what is read


class EndedEvent(NamedTuple):
    """An event whose runs have all ended, and whose after-run action is due.

    `failure` is the first failure in words, None when all runs succeeded or were skipped;
    `is_refused` says that a rule of its flow has refused one of them.
    """

    seq: int
    event: Event
    failure: str | None
    is_refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """The record of one attempt; only attempts that failed or wrote log lines have one.

    `log` is JSON Lines, as captured.
    """

    attempt: int
    started_at: datetime
    finished_at: datetime | None
    state: RunState
    error: RunError | None
    log: bytes | None


class DueCount(NamedTuple):
    """How many runs of a flow are due and not started, since when, and how many are due later.

    `scheduled` are those that wait for a time that has been set, or for their next try.
    """

    flow: str
    due: int
    oldest: datetime | None
    scheduled: int


MOST_COUNTED = 1000
"""The last place in line that is told: it stands for all later ones too."""


class InLine(NamedTuple):
    """A queued run in a line: of its flow or, with a place, of those with its key there."""

    run_seq: int
    flow: str
    place: str | None
    key: str | None


class OpenStep(NamedTuple):
    """A step at which a run waits: for an event, a person, a child run (`origin`) or its next try.

    `note` is what its record says: the fields `event` and `match`, `approval`, or `until`.
    """

    run_seq: int
    key: str
    task: str
    state: str
    origin: str | None
    note: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event with its seq in the journal, its runs and its decisions.

    A decision has the fields `flow`, `reason`, `detail`, `facts` and `at`; its reason is text, for
    an earlier version may have had others.
    """

    seq: int
    event: Event
    accepted_at: datetime
    runs: tuple[str, ...] = ()
    decisions: Sequence[Mapping[str, Any]] = ()


EVERYTHING = "*"
"""The name under which everything is paused: no flow starts a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPause:
    """A pause: of `flow:NAME`, of `trigger:NAME`, or of `EVERYTHING`.

    It ends at `until`, or with None when somebody ends it. `by` is who paused it, `note` says why.
    """

    name: str
    since: datetime
    until: datetime | None = None
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOverride:
    """A limit that holds until an instant, instead of the one that a flow file says.

    `name` is `limit:NAME` for a named limit, else `flow:FLOW/PLACE`. `by` is who has set it, `note`
    says why.
    """

    name: str
    count: int
    since: datetime
    until: datetime
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Discarded:
    """Runs that were ended before they began; if `more`, there may be others up to `up_to`."""

    runs: Sequence[Run]
    up_to: int
    more: bool

    @property
    def last(self) -> int:
        """The seq of the last of them."""
        return self.runs[-1].seq if self.runs else self.up_to


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs or events to read, newest first, at most `limit`; None means any.

    `cursor` is the seq of the last row already seen. `dead` selects dead letters.
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
    """What `rescue` did at start: how many runs it requeued, and which runs it failed.

    The failed ones kept killing the process; they are queued to be undone.
    """

    requeued: int
    failed: tuple[str, ...]

"""The values a journal is given and gives back: what is written, waited for, claimed and read.

Plain data, the same whatever database is under it. Not here: what becomes of them (`contract`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from turnout.service.domain.event import Event
from turnout.service.domain.run import RunError, RunState

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

    With `after_run_action` the event is listed by `due_actions()` once all its runs have ended.
    `awaited` is the name runs wait for such events under, `topics` what wakes those that do.
    """

    event: Event
    runs: list[NewRun] = field(default_factory=list)
    decisions: Sequence[Decision] = ()
    after_run_action: bool = False
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


FAILED = "~failed"
"""The key of the step that says a run has failed: only its ending is left to do (`ending`).

Of a run that was cancelled and is to be undone its error is `CANCELLED`. Its `tries` are one more
than how often the process kept dying under that.
"""

REGISTERED = "~on_undo"
"""The task of the records of what would undo a step; they are no steps, and not listed as such."""

UNDO_STEPS = "key >= '~undo' AND key < '~undp'"
"""The condition on the keys of the steps that undo a run."""


@dataclass(frozen=True, slots=True)
class RecordedArguments:
    """What a step was called with: a digest of the arguments, and the call in words."""

    digest: str
    words: str


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """A recorded call of a task inside a run; `key` is stable over retries and restarts.

    `retrying` keeps the next try's number and, in `result`, when it is due, `waiting` what is
    waited for (both JSON);
    `succeeded` and `failed` are facts never run again, except a `failed` one that escaped the
    flow (`Outcome.error.step`), which is superseded. A `succeeded` one with an `error` is a
    fallback used after that error. `origin` is the run a cached result comes from, or the child
    run; `spilled` names a large result kept with `spill` instead of in `result`.
    `in_error_handler` is true when it was called while an error was being handled: another attempt
    may never reach it. `arguments` is what it was called with; None in records of earlier versions.
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
    """A result kept for calls that ask the same; `run_id` is the run that computed it."""

    key: bytes
    task: str
    run_id: str
    encoding: Literal["json", "pickle"]
    result: bytes | None
    blob: str | None = None
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


@dataclass(frozen=True, slots=True)
class UsedLink:
    """The link an approval was answered through, which is good for that once."""

    digest: bytes
    until: datetime


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
    """How a child run ended; `returned` is a pickle where `result` (JSON) is not all of it."""

    id: str
    state: RunState
    result: bytes | None
    error: RunError | None
    returned: bytes | None = None


@dataclass(slots=True, kw_only=True)
class Claim:
    """The right to run one attempt: every write of the attempt carries `token`.

    `attempt` counts from 1. `recorded` holds the steps earlier attempts left, by key.
    `arguments` are the flow's bound arguments when the router already validated them.
    `code_version` is the flow file's when the run was made; empty when nobody needs to compare.
    `waited` says that the run may have open waits, which go when it ends; `unwoken` are those
    (by step) nothing has come for, `ended` the children that have ended since (large results must
    be read). `changed` are the steps this attempt records, `recorded_bytes` is the size of what is
    `recorded`. `progress` is the attempt's own note to the next one, which may not get it.
    `released` says that the run is handed back: no step of this attempt starts any more.
    `dead` says that it is a dead letter whose undo an operator had go on, `undo_failed` that it
    counts as one that is not undone.
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
    isolated: bool = False
    recorded: dict[str, StepRecord] = field(default_factory=dict)
    arguments: Mapping[str, Any] | None = None
    code_version: str = ""
    waited: bool = False
    unwoken: frozenset[str] = frozenset()
    ended: dict[str, ChildEnd] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    progress: dict[str, Any] = field(default_factory=dict)
    recorded_bytes: int = 0
    released: bool = False
    dead: bool = False
    undo_failed: bool = False

    def log_fields(self) -> dict[str, Any]:
        """Return what every record that the attempt logs carries."""
        return {
            "flow": self.flow,
            "run": self.run_id,
            "attempt": self.attempt,
            "trigger": self.event.trigger,
            "event": self.event.id,
            "tenant": self.event.tenant,
        }


@dataclass(slots=True, kw_only=True)
class Queued:
    """The little the dispatcher holds in memory of a run that is not running.

    `claim` is the claim it gets if nobody has touched it since its birth: then its event need not
    be read again. `is_due` says that it was scheduled, retrying or waiting before, not queued.
    `weight` is what it is charged for, in bytes.
    """

    seq: int
    flow: str
    order_key: str | None
    limit_key: str | None
    due_at: datetime | None
    isolated: bool
    claim: Claim | None = None
    is_due: bool = False
    weight: int = 0


# ---------------------------------------------------------------- what is read


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
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
    """What `rescue` found at start: runs that go on, and runs the process kept dying under.

    The latter have failed, and are queued for their ending.
    """

    requeued: int
    failed: tuple[str, ...]

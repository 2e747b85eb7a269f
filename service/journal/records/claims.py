"""What the dispatcher holds of a run: queued, then claimed with what it resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from turnout.service.domain.conditions import UNIQUE_RULE
from turnout.service.domain.event import CALLED, Event
from turnout.service.domain.run import Keys, RunError, RunState, Start
from turnout.service.domain.waiting import Cause

from .entries import NOTHING
from .steps import StepRecord

if TYPE_CHECKING:
    from .windows import RunMembers


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


@dataclass(slots=True)  # its fields are read throughout an attempt: faster than a tuple's
class Claim:
    """The right to write about a run: every write about it carries one.

    It is lost when the run is cancelled or claimed anew; a write under it then raises `ClaimLost`.
    """

    run_seq: int
    run_id: str
    token: int


@dataclass(slots=True)  # as above
class ClaimedRun:
    """A run under a claim, and what it resumes from; the same for the whole attempt.

    `attempt` counts from 1. `arguments` are the flow's bound arguments if the router has validated
    them. `code_version` is that of the flow file when the run was made, empty if it need not be
    compared. `dead` says that the run is a dead letter whose undo is retried, `undo_failed` that it
    is counted as not undone.

    From earlier attempts: `recorded` are their steps, by key, and `recorded_bytes` the size of the
    results. `has_waits` says that the run may have open waits; `unwoken` are the steps whose wait
    nothing has woken, `ended` the children that have ended (large results are read later).
    `progress` is what the last attempt noted for this one, if it is still in memory. `polls` are
    the steps with an open poll, and `was_waiting` tells that the run was suspended before.

    `members` are those of the window of a windowed run; its `event` is then the first of them.
    """

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
    members: RunMembers | None = None
    polls: frozenset[str] = frozenset()
    was_waiting: bool = False

    @property
    def may_be_awaited(self) -> bool:
        """Whether another run may await its end: as its child, or as the first of unique work."""
        return self.event.type == CALLED or bool(self.keys and UNIQUE_RULE in self.keys)

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

    `arrival` is its place in the order of the queue: its seq, or a higher number of its own if an
    operator has queued it again behind the others of its ordering key.
    `claimed` is the run as its first claim finds it, while its event is in memory and need not be
    read again. `is_due` says that the run was scheduled, retrying or waiting before, not queued.
    `begun` says that it was claimed before, `resumes` that it comes back from a wait or for the
    next try of a task. `woken_by` is the key (rule, key, class) that became free while it was set
    aside behind it. `weight` is its estimated memory in bytes. `token` is the number of its
    admission while it is inside the gates, else 0. `cause` is what first kept it from starting,
    `starts` is what throttles have counted: nothing of a run that resumes.
    """

    seq: int
    arrival: int
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
    woken_by: tuple[str, str, int] | None = None
    weight: int = 0
    token: int = 0
    cause: Cause | None = None
    starts: Sequence[Start] = ()


class QueuedPage(NamedTuple):
    """Queued runs that certain keys do not block, up to an arrival; `more` if others may follow."""

    runs: list[Queued]
    up_to: int
    more: bool


@dataclass(frozen=True, slots=True)
class Rescued:
    """What `rescue` did at start: how many runs it requeued, and which runs it failed.

    The failed ones kept killing the process; they are queued to be undone.
    """

    requeued: int
    failed: tuple[str, ...]

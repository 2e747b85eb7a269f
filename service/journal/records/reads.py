"""What is read of a journal to be shown or acted on, and which rows to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunError, RunState


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
"""The last position in the queue that is told: it stands for all later ones too."""


class InLine(NamedTuple):
    """A queued run in a line: of its flow or, with a rule, of those with its key by it."""

    arrival: int
    flow: str
    rule_id: str | None
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
class OpenApproval:
    """An approval that nobody has answered yet; `note` is what its record says."""

    run_id: str
    flow: str
    key: str
    asked_at: datetime
    note: Mapping[str, Any]


class ApprovalAnswer(NamedTuple):
    """Who has answered an approval: the name that was typed, and `via`, what permitted it."""

    key: str
    at: datetime
    approved: bool
    by: str
    via: str


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


class PastRun(NamedTuple):
    """A run of one flow as it went.

    `started_at` is when it was first claimed, or inserted as running, which its attempt follows;
    None if it never was. `refused` is the reason for which a rule of its flow has refused it.
    """

    seq: int
    id: str
    replay: int
    state: RunState
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    refused: str | None
    was_forced: bool


class Arrival(NamedTuple):
    """A stored event with the runs of one flow that it has, and the decisions about it.

    `window` is the seq of the window of that flow which it is in, or was in when it closed.
    """

    stored: StoredEvent
    runs: Sequence[PastRun]
    window: int | None = None


@dataclass(frozen=True, slots=True)
class EndedTrace:
    """A run that has ended and whose span is owed, with its event; it was sent `ends` times before.

    `members` are the first events of the window of a windowed run.
    """

    run: Run
    event: Event
    ends: int
    members: Sequence[Event] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs or events to read, newest first, at most `limit`; None means any.

    `cursor` is the seq of the last row already seen. `dead` selects dead letters. `owner` and `tag`
    are those that the flow says it has.
    """

    flow: str | None = None
    state: RunState | None = None
    trigger: str | None = None
    event: str | None = None
    owner: str | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    dead: bool | None = None
    cursor: int | None = None
    limit: int = 100

"""What is recorded of a run's steps: the records themselves, cached results, and open waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from turnout.service.domain.run import RunError

FAILED = "~failed"
"""The key of the step that marks a run as failed: only its undo and its hook are left to do.

For a cancelled run that must be undone, the step's error is `CANCELLED`. Its `tries` are one more
than the number of times this work was given up because it killed the process.
"""

REGISTERED = "~on_undo"
"""The task of records that say how to undo a step; they are not listed as steps."""

STATE = "~state"
"""The task of the record of what a run has read of its flow's state."""

STATE_KEY = "state#0"
"""The key of that record; calls count from 1."""

HISTORY = "~history"
"""The task of the records of what a run has read of the earlier runs of its flow."""

ITEMS = "~items"
"""The task of records that say with which members of its window a run goes on: `{"left": […]}`."""

PAUSED = "~pause"
"""The task of records that say that the run has paused a dependency; they are not listed either."""

AGENT = "~agent"
"""The task of the records of what an agent goes by and has reserved; they are not listed either."""

POLL = "poll"
"""The task of the steps that poll something outside."""

SLEEP = "sleep"
"""The task of the steps that wait for time alone."""

SKIPPED = "skipped"
CUT_OFF = "cut_off"
"""The types of errors of steps that the failure of another branch kept from running, or ended.

Such a record is superseded from the start: it tells people what became of the step.
"""


@dataclass(slots=True)  # not frozen: one is made for each step, at half the cost
class RecordedArguments:
    """The arguments of a step: their digest, and the call as text."""

    digest: str
    words: str


@dataclass(slots=True)
class StepRecord:
    """A recorded call of a task in a run; `key` stays the same over retries and restarts.

    In state `retrying`, `tries` is the number of the next try and `result` holds when it is due;
    in state `waiting`, `result` holds what it waits for (both JSON); `dropped` is a wait of a
    `first` when another one came before it. `succeeded` and `failed` are facts: such a step never
    runs again, except a failed one whose error escaped the flow (`Outcome.error.step`), which is
    superseded. A `succeeded` step with an `error` used its
    fallback after that error. `origin` is the run a cached result comes from, or the child run;
    `blob` names a large result stored in a file instead of in `result`. `in_error_handler` is true
    when it was called while an error was being handled: another attempt may never reach it.
    `arguments` is what it was called with; None in records of earlier versions.
    """

    key: str
    task: str
    state: Literal["succeeded", "failed", "retrying", "waiting", "dropped"]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtefact:
    """A file that a step (its `key`) has attached to its run; `blob` names its content."""

    key: str
    name: str
    type: str
    size: int
    blob: str
    at: datetime


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
    to look at, `race` the step that awaits this wait and others, of which the first to come counts.
    """

    topic: str
    shape: Sequence[str] = ()
    since: int | None = None
    race: str | None = None


@dataclass(frozen=True, slots=True)
class UsedLink:
    """The link through which an approval was answered; it works once."""

    digest: bytes
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """An open wait: the first and last event not looked at yet, and the answer given (JSON).

    For an approval or a child run `woken` is the last event stored before it was over. Of those
    with the same `Opening.race` only the first to be over is woken.
    """

    key: str
    topic: str
    woken: int | None = None
    latest: int | None = None
    answer: bytes | None = None


class StoredState(NamedTuple):
    """What a flow keeps between runs under a key: JSON, and how often and by whom it was written.

    The key is that of `ordered_by=`, empty where the flow has none.
    """

    flow: str
    key: str
    version: int
    value: bytes
    run_id: str
    changed_at: datetime

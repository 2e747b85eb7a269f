"""Alerts and what is sent of them, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from turnout.service.domain.alerts import AlertRule
from turnout.service.domain.run import RunError

Ended = Literal["recovered", "withdrawn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAlert:
    """An alert: `count` times since `opened_at`, the last time at `last_at` by the run `run_id`.

    People were told `messages` times, last at `told_at` of `told_count`. It is muted until
    `muted_until`. It has ended when the flow has recovered, or when its rule was withdrawn.
    """

    id: int
    flow: str
    rule: AlertRule
    cause: str
    opened_at: datetime
    last_at: datetime
    count: int
    error: RunError | None
    run_id: str | None
    told_count: int
    told_at: datetime | None
    messages: int
    muted_until: datetime | None
    muted_by: str
    note: str
    ended_at: datetime | None
    ended: Ended | None

    def is_muted(self, now: datetime) -> bool:
        """Whether an operator has muted it."""
        return self.muted_until is not None and now < self.muted_until


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message for one channel."""

    channel: str
    key: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message that was claimed to be sent, for the `tries`-th time.

    `error` says why the last try failed, and is empty if none has. `is_last` says that it is the
    last one of its channel for a while.
    """

    seq: int
    alert: int
    channel: str
    key: str
    document: Mapping[str, Any]
    made_at: datetime
    tries: int
    error: str
    is_last: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """The message of a channel to send now, and when to look again; None for neither.

    `summarised` messages have become one.
    """

    message: StoredMessage | None
    next_at: datetime | None = None
    summarised: int = 0


@dataclass(frozen=True, slots=True)
class Expectation:
    """Since when a flow is expected to do something, and the last instant that was looked at."""

    since: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Success:
    """A run that has succeeded."""

    accepted_at: datetime
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class LateRuns:
    """The first unfinished run of a flow, and how many were due before an instant."""

    first: str | None
    due_at: datetime | None
    count: int


@dataclass(frozen=True, slots=True)
class FlowAbout:
    """What a flow says of itself."""

    owner: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None

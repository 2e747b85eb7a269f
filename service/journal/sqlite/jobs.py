"""Jobs for the writer, one class for each kind of write, and which of them may be grouped.

Jobs about different runs commute, because nobody knows a run before its append has committed. Jobs
about one run take effect in the order they were submitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import apsw

from turnout.service.domain.errors import JournalError
from turnout.service.domain.run import Outcome
from turnout.service.journal.contract import Positions
from turnout.service.journal.records import NOTHING, Claim, ClaimedRun, Decision, Entry, StepRecord

from .counters import RunCounters
from .event_rows import EventRow, event_row, identity, pack_decisions
from .step_rows import step_row
from .values import micros
from .writer import Job


class AppendJob(Job):
    """Write entries and positions; `events` are the rows of the entries' events."""

    __slots__ = ("at", "entries", "events", "identities", "positions", "trigger", "verdicts")

    def __init__(
        self,
        entries: Sequence[Entry],
        events: Sequence[EventRow],
        identities: Sequence[tuple[bytes, bytes] | None],
        verdicts: Callable[[Entry, bool], str | None],
        *,
        trigger: str,
        positions: Positions,
        at: int,
    ) -> None:
        super().__init__(rows=2 * len(entries) + len(positions) + 1)
        self.entries = entries
        self.events = events
        self.identities = identities
        self.verdicts = verdicts
        self.trigger = trigger
        self.positions = positions
        self.at = at


class StepJob(Job):
    """Record a step under a claim."""

    __slots__ = ("claim", "row")

    def __init__(self, claim: Claim, step: StepRecord) -> None:
        super().__init__()
        self.claim = claim
        self.row = step_row(step)


class OutcomeJob(Job):
    """Record an attempt's outcome; `has_waits` says that the run may have open waits."""

    __slots__ = ("at", "has_waits", "outcome", "run", "started_at")

    def __init__(
        self, run: ClaimedRun, outcome: Outcome, started_at: int, at: int, *, has_waits: bool
    ) -> None:
        super().__init__()
        self.run = run
        self.has_waits = has_waits
        self.outcome = outcome
        self.started_at = started_at
        self.at = at


class ClaimJob(Job):
    """Claim runs."""

    __slots__ = ("at", "seqs", "untouched")

    def __init__(self, seqs: Sequence[int], untouched: Mapping[int, ClaimedRun], at: int) -> None:
        super().__init__(rows=len(seqs))
        self.seqs = seqs
        self.untouched = untouched
        self.at = at


class CallJob(Job):
    """A rarer write: a function of the open connection, called alone in its turn."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[apsw.Connection, RunCounters], Any]) -> None:
        super().__init__()
        self.function = function


class Groups:
    """Jobs grouped by kind, as long as grouping cannot reorder two jobs about one run."""

    __slots__ = ("_claimed", "_ended", "_stepped", "appends", "claims", "outcomes", "steps")

    def __init__(self) -> None:
        self.appends: list[AppendJob] = []
        self.steps: list[StepJob] = []
        self.outcomes: list[OutcomeJob] = []
        self.claims: list[ClaimJob] = []
        self._stepped: set[tuple[int, str]] = set()
        self._ended: set[int] = set()
        self._claimed: set[int] = set()

    def accepts(self, job: Job) -> bool:
        """Whether `job` still takes effect in its turn if steps, outcomes, claims is the order."""
        if isinstance(job, StepJob):
            seq = job.claim.run_seq
            return (
                (seq, job.row.key) not in self._stepped
                and seq not in self._ended
                and seq not in self._claimed
            )
        if isinstance(job, OutcomeJob):
            seq = job.run.claim.run_seq
            return seq not in self._ended and seq not in self._claimed
        if isinstance(job, ClaimJob):
            return self._claimed.isdisjoint(job.seqs)
        return True

    def add(self, job: Job) -> None:
        """Add a job that `accepts` allowed to the group of its kind."""
        if isinstance(job, AppendJob):
            self.appends.append(job)
        elif isinstance(job, StepJob):
            self.steps.append(job)
            self._stepped.add((job.claim.run_seq, job.row.key))
        elif isinstance(job, OutcomeJob):
            self.outcomes.append(job)
            self._ended.add(job.run.claim.run_seq)
        elif isinstance(job, ClaimJob):
            self.claims.append(job)
            self._claimed.update(job.seqs)


def append_job(
    entries: Sequence[Entry],
    now: datetime,
    *,
    trigger: str = "",
    positions: Positions = NOTHING,
) -> AppendJob:
    """Put entries into rows for the writer; raises `JournalError` for what no row can hold."""
    at = micros(now)
    try:
        events = [event_row(entry, at, now) for entry in entries]
    except (TypeError, ValueError) as error:
        raise JournalError(f"this event cannot be stored: {error}") from error
    return AppendJob(
        entries,
        events,
        [None if entry.event.minted else identity(entry.event) for entry in entries],
        partial(_verdicts, now),
        trigger=trigger,
        positions=positions,
        at=at,
    )


def _verdicts(now: datetime, entry: Entry, conflict: bool) -> str | None:
    """Return the decision stored when an event is delivered again."""
    if conflict:
        made = Decision("", "conflict", "the same id came again with other content")
    else:
        made = Decision("", "duplicate", "the same event was delivered again")
    return pack_decisions((made,), now)

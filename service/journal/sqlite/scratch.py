"""A journal in memory that decides the conditions of runs, at instants it is told.

It has the tables, the statements and the code of the real one, so what it decides is what the
journal would. It keeps nothing of the events, and forgets runs that have ended.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome, RunError, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    Claim,
    ClaimedRun,
    Decision,
    Entry,
    NewRun,
)

from . import operations, retention
from .append import Intake
from .apply import Batch
from .claims import ClaimJob
from .connection import STATEMENTS_KEPT, plan_once
from .counters import RunCounters
from .events import AppendJob
from .migrations import migrate
from .outcomes import OutcomeJob
from .resume_cache import ResumeCache
from .skip import skip
from .values import micros

_ENDED_KEPT = 2_000
_FORGOTTEN_AT_ONCE = 10_000
_UNBOUNDED = 2**62
_DELETE_DECISIONS = "DELETE FROM decisions"  # nobody reads them
_ERROR = RunError("failed", "it failed")
_EVENT = Event(id="event", source="", type="", time=utc_now(), minted=True)
"""What stands for every event: conditions ask the keys of the run."""


class _EnoughSpace:
    """The disk of a journal that has none."""

    def check(self) -> None:
        """Refuse nothing."""


class ScratchJournal:
    """Decides about runs one by one, each at its own instant; the instants never go back."""

    def __init__(self) -> None:
        self._connection = connection = apsw.Connection(
            ":memory:", statementcachesize=STATEMENTS_KEPT
        )
        plan_once(connection)
        migrate(connection, Path(":memory:"))
        connection.execute("BEGIN")  # nothing is ever taken back
        self._intake = Intake(connection, _EnoughSpace(), max_unfinished_runs=_UNBOUNDED)
        self._batch = Batch(connection, self._intake, ResumeCache())
        self._counters = RunCounters(0)
        self._claimed: dict[str, ClaimedRun] = {}
        self._ended: list[int] = []
        job = AppendJob([Entry(event=_EVENT)], utc_now(), "", NOTHING)
        self._batch((job,), self._counters)
        self._event_seq: int = job.result[0].event_seq
        self._arrived = 0

    def close(self) -> None:
        """Release the memory."""
        self._connection.close()

    def arrive(self, run: NewRun, at: datetime) -> Appended:
        """Decide about a new run and store it; one in state `running` has started."""
        self._arrived += 1
        run.replay = self._arrived  # an event has one run of each number
        appended = self._intake.replay(self._event_seq, [run], micros(at), self._counters)
        if run.id in appended.refused:
            self._has_ended(run.seq, at)
        elif run.state is RunState.RUNNING:
            self._claimed[run.id] = _claimed(run, at)
        for ended in (*appended.cancelled, *appended.skipped):
            self._claimed.pop(ended.id, None)
            self._has_ended(ended.seq, at)
        return appended

    def keep(self, run: NewRun, at: datetime) -> None:
        """Store a run that was accepted, whatever its conditions would say now."""
        asked, run.conditions = run.conditions, None
        self.arrive(run, at)
        run.conditions = asked
        if asked is not None:
            self._intake.conditions.accepted(run, micros(at))

    def start(self, run: NewRun, at: datetime) -> None:
        """Start a run that waited."""
        claimed = _claimed(run, at)
        job = ClaimJob((run.seq,), {run.seq: claimed}, micros(at))
        self._batch((job,), self._counters)
        self._claimed[run.id] = claimed

    def end(self, run: NewRun, state: RunState, at: datetime) -> None:
        """End a run in this state."""
        claimed = self._claimed.pop(run.id, None)
        if claimed is not None:
            error = _ERROR if state is RunState.FAILED else None
            outcome = Outcome(state=state, error=error)
            job = OutcomeJob(claimed, outcome, at, at, has_waits=False)
            self._batch((job,), self._counters)
        elif state is RunState.SKIPPED:
            made = Decision(run.flow, Reason.DROPPED)
            skip(self._connection, self._counters, run.seq, made, micros(at))
        else:
            operations.cancel(self._connection, self._counters, run.id, at)
        self._has_ended(run.seq, at)

    def _has_ended(self, run_seq: int, at: datetime) -> None:
        """Forget runs that have ended, many at a time, and what counts no more."""
        self._ended.append(run_seq)
        if len(self._ended) < _ENDED_KEPT:
            return
        retention.delete_runs(self._connection, self._ended)
        retention.forget_keys(self._connection, micros(at), _FORGOTTEN_AT_ONCE)
        self._connection.execute(_DELETE_DECISIONS)
        self._ended.clear()


def _claimed(run: NewRun, at: datetime) -> ClaimedRun:
    return ClaimedRun(
        claim=Claim(run.seq, run.id, 1), flow=run.flow, event_seq=0, event=_EVENT, attempt=1,
        crashes=0, replay=run.replay, order_key=None, keys=run.keys, due_at=at,
    )  # fmt: skip

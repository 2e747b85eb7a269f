"""Applies jobs that arrived together: events, steps, outcomes, claims, and rarer calls.

Each kind is written with few statements, in an order that keeps the promises of `jobs.py`. Each
statement about a run compares the run's token itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from turnout.service.domain.errors import ClaimLost
from turnout.service.domain.event import CALLED
from turnout.service.domain.run import FINISHED, Undo
from turnout.service.journal.records import REGISTERED, Appended, Claim, ClaimedRun, Opening

from . import step_rows, waits
from .append import Intake
from .claims import Claims
from .counters import RunCounters
from .disk_space import DiskSpace
from .jobs import AppendJob, CallJob, Groups, OutcomeJob, StepJob
from .resume_cache import ResumeCache
from .run_rows import INSERT_ATTEMPTS, RECORD_OUTCOME, AttemptRow, outcome_row
from .statements import load
from .step_rows import claimed_row
from .values import dump_list
from .writer import Job, Split

_SQL = load("record")
_HOLDS, _FLOW, _SHOW_PROGRESS = _SQL["holds"], _SQL["flow"], _SQL["show_progress"]
_RETURNED, _UNDO, _SUPERSEDE = _SQL["returned"], _SQL["undo"], _SQL["supersede"]
_DELETE_STEP = _SQL["delete_step"]


class Batch:
    """Applies jobs to the journal, inside the transaction the writer opened."""

    def __init__(
        self,
        connection: apsw.Connection,
        intake: Intake,
        disk_space: DiskSpace,
        resume_cache: ResumeCache,
    ) -> None:
        self._connection = connection
        self._disk_space = disk_space
        self._intake = intake
        self._claims = Claims(connection, resume_cache)
        self._isolated: set[int] = set()  # runs that have not shown progress since their claim

    def __call__(self, jobs: Sequence[Job], counters: RunCounters) -> None:
        """Write `jobs`; see `Apply` in the writer."""
        self._disk_space.measure(at_once=False)
        groups = Groups()
        for job in jobs:
            if not groups.accepts(job):
                self._write(groups, counters)
                groups = Groups()
            if isinstance(job, CallJob):
                self._write(groups, counters)
                groups = Groups()
                job.result = job.function(self._connection, counters)
            else:
                groups.add(job)
        self._write(groups, counters)

    def _write(self, groups: Groups, counters: RunCounters) -> None:
        if groups.appends:
            self._intake.append(groups.appends, counters)
        if groups.steps:
            self._record_steps(groups.steps)
        if groups.outcomes:
            self._record(groups.outcomes, counters)
        if groups.claims:
            claimed = self._claims.claim(groups.claims, counters)
            self._isolated.update(run.claim.run_seq for run in claimed if run.isolated)

    def _record_steps(self, jobs: Sequence[StepJob]) -> None:
        values: list[Any] = []
        for job in jobs:
            values += claimed_row(job.claim, job.row)
        if step_rows.RECORD.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            # Nothing changed: either the claim is lost, or the step is already a fact.
            self._check_claim(jobs[0].claim)
        for job in jobs if self._isolated else ():
            # The run makes progress, so its count of consecutive crashes starts again.
            seq = job.claim.run_seq
            if seq in self._isolated and job.row.task != REGISTERED:
                self._connection.execute(_SHOW_PROGRESS, (seq,))

    def _record(self, jobs: Sequence[OutcomeJob], counters: RunCounters) -> None:
        values: list[Any] = []
        attempts: list[Any] = []
        for job in jobs:
            run, outcome = job.run, job.outcome
            row = outcome_row(run, outcome, job.started_at, job.at)
            values += row
            if row.error or outcome.log or row.state in ("failed", "retrying"):
                attempts += AttemptRow(
                    run.claim.run_seq, run.attempt, job.started_at, job.at, row.state, row.error,
                    outcome.log,
                )  # fmt: skip
            counters.move("running", row.state)
            if row.finished_at is not None and row.dead != run.dead:
                counters.add_dead_letters(self._flow_of(run), 1 if row.dead else -1)
        if RECORD_OUTCOME.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            raise self._lost(jobs[0].run.claim)
        INSERT_ATTEMPTS.run(self._connection, attempts)
        self._isolated.difference_update(job.run.claim.run_seq for job in jobs)
        self._update_waits(jobs)
        for job in jobs:
            self._record_rest(job, counters)

    def _record_rest(self, job: OutcomeJob, counters: RunCounters) -> None:
        """Write what few outcomes have."""
        seq, outcome = job.run.claim.run_seq, job.outcome
        if outcome.returned is not None:
            self._connection.execute(_RETURNED, (outcome.returned, seq))
        if outcome.undo is not None:
            self._note_undo(job.run, outcome.undo, counters)
        if outcome.error and (outcome.error.step or outcome.again):
            keys = dump_list((outcome.error.step, *outcome.again))
            self._connection.execute(_SUPERSEDE, (seq, keys))

    def _flow_of(self, run: ClaimedRun) -> str:
        """Return the flow of a run; it may have been renamed since the claim."""
        return self._current_flow(run.claim) or run.flow

    def _current_flow(self, claim: Claim) -> str | None:
        found: str | None = self._connection.execute(_FLOW, (claim.run_seq,)).get
        return found

    def _note_undo(self, run: ClaimedRun, undo: Undo, counters: RunCounters) -> None:
        """Record how the undo of an ended run went."""
        self._connection.execute(_UNDO, (run.claim.run_seq, undo))
        if (undo == "failed") != run.undo_failed:
            counters.add_not_undone(self._flow_of(run), -1 if run.undo_failed else 1)

    def _update_waits(self, jobs: Sequence[OutcomeJob]) -> None:
        """Wake parents of ended children, delete waits of ended runs, suspend the others."""
        gone = []
        for job in jobs:
            claim, outcome = job.run.claim, job.outcome
            if outcome.state in FINISHED:
                if job.has_waits:
                    gone.append(claim.run_seq)
                if job.run.event.type == CALLED:
                    waits.run_ended(self._connection, claim.run_id, job.at)
            elif outcome.waits:
                waits.suspended(self._connection, claim.run_seq, outcome.waits, job.at)
        if gone:
            waits.delete(self._connection, gone)

    def record_with(
        self,
        step: StepJob,
        caused: AppendJob | None,
        opening: Opening | None,
        counters: RunCounters,
        *,
        again: StepJob | None = None,
    ) -> list[Appended]:
        """Write a step with the events it causes and the wait it opens, or closes.

        When an event was stored before, `again` is written instead of the step; when its id belongs
        to another event, neither is.
        """
        self._record_steps([step])
        claim, key = step.claim, step.row.key
        if opening is None:
            waits.closed(self._connection, claim.run_seq, key)
        else:
            waits.opened(self._connection, claim.run_seq, key, opening)
        appended = self._append_caused(caused, counters)
        if again is not None and any(one.duplicate or one.conflict for one in appended):
            self._connection.execute(_DELETE_STEP, (claim.run_seq, key))
            if not any(one.conflict for one in appended):
                self._record_steps([again])
        return appended

    def _append_caused(self, caused: AppendJob | None, counters: RunCounters) -> list[Appended]:
        if caused is None:
            return []
        self._intake.append([caused], counters)
        if caused.error is not None:
            raise caused.error
        appended: list[Appended] = caused.result
        return appended

    def _check_claim(self, claim: Claim) -> None:
        held = self._connection.execute(_HOLDS, (claim.run_seq, claim.token)).get
        if held is None:
            raise self._lost(claim)

    def _lost(self, claim: Claim) -> ClaimLost:
        """Return the error for a write under a stale token."""
        flow = self._current_flow(claim)
        return ClaimLost(
            f"run {claim.run_id}{'' if flow is None else f' of {flow}'} is no longer held by claim"
            f" {claim.token}: it was cancelled or claimed anew"
        )

"""Applies jobs that arrived together: events, steps, outcomes, claims, and rarer calls.

Each kind is written with few statements, in an order that keeps the promises of `jobs.py`. Each
statement about a run compares the run's token itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import orjson

from turnout.service.domain.errors import ClaimLost
from turnout.service.domain.event import CALLED
from turnout.service.domain.run import FINISHED, Undo
from turnout.service.journal.records import REGISTERED, Appended, Claim, ClaimedRun, Opening

from . import waits
from .append import Intake
from .bulk import BulkStatement
from .claims import Claims
from .counters import RunCounters
from .disk_space import DiskSpace
from .jobs import AppendJob, CallJob, Groups, OutcomeJob, StepJob
from .resume_cache import ResumeCache
from .rows import micros, pack_error, storable
from .writer import Job, Split

_STEPS = BulkStatement(
    "INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding,"
    " result, error, superseded, origin, spilled, aside, digest, called)"
    " SELECT v.column1, v.column3, v.column4,"
    " v.column5, v.column6, v.column7, v.column8, v.column9, v.column10, v.column11, v.column12,"
    " v.column13, v.column14, v.column15, v.column16, v.column17 FROM",
    17,
    # CROSS JOIN fixes the order, so that rows are inserted in the order they were recorded. Only
    # try numbers, waits and superseded errors are overwritten, never facts.
    "AS v CROSS JOIN runs WHERE runs.seq = v.column1 AND runs.token = v.column2"
    " AND runs.state = 'running'"
    " ON CONFLICT (run_seq, key) DO UPDATE SET task = excluded.task, state = excluded.state,"
    " tries = excluded.tries, started_at = excluded.started_at,"
    " finished_at = excluded.finished_at, encoding = excluded.encoding,"
    " result = excluded.result, error = excluded.error, superseded = excluded.superseded,"
    " origin = excluded.origin, spilled = excluded.spilled, aside = excluded.aside,"
    " digest = excluded.digest, called = excluded.called"
    " WHERE steps.state IN ('retrying', 'waiting') OR steps.superseded = 1",
)
_OUTCOMES = BulkStatement(
    "UPDATE runs SET state = v.column3, attempts = attempts + v.column4,"
    " due_at = iif(v.column3 = 'waiting', v.column5, coalesce(v.column5, due_at)),"
    " started_at = v.column6, finished_at = v.column7,"
    " result = v.column8, error = v.column9, reason = v.column10, dead = v.column11,"
    " blames = 0 FROM",
    11,
    "AS v WHERE runs.seq = v.column1 AND runs.token = v.column2 AND runs.state = 'running'",
)
_ATTEMPTS = BulkStatement(
    "INSERT INTO attempts (run_seq, attempt, started_at, finished_at, state, error, log)", 7
)
_FINISHED = frozenset(state.value for state in FINISHED)


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
        values = [value for job in jobs for value in job.values]
        if _STEPS.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            # Nothing changed: either the claim is lost, or the step is already a fact.
            self._check_claim(jobs[0].claim)
        for job in jobs if self._isolated else ():
            # The run makes progress, so its count of consecutive crashes starts again.
            seq = job.claim.run_seq
            if seq in self._isolated and job.values[3] != REGISTERED:
                self._connection.execute("UPDATE runs SET blames = 0 WHERE seq = ?", (seq,))

    def _record(self, jobs: Sequence[OutcomeJob], counters: RunCounters) -> None:
        values: list[Any] = []
        attempts: list[Any] = []
        for job in jobs:
            run, outcome = job.run, job.outcome
            state = outcome.state.value
            finished = state in _FINISHED
            was_dead = run.dead and not finished
            due = micros(outcome.due_at) if outcome.due_at else None
            error = pack_error(outcome.error) if outcome.error else None
            reason = storable(outcome.reason) if outcome.reason else None
            # A dead letter whose undo an operator has finished is no dead letter any more.
            dead = state == "failed" and not (run.dead and outcome.undo == "done")
            values.extend(
                (
                    run.claim.run_seq, run.claim.token, state, int(outcome.counts),
                    job.at if state == "queued" else due, job.started_at,
                    job.at if finished else None, outcome.result, error, reason,
                    int(dead or was_dead),
                )
            )  # fmt: skip
            if error or outcome.log or state in ("failed", "retrying"):
                attempts.extend(
                    (
                        run.claim.run_seq, run.attempt, job.started_at, job.at, state, error,
                        outcome.log,
                    )
                )  # fmt: skip
            counters.move("running", state)
            if dead != (run.dead and finished):
                counters.add_dead_letters(self._flow_of(run), 1 if dead else -1)
        if _OUTCOMES.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            raise self._lost(jobs[0].run.claim)
        _ATTEMPTS.run(self._connection, attempts)
        self._isolated.difference_update(job.run.claim.run_seq for job in jobs)
        self._update_waits(jobs)
        for job in jobs:
            seq = job.run.claim.run_seq
            if job.outcome.returned is not None:
                self._connection.execute(
                    "UPDATE runs SET returned = ? WHERE seq = ?", (job.outcome.returned, seq)
                )
            if job.outcome.undo is not None:
                self._note_undo(job.run, job.outcome.undo, counters)
            if job.outcome.error and (job.outcome.error.step or job.outcome.again):
                self._connection.execute(
                    "UPDATE steps SET superseded = 1 WHERE run_seq = ? AND state = 'failed'"
                    " AND key IN (SELECT value FROM json_each(?))",
                    (seq, _json((job.outcome.error.step, *job.outcome.again))),
                )

    def _flow_of(self, run: ClaimedRun) -> str:
        """Return the flow of a run; it may have been renamed since the claim."""
        return self._current_flow(run.claim) or run.flow

    def _current_flow(self, claim: Claim) -> str | None:
        found: str | None = self._connection.execute(
            "SELECT flow FROM runs WHERE seq = ?", (claim.run_seq,)
        ).get
        return found

    def _note_undo(self, run: ClaimedRun, undo: Undo, counters: RunCounters) -> None:
        """Record how the undo of an ended run went."""
        self._connection.execute(
            "UPDATE runs SET undo = ?2 WHERE seq = ?1", (run.claim.run_seq, undo)
        )
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
        claim, key = step.claim, step.values[2]
        if opening is None:
            waits.closed(self._connection, claim.run_seq, key)
        else:
            waits.opened(self._connection, claim.run_seq, key, opening)
        appended = self._append_caused(caused, counters)
        if again is not None and any(one.duplicate or one.conflict for one in appended):
            self._connection.execute(
                "DELETE FROM steps WHERE run_seq = ? AND key = ?", (claim.run_seq, key)
            )
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
        held = self._connection.execute(
            "SELECT 1 FROM runs WHERE seq = ? AND token = ? AND state = 'running'",
            (claim.run_seq, claim.token),
        ).get
        if held is None:
            raise self._lost(claim)

    def _lost(self, claim: Claim) -> ClaimLost:
        """Return the error for a write under a stale token."""
        flow = self._current_flow(claim)
        return ClaimLost(
            f"run {claim.run_id}{'' if flow is None else f' of {flow}'} is no longer held by claim"
            f" {claim.token}: it was cancelled or claimed anew"
        )


def _json(values: Iterable[int | str | None]) -> str:
    return orjson.dumps(list(values)).decode()

"""Applies jobs that arrived together: events, steps, outcomes, claims, and rarer calls.

Each kind is written with few statements. Each statement about a run compares the run's token
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import ClaimLost
from turnout.service.domain.run import FINISHED, Outcome, Run, RunState, StateWrite, Undo
from turnout.service.journal.records import (
    REGISTERED,
    Appended,
    Claim,
    ClaimedRun,
    Opening,
    Spent,
    Taking,
)

from . import artefacts, budgets, flow_state, items, operations, outcomes, run_keys, steps, waits
from .append import Intake
from .claims import ClaimJob, Claims
from .counters import RunCounters
from .events import AppendJob
from .outcomes import OutcomeJob, attempt_row
from .resume_cache import ResumeCache
from .statements import load
from .steps import StepJob
from .values import dump, dump_list, instant
from .writer import CallJob, Job, Split

_SQL = load("record")
_HOLDS, _FLOW, _SHOW_PROGRESS = _SQL["holds"], _SQL["flow"], _SQL["show_progress"]
_RETURNED, _UNDO, _SUPERSEDE = _SQL["returned"], _SQL["undo"], _SQL["supersede"]
_DELETE_STEP = _SQL["delete_step"]
_AWAIT_INSTEAD, _IS_FINISHED = (
    load("conditions")["await_instead"], load("conditions")["is_finished"],
)  # fmt: skip


class _Group:
    """Jobs written kind by kind: appends, steps, outcomes, claims.

    It takes jobs as long as that order keeps the one in which jobs about a run were submitted.
    """

    __slots__ = (
        "_claimed", "_ended", "_ends_children", "_stepped", "appends", "claims", "outcomes", "steps"
    )  # fmt: skip

    def __init__(self) -> None:
        self.appends: list[AppendJob] = []
        self.steps: list[StepJob] = []
        self.outcomes: list[OutcomeJob] = []
        self.claims: list[ClaimJob] = []
        self._stepped: set[tuple[int, str]] = set()
        self._ended: set[int] = set()
        self._claimed: set[int] = set()
        self._ends_children = False

    def takes(self, job: Job) -> bool:
        """Add a job to the group, unless it would take effect out of its turn."""
        if isinstance(job, AppendJob):
            if job.is_decided and (self.steps or self.outcomes or self.claims):
                return False  # what it decides depends on the states of other runs
            self.appends.append(job)
            return True
        if isinstance(job, StepJob):
            seq = job.claim.run_seq
            step = (seq, job.record.key)
            if step in self._stepped or seq in self._ended or seq in self._claimed:
                return False
            self._stepped.add(step)
            self.steps.append(job)
            return True
        if isinstance(job, OutcomeJob):
            seq = job.row.run_seq
            if seq in self._ended or seq in self._claimed:
                return False
            ends_children = job.ends_children
            if (self._ends_children and job.run.may_be_awaited) or (ends_children and self.claims):
                return False  # it may be one of the children, or one of them is claimed
            self._ends_children = self._ends_children or ends_children
            self._ended.add(seq)
            self.outcomes.append(job)
            return True
        if isinstance(job, ClaimJob) and self._claimed.isdisjoint(job.seqs):
            self._claimed.update(job.seqs)
            self.claims.append(job)
            return True
        return False


class Batch:
    """Applies jobs to the journal, inside the transaction the writer opened.

    Jobs about different runs commute, because nobody knows a run before its append has committed.
    Jobs about one run take effect in the order they were submitted.
    """

    def __init__(
        self, connection: apsw.Connection, intake: Intake, resume_cache: ResumeCache
    ) -> None:
        self._connection = connection
        self._intake = intake
        self._claims = Claims(connection, resume_cache)
        self._isolated: set[int] = set()  # runs that have not shown progress since their claim
        self._write_kind: dict[type[Job], Callable[[Sequence[Any], RunCounters], None]] = {
            AppendJob: intake.append,
            StepJob: self._record_steps,
            OutcomeJob: self._record,
            ClaimJob: self._claim,
        }

    def __call__(self, jobs: Sequence[Job], counters: RunCounters) -> None:
        """Write `jobs`; see `Apply` in the writer."""
        if len(jobs) == 1:
            write = self._write_kind.get(type(jobs[0]), self._call)
            write(jobs, counters)
            return
        group = _Group()
        for job in jobs:
            if not group.takes(job):
                self._write(group, counters)
                group = _Group()
                if not group.takes(job):
                    assert isinstance(job, CallJob)
                    self._call((job,), counters)
        self._write(group, counters)

    def _call(self, jobs: Sequence[CallJob], counters: RunCounters) -> None:
        for job in jobs:
            job.result = job.function(self._connection, counters)

    def _write(self, group: _Group, counters: RunCounters) -> None:
        if group.appends:
            self._intake.append(group.appends, counters)
        if group.steps:
            self._record_steps(group.steps, counters)
        if group.outcomes:
            self._record(group.outcomes, counters)
        if group.claims:
            self._claim(group.claims, counters)

    def _claim(self, jobs: Sequence[ClaimJob], counters: RunCounters) -> None:
        claimed = self._claims.claim(jobs, counters)
        self._isolated.update(run.claim.run_seq for run in claimed if run.isolated)

    def _record_steps(self, jobs: Sequence[StepJob], _counters: RunCounters) -> None:
        values: list[Any] = []
        for job in jobs:
            values += job.row
        if steps.RECORD.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            # Nothing changed: either the claim is lost, or the step is already a fact.
            self._check_claim(jobs[0].claim)
        for job in jobs if self._isolated else ():
            # The run makes progress, so its count of consecutive crashes starts again.
            seq = job.claim.run_seq
            if seq in self._isolated and job.record.task != REGISTERED:
                self._connection.execute(_SHOW_PROGRESS, (seq,))

    def _record(self, jobs: Sequence[OutcomeJob], counters: RunCounters) -> None:
        values: list[Any] = []
        attempts: list[Any] = []
        for job in jobs:
            row, run = job.row, job.run
            values += row
            attempts += attempt_row(job) or ()
            counters.move("running", row.state)
            if row.finished_at is not None and row.dead != run.dead:
                self._count_dead_letter(job, counters)
        if outcomes.RECORD.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            raise self._lost(jobs[0].run.claim)
        if attempts:
            outcomes.INSERT_ATTEMPTS.run(self._connection, attempts)
        if self._isolated:
            self._isolated.difference_update(job.row.run_seq for job in jobs)
        self._follow(jobs, counters)

    def _count_dead_letter(self, job: OutcomeJob, counters: RunCounters) -> None:
        """Count a run that has become a dead letter, or is none any more."""
        flow, run_id = self._flow_of(job.run), job.run.claim.run_id
        counters.add_dead_letters(flow, 1 if job.row.dead else -1)
        if job.row.dead:
            self._intake.failures.failed(flow, job.outcome.error, run_id, job.at)

    def _follow(self, jobs: Sequence[OutcomeJob], counters: RunCounters) -> None:
        """Do what follows from outcomes: free keys, wake parents, end children and waits."""
        with_keys: list[int] = []
        with_waits: list[int] = []
        for job in jobs:
            run, outcome = job.run, job.outcome
            seq = run.claim.run_seq
            if outcome.state in FINISHED:
                if run.keys:
                    with_keys.append(seq)
                if job.ends_children:
                    because = f"run {run.claim.run_id}, its parent, has ended"
                    job.result = operations.cancel_children(
                        self._connection, counters, seq, instant(job.at), reason=because
                    )
                    with_waits.append(seq)
                if run.may_be_awaited:
                    waits.run_ended(self._connection, run.claim.run_id, job.at)
            elif outcome.waits:
                waits.suspended(self._connection, seq, outcome.waits, job.at)
            has_more = outcome.error or outcome.undo or outcome.state_write or outcome.failed_items
            if has_more or outcome.returned is not None:
                self._record_rest(job, counters)
        if with_keys:
            run_keys.remove(self._connection, with_keys)
        if with_waits:
            waits.delete(self._connection, with_waits)

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
        if outcome.left is not None or outcome.failed_items:
            flow = self._flow_of(job.run)
            items.record(self._connection, counters, self._intake, job.run, flow, outcome, job.at)
        if outcome.state_write is not None:
            self._keep(job.run, outcome, outcome.state_write, job.at)

    def _keep(self, run: ClaimedRun, outcome: Outcome, write: StateWrite, at: int) -> None:
        """Keep the state of a flow with the success of a run; one that has lost it starts over."""
        if outcome.state is RunState.SUCCEEDED:
            flow_state.write(self._connection, self._flow_of(run), run.claim.run_id, write, at)
        else:
            flow_state.start_over(self._connection, run.claim.run_seq)

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
        self._record_steps([step], counters)
        claim, key = step.claim, step.record.key
        if opening is None:
            waits.closed(self._connection, claim.run_seq, key)
        else:
            waits.opened(self._connection, claim.run_seq, key, opening)
        appended = self._append_caused(caused, counters)
        if opening is not None and caused is not None:
            self._await_first(step, appended, caused.at)
        if again is not None and any(one.duplicate or one.conflict for one in appended):
            self._connection.execute(_DELETE_STEP, (claim.run_seq, key))
            if not any(one.conflict for one in appended):
                self._record_steps([again], counters)
        return appended

    def record_artefacts(self, step: StepJob, rows: list[Any], counters: RunCounters) -> None:
        """Write a step with the rows of what it has attached."""
        self._record_steps([step], counters)
        artefacts.INSERT.run(self._connection, rows)

    def take(self, step: StepJob, taking: Taking, counters: RunCounters, at: int) -> Spent | None:
        """Write a step and take from a budget, or return why it is spent."""
        spent = budgets.spent(self._connection, taking, at)
        if spent is None:
            self._record_steps([step], counters)
            claim = step.claim
            budgets.take(self._connection, taking, claim.run_id, step.record.key, at)
        return spent

    def record_waits(
        self,
        claim: Claim,
        steps: Sequence[StepJob],
        openings: Mapping[str, Opening],
        closes: Iterable[str],
        counters: RunCounters,
        now: datetime,
    ) -> list[Run]:
        """Write steps with the waits they open and close; returns the cancelled children."""
        if not steps:
            self._check_claim(claim)
        for step in steps:
            self._record_steps([step], counters)
        for key, opening in openings.items():
            waits.opened(self._connection, claim.run_seq, key, opening)
        children = waits.closed_all(self._connection, claim.run_seq, closes) if closes else ()
        because = f"run {claim.run_id} went on with something that came first"
        return operations.cancel_all(self._connection, counters, children, now, reason=because)

    def _await_first(self, step: StepJob, appended: Sequence[Appended], at: int) -> None:
        """Let a step whose child is not unique wait for the first run, unless that waits for it."""
        seq, key = step.claim.run_seq, step.record.key
        for made in appended[0].refused.values():
            first = str(made.facts["other"])
            if made.reason is not Reason.UNIQUE or self._intake.conditions.awaits(first, seq):
                continue
            note = dump({"run": first, "shared": True}).encode()
            self._connection.execute(_AWAIT_INSTEAD, (seq, key, first, note))
            waits.shared(self._connection, seq, key, first)
            if self._connection.execute(_IS_FINISHED, (first,)).get:
                waits.run_ended(self._connection, first, at)

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

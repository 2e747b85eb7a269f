"""Applies jobs that arrived together: events, steps, outcomes, claims, and rarer calls.

Each kind is written with few statements, in an order that keeps the promises of `jobs.py`. Each
statement about a run compares the run's token itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw
import orjson

from turnout.service.domain.errors import ClaimLost
from turnout.service.domain.event import CALLED
from turnout.service.domain.run import FINISHED, RunState, Undo
from turnout.service.journal.records import REGISTERED, Appended, ChildEnd, Claim, Opening

from . import waits
from .append import Intake
from .bulk import BulkStatement
from .counters import RunCounters
from .disk_space import DiskSpace
from .jobs import AppendJob, CallJob, ClaimJob, Groups, OutcomeJob, StepJob
from .resume_cache import ResumeCache
from .rows import (
    STEP_COLUMNS,
    error_from,
    event_from,
    instant,
    is_isolated,
    micros,
    pack_error,
    step_from,
    storable,
)
from .writer import Job, Split

_INLINE_BODY_BYTES = 65_536
_INLINE_RESULT_BYTES = 4096  # one query may return thousands of results

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
_CLAIMABLE = "('queued', 'scheduled', 'retrying', 'waiting')"
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
        self._resume_cache = resume_cache
        self._connection = connection
        self._disk_space = disk_space
        self._intake = intake

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
            self._claim(groups.claims, counters)

    def _record_steps(self, jobs: Sequence[StepJob]) -> None:
        values = [value for job in jobs for value in job.values]
        if _STEPS.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            # Nothing changed: either the claim is lost, or the step is already a fact.
            self._check_claim(jobs[0].claim)
        for job in jobs:
            # The run makes progress, so its count of consecutive crashes starts again.
            if job.claim.isolated and job.values[3] != REGISTERED:
                self._connection.execute(
                    "UPDATE runs SET blames = 0 WHERE seq = ?", (job.claim.run_seq,)
                )

    def _record(self, jobs: Sequence[OutcomeJob], counters: RunCounters) -> None:
        values: list[Any] = []
        attempts: list[Any] = []
        for job in jobs:
            claim, outcome = job.claim, job.outcome
            state = outcome.state.value
            finished = state in _FINISHED
            was_dead = claim.dead and not finished
            due = micros(outcome.due_at) if outcome.due_at else None
            error = pack_error(outcome.error) if outcome.error else None
            reason = storable(outcome.reason) if outcome.reason else None
            # A dead letter whose undo an operator has finished is no dead letter any more.
            dead = state == "failed" and not (claim.dead and outcome.undo == "done")
            values.extend(
                (
                    claim.run_seq, claim.token, state, int(outcome.counts),
                    job.at if state == "queued" else due, job.started_at,
                    job.at if finished else None, outcome.result, error, reason,
                    int(dead or was_dead),
                )
            )  # fmt: skip
            if error or outcome.log or state in ("failed", "retrying"):
                attempts.extend(
                    (
                        claim.run_seq, claim.attempt, job.started_at, job.at, state, error,
                        outcome.log,
                    )
                )  # fmt: skip
            counters.move("running", state)
            if dead != (claim.dead and finished):
                counters.add_dead_letters(self._flow_of(claim), 1 if dead else -1)
        if _OUTCOMES.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            raise lost(jobs[0].claim)
        _ATTEMPTS.run(self._connection, attempts)
        self._update_waits(jobs)
        for job in jobs:
            if job.outcome.returned is not None:
                self._connection.execute(
                    "UPDATE runs SET returned = ? WHERE seq = ?",
                    (job.outcome.returned, job.claim.run_seq),
                )
            if job.outcome.undo is not None:
                self._note_undo(job.claim, job.outcome.undo, counters)
            if job.outcome.error and (job.outcome.error.step or job.outcome.again):
                self._connection.execute(
                    "UPDATE steps SET superseded = 1 WHERE run_seq = ? AND state = 'failed'"
                    " AND key IN (SELECT value FROM json_each(?))",
                    (job.claim.run_seq, _json((job.outcome.error.step, *job.outcome.again))),
                )

    def _flow_of(self, claim: Claim) -> str:
        """Return the flow of a run; it may have been renamed since the claim."""
        found: str | None = self._connection.execute(
            "SELECT flow FROM runs WHERE seq = ?", (claim.run_seq,)
        ).get
        return found or claim.flow

    def _note_undo(self, claim: Claim, undo: Undo, counters: RunCounters) -> None:
        """Record how the undo of an ended run went."""
        self._connection.execute("UPDATE runs SET undo = ?2 WHERE seq = ?1", (claim.run_seq, undo))
        if (undo == "failed") != claim.undo_failed:
            counters.add_not_undone(self._flow_of(claim), -1 if claim.undo_failed else 1)

    def _update_waits(self, jobs: Sequence[OutcomeJob]) -> None:
        """Wake parents of ended children, delete waits of ended runs, suspend the others."""
        gone = []
        for job in jobs:
            claim, outcome = job.claim, job.outcome
            if outcome.state in FINISHED:
                if claim.waited:
                    gone.append(claim.run_seq)
                if claim.event.type == CALLED:
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
            raise lost(claim)

    def _claim(self, jobs: Sequence[ClaimJob], counters: RunCounters) -> None:
        """Make runs running, and read what they need to start in the same transaction."""
        at = jobs[0].at
        claims = self._claim_untouched(jobs, at, counters)
        unread = [seq for job in jobs for seq in job.seqs if seq not in claims]
        if unread:
            claims |= self._claim_read(unread, at, counters)
        for job in jobs:
            job.result = [claims[seq] for seq in job.seqs if seq in claims]

    def _claim_untouched(
        self, jobs: Sequence[ClaimJob], at: int, counters: RunCounters
    ) -> dict[int, Claim]:
        """Claim runs that were never claimed and whose event is in memory."""
        claims = {seq: claim for job in jobs for seq, claim in job.untouched.items()}
        if not claims:
            return claims
        seqs = _json(claims)
        self._connection.execute(
            "UPDATE runs SET state = 'running', token = 1, started_at = ?2"
            " WHERE seq IN (SELECT value FROM json_each(?1)) AND +state = 'queued' AND token = 0",
            (seqs, at),
        )
        if self._connection.changes() != len(claims):  # some were cancelled, or retried since
            found = self._connection.execute(
                "SELECT json_group_array(seq) FROM runs WHERE token = 1 AND +state = 'running'"
                " AND seq IN (SELECT value FROM json_each(?))",
                (seqs,),
            ).get
            claims = {seq: claims[seq] for seq in orjson.loads(found)}
        counters.move(RunState.QUEUED.value, RunState.RUNNING.value, len(claims))
        return claims

    def _claim_read(self, seqs: Sequence[int], at: int, counters: RunCounters) -> dict[int, Claim]:
        execute = self._connection.execute
        rows = orjson.loads(execute(_CLAIM_ROWS, (_json(seqs),)).get)
        execute(
            "UPDATE runs SET state = 'running', token = token + 1, started_at = ?2"
            " WHERE seq IN (SELECT value FROM json_each(?1))",
            (_json(row[0] for row in rows), at),
        )
        claims = {}
        for row in rows:
            counters.move(row[3], RunState.RUNNING.value)
            claims[row[0]] = self._claim_from(row)
        resumed = {row[0]: (row[4], row[3]) for row in rows if row[4] > 0}
        if resumed:
            self._recall({seq: claims[seq] for seq in resumed}, resumed)
        return claims

    def _claim_from(self, row: Sequence[Any]) -> Claim:
        (seq, run_id, flow, _, token, attempts, crashes, consecutive_crashes, replay, order_key,
         limit_key, due_at, code_version, dead, undo_failed, *event_row, body) = row  # fmt: skip
        content = bytes.fromhex(body) if body is not None else self._body(event_row[0])
        event_row.insert(7, content)
        return Claim(
            run_seq=seq,
            run_id=run_id,
            flow=flow,
            event_seq=event_row[0],
            event=event_from(event_row),
            token=token + 1,
            attempt=attempts + 1,
            crashes=crashes,
            replay=replay,
            order_key=order_key,
            limit_key=limit_key,
            due_at=instant(due_at),
            isolated=is_isolated(consecutive_crashes),
            code_version=code_version,
            dead=bool(dead),
            undo_failed=bool(undo_failed),
        )

    def _body(self, event_seq: int) -> bytes:
        body: bytes = self._connection.execute(
            "SELECT body FROM events WHERE seq = ?", (event_seq,)
        ).get
        return body

    def _recall(self, claims: dict[int, Claim], before: Mapping[int, tuple[int, str]]) -> None:
        """Add the recorded steps to the claims of resumed runs, superseded ones excepted.

        `before` holds the token and the state each run had before this claim.
        """
        unread = []
        for seq, claim in claims.items():
            cached = self._resume_cache.take(seq, *before[seq])
            if cached is None:
                unread.append(seq)
                continue
            claim.recorded, claim.progress = cached.recorded, cached.progress
            claim.recorded_bytes, claim.waited = cached.recorded_bytes, True
            for key in cached.changed:
                claim.recorded.pop(key, None)
            changed = orjson.dumps(list(cached.changed)).decode()
            self._read_steps(claims, _STEPS_OF_RUN, (seq, changed))
        if unread:
            self._read_steps(claims, _STEPS_OF_RUNS, (_json(unread),))
        waiting = [seq for seq, claim in claims.items() if claim.waited]
        if waiting:
            self._recall_waits(claims, _json(waiting))

    def _recall_waits(self, claims: Mapping[int, Claim], seqs: str) -> None:
        execute = self._connection.execute
        for seq, keys in orjson.loads(execute(_UNWOKEN, (seqs,)).get):
            claims[seq].unwoken = frozenset(keys)
        for seq, key, run_id, state, *encoded, error in orjson.loads(execute(_ENDED, (seqs,)).get):
            result, returned = (None if data is None else bytes.fromhex(data) for data in encoded)
            claims[seq].ended[key] = ChildEnd(
                run_id, RunState(state), result, error_from(error), returned
            )

    def _read_steps(self, claims: dict[int, Claim], query: str, values: tuple[Any, ...]) -> None:
        for run_seq, seq, large, *row in orjson.loads(self._connection.execute(query, values).get):
            result = row[_RESULT]
            if large:
                row[_RESULT] = self._result(seq)
            elif result is not None:
                row[_RESULT] = bytes.fromhex(result)
            step, claim = step_from(row), claims[run_seq]
            claim.recorded[step.key] = step
            claim.recorded_bytes += len(step.result or b"")
            if step.state == "waiting" and step.task != "sleep":
                claim.waited = True

    def _result(self, step_seq: int) -> bytes:
        result: bytes = self._connection.execute(
            "SELECT result FROM steps WHERE seq = ?", (step_seq,)
        ).get
        return result


# All rows in one step of the database, see `read_all`; large results have their own statements.
_RESULT = STEP_COLUMNS.split(", ").index("result")
_STEP_ROWS = f"""
SELECT json_group_array(json_array(run_seq, seq, large,
    {STEP_COLUMNS.replace(" result,", " iif(large OR result IS NULL, NULL, hex(result)),")}))
FROM (SELECT *, coalesce(length(result), 0) > {_INLINE_RESULT_BYTES} AS large FROM steps WHERE
"""
_STEPS_OF_RUNS = f"""{_STEP_ROWS}
    run_seq IN (SELECT value FROM json_each(?)) AND superseded = 0 ORDER BY seq)"""
_STEPS_OF_RUN = f"""{_STEP_ROWS}
    run_seq = ? AND key IN (SELECT value FROM json_each(?)) AND superseded = 0 ORDER BY seq)"""
_UNWOKEN = """
SELECT json_group_array(json_array(run_seq, json(keys))) FROM
    (SELECT run_seq, json_group_array(key) AS keys FROM waits
    WHERE run_seq IN (SELECT value FROM json_each(?)) AND woken IS NULL GROUP BY run_seq)
"""
_ENDED = f"""
SELECT json_group_array(json_array(w.run_seq, w.key, r.id, r.state,
    iif(r.result IS NULL, NULL, hex(r.result)),
    iif(r.returned IS NULL, NULL, hex(r.returned)), r.error))
FROM waits AS w CROSS JOIN runs AS r ON r.id = substr(w.topic, 5)
WHERE w.run_seq IN (SELECT value FROM json_each(?)) AND w.topic LIKE 'run:%'
    AND w.woken IS NOT NULL AND r.finished_at IS NOT NULL
    AND coalesce(length(r.result), 0) + coalesce(length(r.returned), 0) <= {_INLINE_RESULT_BYTES}
"""
# Large bodies have their own statement, so that one result stays small. The plus signs keep the
# planner from walking the whole backlog by state instead of looking up the few runs asked for.
_CLAIM_ROWS = f"""
SELECT json_group_array(json_array(
    r.seq, r.id, r.flow, r.state, r.token, r.attempts, r.crashes, r.blames, r.replay, r.order_key,
    r.limit_key, coalesce(r.due_at, r.queued_at), r.code_version, r.dead,
    r.dead = 1 AND r.undo IS 'failed', e.seq, e.id, e.source, e.type, e.tenant, e.trigger, e.time,
    e.details,
    CASE WHEN length(e.body) <= {_INLINE_BODY_BYTES} THEN hex(e.body) END))
FROM runs AS r JOIN events AS e ON e.seq = r.event_seq
WHERE r.seq IN (SELECT value FROM json_each(?)) AND +r.state IN {_CLAIMABLE}
"""


def _json(values: Iterable[int | str | None]) -> str:
    return orjson.dumps(list(values)).decode()


def lost(claim: Claim) -> ClaimLost:
    """Return the error for a write under a stale token."""
    return ClaimLost(
        f"run {claim.run_id} of {claim.flow} is no longer held by claim {claim.token}:"
        " it was cancelled or claimed anew"
    )

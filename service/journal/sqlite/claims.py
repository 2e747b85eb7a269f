"""Claims runs: makes them running, and reads what they need to start in the same transaction.

A run that was never claimed and whose event is in memory needs no read. A resumed run gets its
recorded steps, from the resume cache or from the journal, and what its waits have come to. Not
here: which runs are claimed (the dispatcher decides).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw
import orjson

from turnout.service.domain.run import RunState
from turnout.service.journal.records import ChildEnd, Claim, ClaimedRun, StepRecord

from .counters import RunCounters
from .jobs import ClaimJob
from .resume_cache import ResumeCache
from .rows import STEP_COLUMNS, error_from, event_from, instant, is_isolated, step_from

_INLINE_BODY_BYTES = 65_536
_INLINE_RESULT_BYTES = 4096  # one query may return thousands of results
_CLAIMABLE = "('queued', 'scheduled', 'retrying', 'waiting')"


@dataclass(slots=True)
class _Past:
    """What the earlier attempts of a run have left."""

    recorded: dict[str, StepRecord] = field(default_factory=dict)
    recorded_bytes: int = 0
    has_waits: bool = False
    unwoken: frozenset[str] = frozenset()
    ended: dict[str, ChildEnd] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)


class Claims:
    """Claims runs inside the transaction the writer opened."""

    def __init__(self, connection: apsw.Connection, resume_cache: ResumeCache) -> None:
        self._connection = connection
        self._resume_cache = resume_cache

    def claim(self, jobs: Sequence[ClaimJob], counters: RunCounters) -> Iterable[ClaimedRun]:
        """Set the result of each job; returns all runs that are claimed now."""
        at = jobs[0].at
        claimed = self._claim_untouched(jobs, at, counters)
        unread = [seq for job in jobs for seq in job.seqs if seq not in claimed]
        if unread:
            claimed |= self._claim_read(unread, at, counters)
        for job in jobs:
            job.result = [claimed[seq] for seq in job.seqs if seq in claimed]
        return claimed.values()

    def _claim_untouched(
        self, jobs: Sequence[ClaimJob], at: int, counters: RunCounters
    ) -> dict[int, ClaimedRun]:
        """Claim runs that were never claimed and whose event is in memory."""
        runs = {seq: run for job in jobs for seq, run in job.untouched.items()}
        if not runs:
            return runs
        seqs = _json(runs)
        self._connection.execute(
            "UPDATE runs SET state = 'running', token = 1, started_at = ?2"
            " WHERE seq IN (SELECT value FROM json_each(?1)) AND +state = 'queued' AND token = 0",
            (seqs, at),
        )
        if self._connection.changes() != len(runs):  # some were cancelled, or retried since
            found = self._connection.execute(
                "SELECT json_group_array(seq) FROM runs WHERE token = 1 AND +state = 'running'"
                " AND seq IN (SELECT value FROM json_each(?))",
                (seqs,),
            ).get
            runs = {seq: runs[seq] for seq in orjson.loads(found)}
        counters.move(RunState.QUEUED.value, RunState.RUNNING.value, len(runs))
        return runs

    def _claim_read(
        self, seqs: Sequence[int], at: int, counters: RunCounters
    ) -> dict[int, ClaimedRun]:
        execute = self._connection.execute
        rows = orjson.loads(execute(_CLAIM_ROWS, (_json(seqs),)).get)
        execute(
            "UPDATE runs SET state = 'running', token = token + 1, started_at = ?2"
            " WHERE seq IN (SELECT value FROM json_each(?1))",
            (_json(row[0] for row in rows), at),
        )
        for row in rows:
            counters.move(row[3], RunState.RUNNING.value)
        resumed = {row[0]: (row[4], row[3]) for row in rows if row[4] > 0}
        past = self._past(resumed) if resumed else {}
        return {row[0]: self._claimed(row, past.get(row[0])) for row in rows}

    def _claimed(self, row: Sequence[Any], past: _Past | None) -> ClaimedRun:
        (seq, run_id, flow, _, token, attempts, crashes, consecutive_crashes, replay, order_key,
         limit_key, due_at, code_version, dead, undo_failed, *event_row, body) = row  # fmt: skip
        content = bytes.fromhex(body) if body is not None else self._body(event_row[0])
        event_row.insert(7, content)
        run = ClaimedRun(
            claim=Claim(seq, run_id, token + 1),
            flow=flow,
            event_seq=event_row[0],
            event=event_from(event_row),
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
        if past is None:
            return run
        return run._replace(
            recorded=past.recorded,
            recorded_bytes=past.recorded_bytes,
            has_waits=past.has_waits,
            unwoken=past.unwoken,
            ended=past.ended,
            progress=past.progress,
        )

    def _body(self, event_seq: int) -> bytes:
        body: bytes = self._connection.execute(
            "SELECT body FROM events WHERE seq = ?", (event_seq,)
        ).get
        return body

    # ---------------------------------------------------------------- what earlier attempts left

    def _past(self, before: Mapping[int, tuple[int, str]]) -> dict[int, _Past]:
        """Return what earlier attempts of runs left, superseded steps excepted.

        `before` holds the token and the state each run had before this claim.
        """
        past = {seq: _Past() for seq in before}
        unread = []
        for seq, before_claim in before.items():
            cached = self._resume_cache.take(seq, *before_claim)
            if cached is None:
                unread.append(seq)
                continue
            for key in cached.changed:
                cached.recorded.pop(key, None)
            past[seq] = _Past(
                cached.recorded, cached.recorded_bytes, has_waits=True, progress=cached.progress
            )
            self._read_steps(past, _STEPS_OF_RUN, (seq, _json(cached.changed)))
        if unread:
            self._read_steps(past, _STEPS_OF_RUNS, (_json(unread),))
        waiting = [seq for seq, each in past.items() if each.has_waits]
        if waiting:
            self._read_waits(past, _json(waiting))
        return past

    def _read_waits(self, past: Mapping[int, _Past], seqs: str) -> None:
        execute = self._connection.execute
        for seq, keys in orjson.loads(execute(_UNWOKEN, (seqs,)).get):
            past[seq].unwoken = frozenset(keys)
        for seq, key, run_id, state, *encoded, error in orjson.loads(execute(_ENDED, (seqs,)).get):
            result, returned = (None if data is None else bytes.fromhex(data) for data in encoded)
            past[seq].ended[key] = ChildEnd(
                run_id, RunState(state), result, error_from(error), returned
            )

    def _read_steps(self, past: Mapping[int, _Past], query: str, values: tuple[Any, ...]) -> None:
        for run_seq, seq, large, *row in orjson.loads(self._connection.execute(query, values).get):
            result = row[_RESULT]
            if large:
                row[_RESULT] = self._result(seq)
            elif result is not None:
                row[_RESULT] = bytes.fromhex(result)
            step, of_run = step_from(row), past[run_seq]
            of_run.recorded[step.key] = step
            of_run.recorded_bytes += len(step.result or b"")
            if step.state == "waiting" and step.task != "sleep":
                of_run.has_waits = True

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


def _json(values: Iterable[int | str]) -> str:
    return orjson.dumps(list(values)).decode()

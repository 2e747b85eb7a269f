"""Writes jobs that arrived together: events with runs, steps, outcomes, claims, and anything else.

Guarantees that jobs about one run take effect in the order they were submitted. Jobs about
different runs commute (nobody knows a run before its append committed), so each kind is written
with few statements. Every write about a run is guarded by its token in the statement itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import apsw
import orjson

from turnout.service.errors import ClaimLost, Overloaded
from turnout.service.run import Outcome, RunState

from .contract import Appended, Claim, Entry, NewRun
from .rows import event_from, instant, is_suspect, micros, pack_error, step_from
from .rowset import Rowset
from .tally import Tally
from .writer import Job, Split

_DECISIONS_KEPT = 20  # per event: a sender that repeats for ever must not fill the disk
_FREE_CHECK_SECONDS = 0.25
_INLINE_BODY_BYTES = 65_536

_EVENTS = Rowset(
    "INSERT INTO events (seq, id, source, type, tenant, trigger, time, accepted_at, body, details,"
    " decisions, unmatched, effect)",
    13,
)
_RUNS = Rowset(
    "INSERT INTO runs (seq, id, event_seq, flow, state, token, order_key, limit_key, due_at,"
    " queued_at, started_at, finished_at, error, dead, replay, code_version)",
    16,
)
_DEDUPE = Rowset("INSERT INTO dedupe (event_seq, key, body, accepted_at)", 4)
_POSITIONS = Rowset(
    "INSERT INTO positions (trigger, partition, value)",
    3,
    "ON CONFLICT (trigger, partition) DO UPDATE SET value = excluded.value",
)
_STEPS = Rowset(
    "INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding,"
    " result, error, superseded) SELECT v.column1, v.column3, v.column4, v.column5, v.column6,"
    " v.column7, v.column8, v.column9, v.column10, v.column11, v.column12 FROM",
    12,
    # CROSS JOIN fixes the order, so that rows are inserted as they were recorded. A fact is never
    # overwritten, only a try number or a superseded error is.
    "AS v CROSS JOIN runs WHERE runs.seq = v.column1 AND runs.token = v.column2"
    " AND runs.state = 'running'"
    " ON CONFLICT (run_seq, key) DO UPDATE SET task = excluded.task, state = excluded.state,"
    " tries = excluded.tries, started_at = excluded.started_at,"
    " finished_at = excluded.finished_at, encoding = excluded.encoding,"
    " result = excluded.result, error = excluded.error, superseded = excluded.superseded"
    " WHERE steps.state = 'retrying' OR steps.superseded = 1",
)
_OUTCOMES = Rowset(
    "UPDATE runs SET state = v.column3, attempts = attempts + v.column4,"
    " due_at = coalesce(v.column5, due_at), started_at = v.column6, finished_at = v.column7,"
    " result = v.column8, error = v.column9, reason = v.column10, dead = v.column11 FROM",
    11,
    "AS v WHERE runs.seq = v.column1 AND runs.token = v.column2 AND runs.state = 'running'",
)
_ATTEMPTS = Rowset(
    "INSERT INTO attempts (run_seq, attempt, started_at, finished_at, state, error, log)", 7
)
_CLAIMABLE = "('queued', 'scheduled', 'retrying', 'waiting')"
_FINISHED = frozenset({"succeeded", "failed", "cancelled", "skipped"})


class AppendJob(Job):
    """Write entries and positions; `events` are the entries' columns behind `seq`."""

    __slots__ = ("at", "entries", "events", "identities", "positions", "trigger", "verdicts")

    def __init__(
        self,
        entries: Sequence[Entry],
        events: Sequence[tuple[Any, ...]],
        identities: Sequence[tuple[bytes, bytes] | None],
        verdicts: Callable[[Entry, bool], str | None],
        *,
        trigger: str,
        positions: Sequence[tuple[str, str | None]],
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
    """Record a step: `values` is a row of the steps statement."""

    __slots__ = ("claim", "values")

    def __init__(self, claim: Claim, values: tuple[Any, ...]) -> None:
        super().__init__()
        self.claim = claim
        self.values = values


class OutcomeJob(Job):
    """Record an attempt's outcome."""

    __slots__ = ("at", "claim", "outcome", "started_at")

    def __init__(self, claim: Claim, outcome: Outcome, started_at: int, at: int) -> None:
        super().__init__()
        self.claim = claim
        self.outcome = outcome
        self.started_at = started_at
        self.at = at


class ClaimJob(Job):
    """Claim runs."""

    __slots__ = ("at", "seqs")

    def __init__(self, seqs: Sequence[int], at: int) -> None:
        super().__init__(rows=len(seqs))
        self.seqs = seqs
        self.at = at


class CallJob(Job):
    """Anything rarer: a function of the open connection, run alone in its place."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[apsw.Connection, Tally], Any]) -> None:
        super().__init__()
        self.function = function


class Batch:
    """Applies jobs to the journal, inside the transaction the writer opened."""

    def __init__(
        self,
        connection: apsw.Connection,
        folder: Path,
        *,
        max_unfinished_runs: int,
        min_free_bytes: int,
    ) -> None:
        self._connection = connection
        self._folder = folder
        self._max_unfinished = max_unfinished_runs
        self._min_free = min_free_bytes
        self._free_bytes = 0
        self._free_checked = float("-inf")
        self.last_event, self.last_run = _last_seqs(connection)
        self.reusable_bytes = 0

    def __call__(self, jobs: Sequence[Job], tally: Tally) -> None:
        """Write `jobs`; see `Apply` in the writer."""
        groups = _Groups()
        for job in jobs:
            if not groups.accepts(job):
                self._write(groups, tally)
                groups = _Groups()
            if isinstance(job, CallJob):
                self._write(groups, tally)
                groups = _Groups()
                job.result = job.function(self._connection, tally)
            else:
                groups.add(job)
        self._write(groups, tally)

    def _write(self, groups: _Groups, tally: Tally) -> None:
        if groups.appends:
            self._append(groups.appends, tally)
        if groups.steps:
            self._record_steps(groups.steps)
        if groups.outcomes:
            self._record(groups.outcomes, tally)
        if groups.claims:
            self._claim(groups.claims, tally)

    # ---------------------------------------------------------------- events

    def _append(self, jobs: Sequence[AppendJob], tally: Tally) -> None:
        """Write what the jobs bring in three or four statements, whatever their number."""
        connection = self._connection
        known = self._known(jobs)
        events: list[Any] = []
        runs: list[Any] = []
        dedupe: list[Any] = []
        for job in jobs:
            job.error = self._refusal(job, tally)
            if job.error is not None:
                continue
            job.result = results = []
            for entry, columns, identity in zip(
                job.entries, job.events, job.identities, strict=True
            ):
                if identity is not None:
                    first = known.get(identity[0])
                    if first is not None:
                        results.append(self._duplicate(job, entry, identity[1], first))
                        continue
                self.last_event += 1
                seq = self.last_event
                events.append(seq)
                events.extend(columns)
                born = self.birth(runs, entry.runs, seq, job.at, tally)
                if identity is not None:
                    dedupe.extend((seq, *identity, job.at))
                    known[identity[0]] = (seq, identity[1], born)
                results.append(Appended(event_seq=seq, event=entry.event.id, runs=born))
        _EVENTS.run(connection, events)
        _RUNS.run(connection, runs)
        _DEDUPE.run(connection, dedupe)
        for job in jobs:
            if job.error is None:
                self._settle_appended(job)

    def birth(
        self, values: list[Any], runs: Iterable[NewRun], event_seq: int, at: int, tally: Tally
    ) -> tuple[str, ...]:
        """Give runs their seq and add their rows to `values`."""
        ids = []
        for run in runs:
            self.last_run += 1
            run.seq = self.last_run
            state = run.state.value
            running = state == "running"
            dead = state == "failed"
            values.extend(
                (
                    run.seq, run.id, event_seq, run.flow, state, int(running), run.order_key,
                    run.limit_key, None if run.due_at is None else micros(run.due_at), at,
                    at if running else None, at if dead else None, pack_error(run.error),
                    int(dead), run.replay, run.code_version,
                )
            )  # fmt: skip
            tally.moved(None, state)
            if dead:
                tally.died(run.flow)
            ids.append(run.id)
        return tuple(ids)

    def insert_runs(self, values: list[Any]) -> None:
        """Insert the rows that `birth` made."""
        _RUNS.run(self._connection, values)

    def _known(
        self, jobs: Sequence[AppendJob]
    ) -> dict[bytes, tuple[int, bytes, tuple[str, ...] | None]]:
        """Return first deliveries by key: (event_seq, digest of the body, run ids if at hand)."""
        keys = [pair[0] for job in jobs for pair in job.identities if pair is not None]
        if not keys:
            return {}
        found = self._connection.execute(
            "SELECT json_group_array(json_array(hex(d.key), d.event_seq, hex(d.body)))"
            " FROM json_each(?) AS k JOIN dedupe AS d ON d.key = unhex(k.value)",
            (orjson.dumps([key.hex() for key in keys]).decode(),),
        ).get
        return {
            bytes.fromhex(key): (seq, bytes.fromhex(body), None)
            for key, seq, body in orjson.loads(found)
        }

    def _duplicate(
        self,
        job: AppendJob,
        entry: Entry,
        body: bytes,
        first: tuple[int, bytes, tuple[str, ...] | None],
    ) -> Appended:
        """Answer for an event that was delivered before; its decision is written later."""
        seq, first_body, ids = first
        for run in entry.runs:
            run.seq = 0
        return Appended(
            event_seq=seq,
            event=entry.event.id,
            runs=() if ids is None else ids,
            duplicate=first_body == body,
            conflict=first_body != body,
        )

    def _settle_appended(self, job: AppendJob) -> None:
        """Write positions, and the decisions of duplicates, now that first deliveries are in."""
        for entry, appended in zip(job.entries, job.result, strict=True):
            if appended.duplicate or appended.conflict:
                if not appended.runs:
                    appended.runs = self._birth_runs(appended.event_seq)
                add_decisions(
                    self._connection,
                    appended.event_seq,
                    job.verdicts(entry, appended.conflict),
                )
        moved = [item for item in job.positions if item[1] is not None]
        if moved:
            _POSITIONS.run(
                self._connection, [part for item in moved for part in (job.trigger, *item)]
            )
        for partition, value in job.positions:
            if value is None:
                self._connection.execute(
                    "DELETE FROM positions WHERE trigger = ? AND partition = ?",
                    (job.trigger, partition),
                )

    def _birth_runs(self, event_seq: int) -> tuple[str, ...]:
        found = self._connection.execute(
            "SELECT id FROM runs WHERE event_seq = ? AND replay = 0 ORDER BY seq", (event_seq,)
        )
        return tuple(row[0] for row in found)

    def _refusal(self, job: AppendJob, tally: Tally) -> Overloaded | None:
        if not job.entries:
            return None
        if tally.unfinished >= self._max_unfinished and any(entry.runs for entry in job.entries):
            return Overloaded(f"{tally.unfinished} runs are unfinished, and no more are taken")
        checked = time.monotonic()
        if checked - self._free_checked >= _FREE_CHECK_SECONDS:
            self._free_checked = checked
            place = os.statvfs(self._folder)
            # Pages the journal freed are written again before the file grows.
            connection = self._connection
            free_pages = int(connection.pragma("freelist_count"))
            self.reusable_bytes = free_pages * int(connection.pragma("page_size"))
            self._free_bytes = place.f_bavail * place.f_frsize + self.reusable_bytes
        if self._free_bytes < self._min_free:
            return Overloaded(
                f"the disk has {self._free_bytes} bytes free, less than min_free_bytes"
                f" ({self._min_free}); free some"
            )
        return None

    # ---------------------------------------------------------------- runs

    def _record_steps(self, jobs: Sequence[StepJob]) -> None:
        values = [value for job in jobs for value in job.values]
        if _STEPS.run(self._connection, values) == len(jobs):
            return
        if len(jobs) > 1:
            raise Split
        # Nothing changed: the claim is lost, or the step is already a fact.
        self._check_claim(jobs[0].claim)

    def _record(self, jobs: Sequence[OutcomeJob], tally: Tally) -> None:
        values: list[Any] = []
        attempts: list[Any] = []
        for job in jobs:
            claim, outcome = job.claim, job.outcome
            state = outcome.state.value
            finished = state in _FINISHED
            due = micros(outcome.due_at) if outcome.due_at else None
            error = pack_error(outcome.error) if outcome.error else None
            dead = state == "failed"
            values.extend(
                (
                    claim.run_seq, claim.token, state, int(outcome.counts),
                    job.at if state == "queued" else due, job.started_at,
                    job.at if finished else None, outcome.result, error, outcome.reason, int(dead),
                )
            )  # fmt: skip
            if error or outcome.log or state in ("failed", "retrying"):
                attempts.extend(
                    (
                        claim.run_seq, claim.attempt, job.started_at, job.at, state, error,
                        outcome.log,
                    )
                )  # fmt: skip
            tally.moved("running", state)
            if dead:
                tally.died(claim.flow)
        if _OUTCOMES.run(self._connection, values) != len(jobs):
            if len(jobs) > 1:
                raise Split
            raise lost(jobs[0].claim)
        _ATTEMPTS.run(self._connection, attempts)
        for job in jobs:
            if job.outcome.error and job.outcome.error.step is not None:
                self._connection.execute(
                    "UPDATE steps SET superseded = 1"
                    " WHERE run_seq = ? AND key = ? AND state = 'failed'",
                    (job.claim.run_seq, job.outcome.error.step),
                )

    def _check_claim(self, claim: Claim) -> None:
        held = self._connection.execute(
            "SELECT 1 FROM runs WHERE seq = ? AND token = ? AND state = 'running'",
            (claim.run_seq, claim.token),
        ).get
        if held is None:
            raise lost(claim)

    def _claim(self, jobs: Sequence[ClaimJob], tally: Tally) -> None:
        """Make runs running; what they need to start is read in the same transaction."""
        execute = self._connection.execute
        wanted = orjson.dumps([seq for job in jobs for seq in job.seqs]).decode()
        rows = orjson.loads(execute(_CLAIM_ROWS, (wanted,)).get)
        taken = orjson.dumps([row[0] for row in rows]).decode()
        execute(
            "UPDATE runs SET state = 'running', token = token + 1, started_at = ?2"
            " WHERE seq IN (SELECT value FROM json_each(?1))",
            (taken, jobs[0].at),
        )
        resumed = [row[0] for row in rows if row[4] > 0]
        steps = self._steps_of(resumed) if resumed else {}
        claims = {}
        for row in rows:
            tally.moved(row[3], RunState.RUNNING.value)
            claims[row[0]] = self._claim_from(row, steps)
        for job in jobs:
            job.result = [claims[seq] for seq in job.seqs if seq in claims]

    def _claim_from(self, row: Sequence[Any], steps: dict[int, list[Any]]) -> Claim:
        (seq, run_id, flow, _, token, attempts, crashes, replay, order_key, limit_key, due_at,
         *event_row, body) = row  # fmt: skip
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
            suspect=is_suspect(crashes),
            recorded={row[0]: step_from(row) for row in steps.get(seq, ())},
        )

    def _body(self, event_seq: int) -> bytes:
        body: bytes = self._connection.execute(
            "SELECT body FROM events WHERE seq = ?", (event_seq,)
        ).get
        return body

    def _steps_of(self, run_seqs: Sequence[int]) -> dict[int, list[Any]]:
        """Return the steps that still count, by run, in the order they were first recorded."""
        found: dict[int, list[Any]] = {}
        for run_seq, *step in self._connection.execute(
            "SELECT run_seq, key, task, state, tries, started_at, finished_at, encoding, result,"
            " error, superseded FROM steps"
            " WHERE run_seq IN (SELECT value FROM json_each(?)) AND superseded = 0 ORDER BY seq",
            (orjson.dumps(run_seqs).decode(),),
        ):
            found.setdefault(run_seq, []).append(step)
        return found


# Large bodies are read by a statement of their own, so that one answer stays small.
_CLAIM_ROWS = f"""
SELECT json_group_array(json_array(
    r.seq, r.id, r.flow, r.state, r.token, r.attempts, r.crashes, r.replay, r.order_key,
    r.limit_key, coalesce(r.due_at, r.queued_at), e.seq, e.id, e.source, e.type, e.tenant,
    e.trigger, e.time, e.details,
    CASE WHEN length(e.body) <= {_INLINE_BODY_BYTES} THEN hex(e.body) END))
FROM runs AS r JOIN events AS e ON e.seq = r.event_seq
WHERE r.seq IN (SELECT value FROM json_each(?)) AND r.state IN {_CLAIMABLE}
"""


class _Groups:
    """Jobs gathered by kind, as long as no two of them could meet on one run out of order."""

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
        """Whether the order steps, outcomes, claims keeps `job` behind what it follows."""
        if isinstance(job, StepJob):
            seq = job.claim.run_seq
            return (
                (seq, job.values[2]) not in self._stepped
                and seq not in self._ended
                and seq not in self._claimed
            )
        if isinstance(job, OutcomeJob):
            seq = job.claim.run_seq
            return seq not in self._ended and seq not in self._claimed
        if isinstance(job, ClaimJob):
            return self._claimed.isdisjoint(job.seqs)
        return True

    def add(self, job: Job) -> None:
        if isinstance(job, AppendJob):
            self.appends.append(job)
        elif isinstance(job, StepJob):
            self.steps.append(job)
            self._stepped.add((job.claim.run_seq, job.values[2]))
        elif isinstance(job, OutcomeJob):
            self.outcomes.append(job)
            self._ended.add(job.claim.run_seq)
        elif isinstance(job, ClaimJob):
            self.claims.append(job)
            self._claimed.update(job.seqs)


def add_decisions(connection: apsw.Connection, event_seq: int, items: str | None) -> None:
    """Keep what was decided about a stored event, up to a bound per event."""
    connection.execute(
        "INSERT INTO decisions (event_seq, ordinal, items)"
        " SELECT ?1, coalesce(max(ordinal), 0) + 1, ?2 FROM decisions WHERE event_seq = ?1"
        " HAVING coalesce(max(ordinal), 0) < ?3 AND ?2 IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM events WHERE seq = ?1)",
        (event_seq, items, _DECISIONS_KEPT),
    )


def lost(claim: Claim) -> ClaimLost:
    """Return the error for a write under a token that is no longer the run's own."""
    return ClaimLost(
        f"run {claim.run_id} of {claim.flow} is no longer held by claim {claim.token}:"
        " it was cancelled or claimed anew"
    )


def _last_seqs(connection: apsw.Connection) -> tuple[int, int]:
    """Return the highest seqs ever given to an event and a run, the pruned ones included."""
    event, run = connection.execute(
        "SELECT max(coalesce((SELECT max(seq) FROM events), 0),"
        " coalesce((SELECT value FROM counters WHERE name = 'events'), 0)),"
        " max(coalesce((SELECT max(seq) FROM runs), 0),"
        " coalesce((SELECT value FROM counters WHERE name = 'runs'), 0))"
    ).get
    return event, run

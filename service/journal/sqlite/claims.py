"""Claims runs: makes them running, and reads what they need to start in the same transaction.

A run that was never claimed and whose event is in memory needs no read. A resumed run gets its
recorded steps, from the resume cache or from the journal, and what its waits have come to. Not
here: which runs are claimed (the dispatcher decides).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import apsw
import orjson

from turnout.service.domain.run import RunState, Start
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.records import (
    POLL,
    ChildEnd,
    Claim,
    ClaimedRun,
    RunMembers,
    StepRecord,
)

from . import items, starts
from .columns import selected
from .counters import RunCounters
from .crash_isolation import is_isolated
from .events import event_from
from .resume_cache import ResumeCache
from .runs import keys_from, refused_from
from .statements import load
from .steps import StepRow, step_from
from .values import dump_list, error_from, instant
from .whole_events import WHOLE_EVENT, rows_of, whole_event
from .writer import Job

_INLINE_RESULT_BYTES = 4096  # one query may return thousands of results
_SQL = load("claims")
_CLAIM_UNTOUCHED, _CLAIMED_FIRST = _SQL["claim_untouched"], _SQL["claimed_first"]
_CLAIM, _RESULT = _SQL["claim"], _SQL["result"]
_UNWOKEN, _ENDED_CHILDREN = _SQL["unwoken"], _SQL["ended_children"]


class _ClaimableRow(NamedTuple):
    """What is read of a run to claim it."""

    seq: int
    id: str
    flow: str
    state: str
    token: int
    attempts: int
    crashes: int
    consecutive_crashes: int
    replay: int
    order_key: str | None
    keys: str | None
    due_at: int
    code_version: str
    dead: int
    undo_failed: int
    window_seq: int | None


_RUN_FIELDS = len(_ClaimableRow._fields)

# The plus signs keep the planner from walking the whole backlog by state instead of looking up the
# few runs asked for.
_RUN = selected(
    _ClaimableRow._fields,
    "r",
    due_at="coalesce(r.due_at, r.queued_at)",
    undo_failed="r.dead = 1 AND r.undo IS 'failed'",
)
_WINDOW = "SELECT settings, members FROM windows WHERE seq = ?1"
_MEMBERS = """
SELECT json_group_array(event_seq) FROM (
    SELECT m.event_seq FROM window_events AS m
    WHERE m.window_seq = ?1 AND (NOT ?2 OR m.position = (
        SELECT max(position) FROM window_events WHERE window_seq = ?1))
    ORDER BY m.position)
"""
_CLAIMABLE = f"""
SELECT json_group_array(json_array({_RUN}, {WHOLE_EVENT}))
FROM runs AS r JOIN events AS e ON e.seq = r.event_seq
WHERE r.seq IN (SELECT value FROM json_each(?1))
    AND (+r.state = 'queued' OR +r.state = 'scheduled' OR +r.state = 'retrying'
        OR +r.state = 'waiting')
"""
_RESULT_FIELD = StepRow._fields.index("result")
_STEP = selected(StepRow._fields, result="iif(large OR result IS NULL, NULL, hex(result))")
_STEPS = f"""
SELECT json_group_array(json_array(run_seq, seq, large, {_STEP}))
FROM (SELECT *, coalesce(length(result), 0) > {_INLINE_RESULT_BYTES} AS large FROM steps WHERE
"""
_STEPS_OF_RUNS = f"""{_STEPS}
    run_seq IN (SELECT value FROM json_each(?1)) AND superseded = 0 ORDER BY seq)"""
_STEPS_OF_RUN = f"""{_STEPS}
    run_seq = ?1 AND key IN (SELECT value FROM json_each(?2)) AND superseded = 0 ORDER BY seq)"""


class ClaimJob(Job):
    """Claim runs; `untouched` holds those that were never claimed and need not be read.

    `starts` holds what throttles count of them.
    """

    __slots__ = ("at", "rows", "seqs", "starts", "untouched")

    def __init__(
        self,
        seqs: Sequence[int],
        untouched: Mapping[int, ClaimedRun],
        at: int,
        starts: Mapping[int, Sequence[Start]] | None = None,
    ) -> None:
        self.rows = len(seqs)
        self.seqs = seqs
        self.untouched = untouched
        self.at = at
        self.starts = starts


@dataclass(slots=True)
class _Past:
    """What the earlier attempts of a run have left."""

    recorded: dict[str, StepRecord] = field(default_factory=dict)
    recorded_bytes: int = 0
    has_waits: bool = False
    unwoken: frozenset[str] = frozenset()
    ended: dict[str, ChildEnd] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    polls: frozenset[str] = frozenset()


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
        left = dict(claimed)
        for job in jobs:  # a run that is asked for twice is given to the first only
            job.result = [left.pop(seq) for seq in job.seqs if seq in left]
            if job.starts:
                given = {run.claim.run_seq for run in job.result}
                counted = [job.starts[seq] for seq in job.starts if seq in given]
                starts.add(self._connection, chain.from_iterable(counted))
        return claimed.values()

    def _claim_untouched(
        self, jobs: Sequence[ClaimJob], at: int, counters: RunCounters
    ) -> dict[int, ClaimedRun]:
        """Claim runs that were never claimed and whose event is in memory."""
        runs = {seq: run for job in jobs for seq, run in job.untouched.items()}
        if not runs:
            return runs
        seqs = dump_list(runs)
        self._connection.execute(_CLAIM_UNTOUCHED, (seqs, at))
        if self._connection.changes() != len(runs):  # some were cancelled, or retried since
            found = self._connection.execute(_CLAIMED_FIRST, (seqs,)).get
            runs = {seq: runs[seq] for seq in orjson.loads(found)}
        counters.move(RunState.QUEUED.value, RunState.RUNNING.value, len(runs))
        return runs

    def _claim_read(
        self, seqs: Sequence[int], at: int, counters: RunCounters
    ) -> dict[int, ClaimedRun]:
        execute = self._connection.execute
        found = orjson.loads(execute(_CLAIMABLE, (dump_list(seqs),)).get)
        rows = [(_ClaimableRow(*row[:_RUN_FIELDS]), row[_RUN_FIELDS:]) for row in found]
        execute(_CLAIM, (dump_list(row.seq for row, _ in rows), at))
        for row, _ in rows:
            counters.move(row.state, RunState.RUNNING.value)
        resumed = {row.seq: (row.token, row.state) for row, _ in rows if row.token > 0}
        past = self._past(resumed) if resumed else {}
        claimed = {row.seq: self._claimed(row, event, past.get(row.seq)) for row, event in rows}
        for row, _ in rows:
            if row.window_seq is not None:
                claimed[row.seq] = self._with_members(claimed[row.seq], row.window_seq)
        return claimed

    def _with_members(self, run: ClaimedRun, window_seq: int) -> ClaimedRun:
        """Return a windowed run with the members it is called with; its event is the first one.

        Their events are read when it is called: here they would keep other writes waiting.
        """
        settings, count = self._connection.execute(_WINDOW, (window_seq,)).fetchone() or ("", 0)
        last = WindowSettings.from_json(settings).keep == "last"
        seqs: list[int] = orjson.loads(self._connection.execute(_MEMBERS, (window_seq, last)).get)
        members = RunMembers(
            window_seq=window_seq, events=None, count=count, seqs=seqs, indexes=range(len(seqs))
        )
        event = run.event
        if seqs[0] != run.event_seq:
            event = event_from(*rows_of(self._connection, seqs[:1]))
        return replace(run, members=items.left(members, run.recorded), event=event)

    def _claimed(self, row: _ClaimableRow, event: list[Any], past: _Past | None) -> ClaimedRun:
        run = ClaimedRun(
            claim=Claim(row.seq, row.id, row.token + 1),
            flow=row.flow,
            event_seq=event[0],
            event=whole_event(self._connection, event),
            attempt=row.attempts + 1,
            crashes=row.crashes,
            replay=row.replay,
            order_key=row.order_key,
            keys=keys_from(row.keys),
            due_at=instant(row.due_at),
            isolated=is_isolated(row.consecutive_crashes),
            code_version=row.code_version,
            dead=bool(row.dead),
            undo_failed=bool(row.undo_failed),
        )
        if past is not None:
            run.recorded = past.recorded
            run.recorded_bytes = past.recorded_bytes
            run.has_waits = past.has_waits
            run.unwoken = past.unwoken
            run.ended = past.ended
            run.progress = past.progress
            run.polls = past.polls
            run.was_waiting = row.state == RunState.WAITING
        return run

    def _read(self, query: str, seq: int) -> bytes:
        found: bytes = self._connection.execute(query, (seq,)).get
        return found

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
                cached.recorded,
                cached.recorded_bytes,
                has_waits=True,
                progress=cached.progress,
                polls=cached.polls.difference(cached.changed),
            )
            self._read_steps(past, _STEPS_OF_RUN, (seq, dump_list(cached.changed)))
        if unread:
            self._read_steps(past, _STEPS_OF_RUNS, (dump_list(unread),))
        waiting = [seq for seq, each in past.items() if each.has_waits]
        if waiting:
            self._read_waits(past, dump_list(waiting))
        return past

    def _read_waits(self, past: Mapping[int, _Past], seqs: str) -> None:
        execute = self._connection.execute
        for seq, keys in orjson.loads(execute(_UNWOKEN, (seqs,)).get):
            past[seq].unwoken = frozenset(keys)
        ended = orjson.loads(execute(_ENDED_CHILDREN, (seqs, _INLINE_RESULT_BYTES)).get)
        for seq, key, run_id, state, *encoded, error, refused in ended:
            result, returned = (None if data is None else bytes.fromhex(data) for data in encoded)
            past[seq].ended[key] = ChildEnd(
                run_id, RunState(state), result, error_from(error), returned, refused_from(refused)
            )

    def _read_steps(self, past: Mapping[int, _Past], query: str, values: tuple[Any, ...]) -> None:
        for run_seq, seq, large, *row in orjson.loads(self._connection.execute(query, values).get):
            result = row[_RESULT_FIELD]
            if large:
                row[_RESULT_FIELD] = self._read(_RESULT, seq)
            elif result is not None:
                row[_RESULT_FIELD] = bytes.fromhex(result)
            step, of_run = step_from(row), past[run_seq]
            of_run.recorded[step.key] = step
            of_run.recorded_bytes += len(step.result or b"")
            if step.state == "waiting" and step.task == POLL:
                of_run.polls |= {step.key}
            elif step.state == "waiting" and step.task != "sleep":
                of_run.has_waits = True

"""Gives events back to their source before any of their runs has begun, for another group member.

An event is deleted with its runs and its identity, in the transaction that moves the position
back before it: it can come again without being a duplicate, and nothing is lost. The caller keeps
the flows from starting runs meanwhile. Not here: which events are given back (a trigger decides).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw
import orjson

from turnout.service.domain.trigger import Backlog

from .counters import RunCounters
from .retention import delete_events, delete_runs, keep_highest
from .rows import micros

BATCH = 5_000
"""How many events one transaction withdraws: more would keep other writes waiting."""

_BACKLOG = """
SELECT e.seq, coalesce(e.details ->> '$.extensions.kafkarecord', e.id), e.awaited IS NULL AND (
    SELECT min(r.state = 'queued' AND r.token = 0 AND r.replay = 0) = 1
        AND max(r.flow IN (SELECT value FROM json_each(?2))) = 1
    FROM runs AS r WHERE r.event_seq = e.seq)
FROM events AS e WHERE e.trigger = ?1 AND e.seq >= (
    SELECT min(event_seq) FROM runs INDEXED BY runs_by_state
    WHERE state = 'queued' AND flow IN (SELECT value FROM json_each(?2)) AND token = 0)
ORDER BY e.seq
"""

_WITHDRAWN = """
SELECT r.seq, r.event_seq FROM json_each(?) AS v JOIN runs AS r ON r.event_seq = v.value
WHERE NOT EXISTS (SELECT 1 FROM runs AS begun WHERE begun.event_seq = r.event_seq
    AND (begun.state != 'queued' OR begun.token != 0))
"""

_UNDER_WAY = """
SELECT 1 FROM runs AS r INDEXED BY runs_by_state JOIN events AS e ON e.seq = r.event_seq
WHERE r.flow IN (SELECT value FROM json_each(?2)) AND e.trigger = ?1
    AND (r.state = 'running' OR (r.state = 'queued' AND ?5)
        OR (r.state = 'retrying' AND r.due_at <= ?4 AND ?5))
    AND e.details ->> '$.extensions.partition' IN (SELECT value FROM json_each(?3))
LIMIT 1
"""


def backlog(connection: apsw.Connection, trigger: str, flows: Sequence[str]) -> Backlog:
    """Return the events of a trigger that have no begun run, and the begun ones after the first.

    Only events that start one of `flows` may be given back.
    """
    rows: list[Any] = connection.execute(_BACKLOG, (trigger, _json(flows))).fetchall()
    return Backlog(
        waiting={name: seq for seq, name, waits in rows if waits},
        begun=[name for _seq, name, waits in rows if not waits],
    )


def withdraw(connection: apsw.Connection, counters: RunCounters, seqs: Sequence[int]) -> None:
    """Delete events with their runs, except events that have a begun run by now."""
    keep_highest(connection)
    runs: list[Any] = connection.execute(_WITHDRAWN, (_json(seqs),)).fetchall()
    delete_runs(connection, [seq for seq, _ in runs])
    delete_events(connection, sorted({event for _, event in runs}))
    counters.move("queued", None, len(runs))


def is_under_way(
    connection: apsw.Connection,
    trigger: str,
    flows: Sequence[str],
    partitions: Sequence[str],
    due_by: datetime | None,
) -> bool:
    """Whether a run of these partitions is running, queued, or to be retried by then."""
    due = None if due_by is None else micros(due_by)
    values = (trigger, _json(flows), _json(partitions), due, due is not None)
    return connection.execute(_UNDER_WAY, values).get is not None


def _json(values: Sequence[Any]) -> str:
    return orjson.dumps(values).decode()

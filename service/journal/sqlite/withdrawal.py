"""Gives events back to their source before any of their runs has begun, for another group member.

An event is deleted with its runs, its identity and its count in rate limits, in the transaction
that moves the position back before it: it can come again without being a duplicate, and nothing is
lost. A run that awaits one of these as unique work is woken and finds it gone: to keep that one
would run it ahead of earlier ones of its ordering key, and twice where its source has it already.
The caller keeps the flows from starting runs meanwhile. Not here: which events are given back
(a trigger decides).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.trigger import Backlog

from . import rate_limits, run_keys, waits
from .counters import RunCounters
from .dedupe import forget
from .retention import delete_events, delete_runs, keep_highest
from .statements import load
from .values import dump, micros

BATCH = 5_000
"""How many events one transaction withdraws: more would keep other writes waiting."""

_SQL = load("withdrawal")


def backlog(connection: apsw.Connection, trigger: str, flows: Sequence[str]) -> Backlog:
    """Return the events of a trigger that have no begun run, and the begun ones after the first.

    Only events that start one of `flows` may be given back.
    """
    rows: list[Any] = connection.execute(_SQL["backlog"], (trigger, dump(flows))).fetchall()
    return Backlog(
        waiting={name: seq for seq, name, waits in rows if waits},
        begun=[name for _seq, name, waits in rows if not waits],
    )


def withdraw(
    connection: apsw.Connection, counters: RunCounters, seqs: Sequence[int], now: datetime
) -> None:
    """Delete events with their runs, except events that have a begun run by now."""
    keep_highest(connection)
    runs: list[Any] = connection.execute(_SQL["withdrawn"], (dump(seqs),)).fetchall()
    seqs_of_runs = [seq for seq, *_ in runs]
    rate_limits.forget(connection, ((flow, keys, at) for _, _, flow, keys, at, *_ in runs))
    run_keys.remove(connection, seqs_of_runs)
    delete_runs(connection, seqs_of_runs)
    events = sorted({event for _, event, *_ in runs})
    delete_events(connection, events)
    for *_, run_id, is_awaited in runs:
        if is_awaited:
            waits.run_ended(connection, run_id, micros(now))
    forget(connection, events)
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
    values = (trigger, dump(flows), dump(partitions), due, due is not None)
    return connection.execute(_SQL["under_way"], values).get is not None

"""Alerts: final failures are counted inside the transaction that records them.

Each function writes inside the transaction it is called in. Not here: the messages about an alert
(`alert_messages`), and when people are told (`service/alerts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import apsw

from turnout.service.domain.alerts import AlertRule, cause_of
from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.run import UNFINISHED, RunError
from turnout.service.journal.records import Ended, LateRuns, NewMessage, StoredAlert, Success

from .columns import selected
from .statements import load
from .values import (
    dump,
    error_from,
    instant,
    instant_or_none,
    micros,
    pack_error,
    storable,
)  # fmt: skip

MOST_OPEN = 100
"""How many alerts of a flow are open at most; further causes count as one."""

OTHER = "other causes"


class AlertRow(NamedTuple):
    """The columns of the table `alerts`."""

    seq: int
    flow: str
    rule: str
    cause: str
    opened_at: int
    last_at: int
    times: int
    error: str | None
    run_id: str | None
    told_count: int
    told_at: int | None
    messages: int
    muted_until: int | None
    muted_by: str
    note: str
    ended_at: int | None
    ended: Ended | None


_DUE = (
    "CASE WHEN state = 'scheduled' OR (attempts = 0 AND state IN ('queued', 'running'))"
    " THEN max(queued_at, coalesce(due_at, 0)) ELSE queued_at END"
)
_SELECT = f"SELECT {selected(AlertRow._fields)} FROM alerts"
_LIST_OPEN = f"{_SELECT} WHERE ended_at IS NULL ORDER BY seq DESC LIMIT ?"
_LIST_ALL = f"{_SELECT} ORDER BY seq DESC LIMIT ?"
_ONE = f"{_SELECT} WHERE seq = ?"
_LATE = (
    "SELECT id, min(due), count(*) FILTER (WHERE due <= ?2) FROM ("
    f"SELECT id, {_DUE} AS due FROM runs INDEXED BY runs_by_state"
    f" WHERE state IN ({', '.join(sorted(map(repr, map(str, UNFINISHED))))}) AND flow = ?1)"
)
_SQL = load("alerts")


class FailureCounts:
    """Counts failures of the flows that have people told of them."""

    __slots__ = ("_connection", "flows")

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.flows: frozenset[str] = frozenset()

    def failed(self, flow: str, error: RunError | None, run_id: str, at: int) -> None:
        """Count a run that has failed for good."""
        if flow in self.flows and error is not None:
            values = (cause_of(error), 1, at, _packed(error), run_id)
            count(self._connection, flow, AlertRule.FAILURE, *values)


def count(
    connection: apsw.Connection,
    flow: str,
    rule: AlertRule,
    cause: str,
    add: int,
    at: int,
    error: str | None,
    run_id: str | None,
) -> None:
    """Add to the count of an open alert, or open it."""
    row = (flow, rule.value, storable(cause), add, at, error, run_id)
    connection.execute(_SQL["again"], row)
    if connection.changes():
        return
    if connection.execute(_SQL["count_open"], (flow,)).get >= MOST_OPEN:
        row = (flow, rule.value, OTHER, add, at, error, run_id)
        connection.execute(_SQL["again"], row)
        if connection.changes():
            return
    connection.execute(_SQL["open"], row)


def raise_alert(
    connection: apsw.Connection,
    flow: str,
    rule: AlertRule,
    *,
    at: int,
    add: int,
    at_least: int,
    run_id: str | None,
    detail: str,
    seen_at: int | None,
) -> None:
    """Open the alert of a rule, or add to its count."""
    error = _packed(RunError(rule.value, detail))
    count(connection, flow, rule, rule.value, add, at, error, run_id)
    connection.execute(_SQL["at_least"], (flow, rule.value, rule.value, at_least))
    if seen_at is not None:
        connection.execute(_SQL["seen"], (flow, rule.value, seen_at))


def tell(
    connection: apsw.Connection,
    alert: StoredAlert,
    messages: Sequence[NewMessage],
    at: int,
    ended: Ended | None,
) -> bool:
    """Note that people are told, with the messages; False if the alert has changed since."""
    ended_at = None if ended is None else at
    values = (alert.id, alert.messages, at, ended_at, ended, alert.count)
    connection.execute(_SQL["tell"], values)
    if not connection.changes():
        return False
    for each in messages:
        document = storable(dump(each.document))
        connection.execute(_SQL["add_message"], (alert.id, each.channel, each.key, document, at))
    return True


def open_alert(connection: apsw.Connection, seq: int) -> StoredAlert:
    """Return an open alert; raises `NotFound`, `Refused`."""
    found: Any = connection.execute(_ONE, (seq,)).fetchone()
    if found is None:
        raise NotFound(f"there is no alert {seq}; list them with: turnout alerts")
    alert = alert_from(found)
    if alert.ended_at is not None:
        raise Refused(f"alert {seq} has ended: {alert.ended}")
    return alert


def mute(connection: apsw.Connection, seq: int, until: datetime, by: str, note: str) -> StoredAlert:
    """Tell no more of an open alert until an instant."""
    alert = open_alert(connection, seq)
    connection.execute(_SQL["mute"], (seq, micros(until), storable(by), storable(note)))
    return replace(alert, muted_until=until, muted_by=by, note=note)


def rename_flow(connection: apsw.Connection, was: str, name: str) -> None:
    """Give what is open of a flow to its new name."""
    connection.execute(_SQL["rename"], (was, name))
    connection.execute(_SQL["rename_expectations"], (was, name))


def listed(connection: apsw.Connection, *, ended: bool, limit: int) -> list[StoredAlert]:
    """Return the open alerts, or all, the newest first."""
    rows = connection.execute(_LIST_ALL if ended else _LIST_OPEN, (limit,))
    return [alert_from(row) for row in rows]


def successes(connection: apsw.Connection, flow: str, limit: int) -> list[Success]:
    """Return the runs of a flow that have succeeded, those accepted last first."""
    rows = connection.execute(_SQL["successes"], (flow, limit))
    return [
        Success(instant(accepted), instant(started or accepted), instant(finished or accepted))
        for accepted, started, finished in rows
    ]


def late_runs(connection: apsw.Connection, flow: str, before: int) -> LateRuns:
    """Return the first unfinished run of a flow, and how many were due before an instant."""
    found: Any = connection.execute(_LATE, (flow, before)).fetchone()
    run_id, due, late = found  # SQLite: beside `min`, `id` is that of the row which has it
    return LateRuns(run_id, instant_or_none(due), late)


def alert_from(values: Sequence[Any]) -> StoredAlert:
    """Return the alert of a row."""
    row = AlertRow(*values)
    return StoredAlert(
        id=row.seq,
        flow=row.flow,
        rule=AlertRule(row.rule),
        cause=row.cause,
        opened_at=instant(row.opened_at),
        last_at=instant(row.last_at),
        count=row.times,
        error=error_from(row.error),
        run_id=row.run_id,
        told_count=row.told_count,
        told_at=instant_or_none(row.told_at),
        messages=row.messages,
        muted_until=instant_or_none(row.muted_until),
        muted_by=row.muted_by,
        note=row.note,
        ended_at=instant_or_none(row.ended_at),
        ended=row.ended,
    )


def _packed(error: RunError) -> str | None:
    return pack_error(RunError(error.type, error.message, error.step))

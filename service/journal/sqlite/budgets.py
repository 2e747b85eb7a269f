"""Budgets: taken from inside the transaction that records the step, so that it counts once.

Not here: what a flow says of a budget (`handlers.actions.budget`).
"""

from __future__ import annotations

from datetime import timedelta

import apsw

from turnout.service.domain.units import MICROSECOND
from turnout.service.journal.records import Spent, StoredBudget, Taking

from .statements import load
from .values import instant

_SQL = load("budgets")


def spent(connection: apsw.Connection, taking: Taking, at: int) -> Spent | None:
    """Return why a budget has not enough left for this, None if it has; no effect."""
    period = taking.period // MICROSECOND
    asked = (taking.name, at, period)
    used: int = connection.execute(_SQL["used"], asked).get
    too_many = used + taking.amount - taking.most
    if too_many <= 0:
        return None
    taken_at: int = connection.execute(_SQL["nth_used"], (*asked, too_many)).get
    return Spent(used, instant(taken_at + period))


def take(connection: apsw.Connection, taking: Taking, run_id: str, key: str, at: int) -> None:
    """Take from a budget for a step of a run."""
    until = at + taking.period // MICROSECOND
    connection.execute(
        _SQL["take"], (taking.name, at, until, taking.amount, taking.most, run_id, key)
    )


def listed(connection: apsw.Connection, at: int) -> list[StoredBudget]:
    """Return the budgets of which something is used, by name."""
    return [
        StoredBudget(name, used, most, timedelta(microseconds=period), instant(free_at))
        for name, used, most, period, free_at in connection.execute(_SQL["listed"], (at,))
    ]


def prune(connection: apsw.Connection, now: int, limit: int) -> int:
    """Delete up to `limit` rows that count no more; returns how many."""
    connection.execute(_SQL["delete"], (now, limit))
    return connection.changes()

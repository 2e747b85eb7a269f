"""What flows keep between runs: read at once, written by compare-and-set with a run's success.

Written inside the transaction it is called in. Not here: what a run has read and wants to keep
(`steps.flow_state`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from turnout.service.domain.errors import StateMoved
from turnout.service.domain.run import StateWrite
from turnout.service.journal.records import STATE_KEY, StoredState

from . import waits
from .statements import load
from .values import dump_list, instant

_SQL = load("flow_state")


def read(connection: apsw.Connection, flow: str, key: str) -> StoredState | None:
    """Return what a flow keeps under a key."""
    row: Any = connection.execute(_SQL["read"], (flow, key)).fetchone()
    return None if row is None else _state_from(row)


def listed(
    connection: apsw.Connection, flow: str | None, key: str | None, limit: int
) -> list[StoredState]:
    """Return what flows keep, by flow and key; what was cleared is left out."""
    return [_state_from(row) for row in connection.execute(_SQL["listed"], (flow, key, limit))]


def count(connection: apsw.Connection, flow: str, key: str | None) -> int:
    """Return how many values a flow keeps, under a key or any."""
    found: int = connection.execute(_SQL["count"], (flow, key)).get
    return found


def write(connection: apsw.Connection, flow: str, run_id: str, made: StateWrite, at: int) -> None:
    """Keep a value; raises `StateMoved` if another run has kept one since this one has read."""
    values = (flow, made.key, made.value, run_id, at)
    if made.version:
        connection.execute(_SQL["next"], (*values, made.version))
    else:
        connection.execute(_SQL["first"], values)
    if not connection.changes():
        raise StateMoved(flow, made.key)


def clear(connection: apsw.Connection, flow: str, key: str | None, at: int) -> int:
    """Let a flow keep nothing, under a key or any; returns how many values are gone."""
    connection.execute(_SQL["clear"], (flow, key, at))
    return connection.changes()


def note_use(connection: apsw.Connection, runs: str) -> None:
    """Remember when ended runs (seqs, as JSON), which are about to be deleted, had their keys."""
    connection.execute(_SQL["used"], (runs,))


def prune(connection: apsw.Connection, unused_since: int, now: int, limit: int) -> int:
    """Look at so many states of keys that no run has had since an instant; returns how many.

    They are deleted. What an unfinished run may have read stays, and is in use `now`: else its
    write would lose, and the run start over from nothing.
    """
    found = connection.execute(_SQL["unused"], (unused_since, limit)).fetchall()
    used = [(flow, key) for flow, key, is_used in found if is_used]
    unused = [(flow, key) for flow, key, is_used in found if not is_used]
    if used:
        connection.execute(_SQL["in_use"], (dump_list(used), now))
    if unused:
        connection.execute(_SQL["delete_unused"], (dump_list(unused),))
    return len(found)


def start_over(connection: apsw.Connection, run_seq: int) -> None:
    """Forget what a run has recorded since it read a state that has moved."""
    connection.execute(_SQL["forget_steps"], (run_seq, STATE_KEY))
    waits.delete(connection, [run_seq])


def rename_flow(connection: apsw.Connection, was: str, name: str) -> None:
    """Give the states of a flow to its new name."""
    connection.execute(_SQL["rename"], (was, name))


def _state_from(row: Sequence[Any]) -> StoredState:
    flow, key, version, value, run_id, changed_at = row
    return StoredState(flow, key, version, value, run_id, instant(changed_at))

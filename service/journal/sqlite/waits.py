"""The rows of waits: opened with a step, woken by events, deleted with their run.

Each function writes inside the transaction it is called in. What arrives between the opening of a
wait and the end of its attempt is stored in the row (`woken`), and the attempt's outcome then makes
the run due at once. Not here: what a wait means (`steps/wait`), and when a due run starts (the
dispatcher).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw

from turnout.service.domain.errors import Refused
from turnout.service.journal.records import APPROVAL, Opening, approval_topic, run_topic

from .statements import load
from .values import dump, dump_list

_SQL = load("waits")


def opened(connection: apsw.Connection, run_seq: int, key: str, opening: Opening) -> None:
    """Open a wait; the first event to look at is `opening.since`."""
    shape = dump(opening.shape) if opening.shape else None
    values = (run_seq, key, opening.topic, shape, opening.since, opening.race)
    connection.execute(_SQL["open"], values)


def shared(connection: apsw.Connection, run_seq: int, key: str, run_id: str) -> None:
    """Let an open wait be for a run that is the work of somebody else."""
    connection.execute(_SQL["share"], (run_seq, key, run_topic(run_id)))


def closed(connection: apsw.Connection, run_seq: int, key: str) -> None:
    """Delete a wait whose step has a result."""
    connection.execute(_SQL["close"], (run_seq, key))


def closed_all(connection: apsw.Connection, run_seq: int, keys: Iterable[str]) -> list[str]:
    """Delete waits of a run; returns the unfinished children of its own that they were for."""
    values = (run_seq, dump_list(keys))
    found: list[Any] = connection.execute(_SQL["children_at"], values).fetchall()
    connection.execute(_SQL["close_all"], values)
    return [row[0] for row in found]


def delete(connection: apsw.Connection, run_seqs: Sequence[int]) -> None:
    """Delete all waits of runs that have ended."""
    connection.execute(_SQL["delete"], (dump(run_seqs),))


def keep_only_children(connection: apsw.Connection, run_seq: int) -> None:
    """Delete the waits of a run except those for unfinished children."""
    connection.execute(_SQL["keep_only_children"], (run_seq,))


def wake(connection: apsw.Connection, topics: Sequence[str], at: int, *, event_seq: int) -> None:
    """Make the runs that wait for one of these topics due."""
    named = dump(topics)
    connection.execute(_SQL["wake"], (named, event_seq))
    if connection.changes():
        connection.execute(_SQL["make_due"], (named, at))


def run_ended(connection: apsw.Connection, run_id: str, at: int) -> None:
    """Wake the run that waits for a child run that has ended."""
    _wake_ended(connection, run_topic(run_id), at)


def _wake_ended(connection: apsw.Connection, topic: str, at: int) -> None:
    """Make the run due that waits for this topic, which is over."""
    connection.execute(_SQL["wake_ended"], (topic,))
    if connection.changes():
        connection.execute(_SQL["make_due"], (dump([topic]), at))


def suspended(
    connection: apsw.Connection, run_seq: int, looked: Mapping[str, int], at: int
) -> None:
    """Record the last event each wait looked at; a later event makes the run due at once."""
    seen = dump(looked)
    connection.execute(_SQL["looked"], (run_seq, seen))
    connection.execute(_SQL["make_due_if_woken"], (run_seq, seen, at))


def children(connection: apsw.Connection, run_seq: int) -> list[tuple[int, str]]:
    """Return (seq, id) of the unfinished runs a run waits for."""
    found: list[Any] = connection.execute(_SQL["children"], (run_seq,)).fetchall()
    return [(row[0], row[1]) for row in found]


def keys(connection: apsw.Connection, run_seq: int) -> list[str]:
    """Return the steps at which a run waits."""
    return [str(row[0]) for row in connection.execute(_SQL["keys"], (run_seq,))]


def answer(
    connection: apsw.Connection, run_seq: int, run_id: str, key: str | None, said: bytes, at: int
) -> str:
    """Store an approver's answer once; returns the step's key. Raises `Refused`."""
    asked = (run_seq, f"{APPROVAL}%", key)
    rows: list[Any] = connection.execute(_SQL["approvals"], asked).fetchall()
    free = [row[0] for row in rows if row[1] is None]
    if not free:
        what = "was answered already" if rows else "waits for no approval"
        raise Refused(f"run {run_id} {what}" + (f" at step {key!r}" if key else ""))
    if len(free) > 1:
        raise Refused(f"run {run_id} waits for several approvals; name one: {', '.join(free)}")
    connection.execute(_SQL["answer"], (run_seq, free[0], said.decode()))
    connection.execute(_SQL["note_answer"], (run_seq, free[0], said.decode(), at))
    _wake_ended(connection, approval_topic(run_id, free[0]), at)
    return str(free[0])

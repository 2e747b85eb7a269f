"""The rows of waits: opened with a step, woken by events, deleted with their run.

Each function writes inside the transaction it is called in. What arrives between the opening of a
wait and the end of its attempt is stored in the row (`woken`), and the attempt's outcome then makes
the run due at once. Not here: what a wait means (`steps/wait`), and when a due run starts (the
dispatcher).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import orjson

from turnout.service.domain.errors import Refused
from turnout.service.journal.records import APPROVAL, Opening, approval_topic, run_topic


def opened(connection: apsw.Connection, run_seq: int, key: str, opening: Opening) -> None:
    """Open a wait; the first event to look at is `opening.since`."""
    connection.execute(
        "INSERT INTO waits (run_seq, key, topic, shape, woken) VALUES (?1, ?2, ?3, ?4, ?5)"
        " ON CONFLICT (run_seq, key) DO UPDATE SET topic = excluded.topic, shape = excluded.shape",
        (
            run_seq,
            key,
            opening.topic,
            orjson.dumps(opening.shape).decode() if opening.shape else None,
            opening.since,
        ),
    )


def closed(connection: apsw.Connection, run_seq: int, key: str) -> None:
    """Delete a wait whose step has a result."""
    connection.execute("DELETE FROM waits WHERE run_seq = ? AND key = ?", (run_seq, key))


def delete(connection: apsw.Connection, run_seqs: Sequence[int]) -> None:
    """Delete all waits of runs that have ended."""
    connection.execute(
        "DELETE FROM waits WHERE run_seq IN (SELECT value FROM json_each(?))",
        (orjson.dumps(run_seqs).decode(),),
    )


def keep_only_children(connection: apsw.Connection, run_seq: int) -> None:
    """Delete the waits of a run except those for unfinished children."""
    connection.execute(
        "DELETE FROM waits WHERE run_seq = ? AND NOT (topic LIKE 'run:%' AND EXISTS"
        " (SELECT 1 FROM runs AS r WHERE r.id = substr(topic, 5) AND r.finished_at IS NULL))",
        (run_seq,),
    )


def wake(connection: apsw.Connection, topics: Sequence[str], at: int, *, event_seq: int) -> None:
    """Make the runs that wait for one of these topics due."""
    named = orjson.dumps(topics).decode()
    connection.execute(
        "UPDATE waits SET woken = coalesce(woken, ?2), latest = ?2"
        " WHERE topic IN (SELECT value FROM json_each(?1))",
        (named, event_seq),
    )
    if connection.changes():
        connection.execute(
            "UPDATE runs SET due_at = min(coalesce(due_at, ?2), ?2) WHERE +state = 'waiting'"
            " AND seq IN (SELECT run_seq FROM waits"
            " WHERE topic IN (SELECT value FROM json_each(?1)))",
            (named, at),
        )


def run_ended(connection: apsw.Connection, run_id: str, at: int) -> None:
    """Wake the run that waits for a child run that has ended."""
    wake(connection, (run_topic(run_id),), at, event_seq=1)


def suspended(
    connection: apsw.Connection, run_seq: int, looked: Mapping[str, int], at: int
) -> None:
    """Record the last event each wait looked at; a later event makes the run due at once."""
    seen = orjson.dumps(looked).decode()
    connection.execute(
        "UPDATE waits SET woken = iif(latest > j.value, max(woken, j.value + 1), NULL),"
        " latest = iif(latest > j.value, latest, NULL) FROM json_each(?2) AS j"
        " WHERE run_seq = ?1 AND waits.key = j.key",
        (run_seq, seen),
    )
    connection.execute(
        "UPDATE runs SET due_at = ?3 WHERE seq = ?1 AND EXISTS (SELECT 1 FROM waits"
        " WHERE run_seq = ?1 AND woken IS NOT NULL AND key IN (SELECT key FROM json_each(?2)))",
        (run_seq, seen, at),
    )


def children(connection: apsw.Connection, run_seq: int) -> list[tuple[int, str]]:
    """Return (seq, id) of the unfinished runs a run waits for."""
    found: list[Any] = connection.execute(
        "SELECT r.seq, r.id FROM waits AS w JOIN runs AS r ON r.id = substr(w.topic, 5)"
        " WHERE w.run_seq = ? AND w.topic LIKE 'run:%' AND r.finished_at IS NULL",
        (run_seq,),
    ).fetchall()
    return [(row[0], row[1]) for row in found]


def answer(
    connection: apsw.Connection, run_seq: int, run_id: str, key: str | None, said: bytes, at: int
) -> str:
    """Store an approver's answer once; returns the step's key. Raises `Refused`."""
    rows: list[Any] = connection.execute(
        "SELECT key, answer FROM waits WHERE run_seq = ?1 AND topic LIKE ?2"
        " AND (?3 IS NULL OR key = ?3) ORDER BY key",
        (run_seq, f"{APPROVAL}%", key),
    ).fetchall()
    free = [row[0] for row in rows if row[1] is None]
    if not free:
        what = "was answered already" if rows else "waits for no approval"
        raise Refused(f"run {run_id} {what}" + (f" at step {key!r}" if key else ""))
    if len(free) > 1:
        raise Refused(f"run {run_id} waits for several approvals; name one: {', '.join(free)}")
    connection.execute(
        "UPDATE waits SET answer = ?3 WHERE run_seq = ?1 AND key = ?2",
        (run_seq, free[0], said.decode()),
    )
    wake(connection, (approval_topic(run_id, free[0]),), at, event_seq=1)
    return str(free[0])

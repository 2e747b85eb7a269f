"""Turns a filter into a statement: newest first, by an index wherever matches may be rare.

Pure text and values; only the flows of a state are read from the database. A filter on a trigger
or on time walks back from the newest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import apsw

from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter

from .dedupe import found_by_id
from .names import event_named
from .runs import LISTED_RUN_COLUMNS
from .values import micros

_OWNED = "r.flow IN (SELECT flow FROM described_flows WHERE owner = ?)"
_TAGGED = (
    "r.flow IN (SELECT d.flow FROM described_flows AS d, json_each(d.tags) AS t WHERE t.value = ?)"
)
_MOST_PARTS = 200  # SQLite joins at most 500 selects in one statement


def runs_query(connection: apsw.Connection, which: Filter) -> tuple[str, list[Any]]:
    """Return the statement that reads the runs of a filter.

    The runs of a flow or a state are found by the index on (state, flow), pair by pair: walking
    back from the newest run could pass millions of others. Most runs are succeeded, so for these
    walking back is fastest.
    """
    where, values = _runs_where(which)
    newest = f"{where} ORDER BY r.seq DESC LIMIT ?"
    joined = "CROSS JOIN events AS e ON e.seq = r.event_seq"
    if which.event is not None:
        source = "events AS e CROSS JOIN runs AS r ON r.event_seq = e.seq"
        return f"SELECT {LISTED_RUN_COLUMNS} FROM {source} WHERE {newest}", [*values, which.limit]
    if which.dead:
        source = f"runs AS r INDEXED BY runs_dead {joined}"
        return f"SELECT {LISTED_RUN_COLUMNS} FROM {source} WHERE {newest}", [*values, which.limit]
    pairs = _pairs(connection, which)
    if pairs is None:
        source = f"runs AS r NOT INDEXED {joined}"
        return f"SELECT {LISTED_RUN_COLUMNS} FROM {source} WHERE {newest}", [*values, which.limit]
    part = (
        f"SELECT * FROM (SELECT {LISTED_RUN_COLUMNS}"
        f" FROM runs AS r INDEXED BY runs_by_state {joined}"
        f" WHERE r.state = ? AND r.flow = ? AND {newest})"
    )
    text = " UNION ALL ".join([part] * len(pairs)) + " ORDER BY 1 DESC LIMIT ?"
    return text, [value for pair in pairs for value in (*pair, *values, which.limit)] + [
        which.limit
    ]


def named_whole(connection: apsw.Connection, which: Filter) -> Filter:
    """Return the filter with the whole id of its event, where it has the short form of one."""
    if which.event is None:
        return which
    where, values = found_by_id(which.event)
    if connection.execute(f"SELECT 1 FROM events AS e WHERE {where}", values).fetchone():
        return which
    whole = event_named(connection, which.event)
    return which if whole is None else replace(which, event=whole)


def events_where(which: Filter) -> tuple[str, list[Any]]:
    """Return the condition of a filter on events, and its values."""
    condition, values = _conditions(
        ("e.trigger = ?", which.trigger),
        _by_id(which),
        ("e.accepted_at >= ?", None if which.since is None else micros(which.since)),
        ("e.accepted_at < ?", None if which.until is None else micros(which.until)),
        ("e.seq < ?", which.cursor),
    )
    of_run, run_values = _conditions(
        ("r.flow = ?", which.flow),
        (_OWNED, which.owner),
        (_TAGGED, which.tag),
        ("r.state = ?", None if which.state is None else which.state.value),
        ("r.dead = ?", None if which.dead is None else int(which.dead)),
    )
    if run_values:
        condition += f" AND EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq AND {of_run})"
    return condition, values + run_values


def _runs_where(which: Filter) -> tuple[str, list[Any]]:
    condition, values = _conditions(
        ("r.flow = ?", which.flow),
        (_OWNED, which.owner),
        (_TAGGED, which.tag),
        ("r.state = ?", None if which.state is None else which.state.value),
        ("e.trigger = ?", which.trigger),
        _by_id(which),
        ("r.queued_at >= ?", None if which.since is None else micros(which.since)),
        ("r.queued_at < ?", None if which.until is None else micros(which.until)),
        ("r.seq < ?", which.cursor),
    )
    if which.dead is not None:  # written out, so that it fits the index of dead letters
        condition += f" AND r.dead = {int(which.dead)}"
    return condition, values


def _conditions(*pairs: tuple[str, Any]) -> tuple[str, list[Any]]:
    asked = [(condition, value) for condition, value in pairs if value is not None]
    values: list[Any] = []
    for _, value in asked:
        values.extend(value if isinstance(value, list) else [value])
    return " AND ".join(condition for condition, _ in asked) or "true", values


def _by_id(which: Filter) -> tuple[str, list[Any] | None]:
    return ("", None) if which.event is None else found_by_id(which.event)


def _pairs(connection: apsw.Connection, which: Filter) -> Sequence[tuple[str, str]] | None:
    """Return the (state, flow) pairs to search, or None to walk back over all runs."""
    states = [which.state] if which.state is not None else list(RunState)
    if which.flow is not None:
        return [(state.value, which.flow) for state in states]
    if which.owner is not None or which.tag is not None:
        described = _described(connection, which)
        pairs = [(state.value, flow) for flow in described for state in states]
        return None if len(pairs) > _MOST_PARTS else pairs or [("", "")]
    if which.state is None or which.state is RunState.SUCCEEDED:
        return None
    # Each step of the recursion jumps to the next flow of the index.
    flows: list[Any] = connection.execute(
        "WITH RECURSIVE found (flow) AS (SELECT min(flow) FROM runs WHERE state = ?1 UNION ALL"
        " SELECT (SELECT min(flow) FROM runs WHERE state = ?1 AND flow > found.flow) FROM found"
        " WHERE found.flow IS NOT NULL) SELECT flow FROM found WHERE flow IS NOT NULL LIMIT ?2",
        (which.state.value, _MOST_PARTS + 1),
    ).fetchall()
    if not 0 < len(flows) <= _MOST_PARTS:
        return None if flows else [(which.state.value, "")]
    return [(which.state.value, row[0]) for row in flows]


def _described(connection: apsw.Connection, which: Filter) -> Sequence[str]:
    """Return the flows of an owner, with a tag."""
    rows: list[Any] = connection.execute(
        "SELECT r.flow FROM described_flows AS r WHERE (?1 IS NULL OR r.owner = ?1)"
        " AND (?2 IS NULL OR EXISTS (SELECT 1 FROM json_each(r.tags) AS t WHERE t.value = ?2))",
        (which.owner, which.tag),
    ).fetchall()
    return [flow for (flow,) in rows]

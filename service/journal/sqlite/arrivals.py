"""Reads what happened to a flow: its events as they came, and what became of them.

Not here: what would have happened (`operate/backtest`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apsw
import orjson

from turnout.service.domain.event_types import EMITTERS
from turnout.service.domain.run import RunState
from turnout.service.domain.windows.absent import ABSENT
from turnout.service.domain.windows.firing import FIRED_BY
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.records import Arrival, PastMember, PastRun, PastWindow

from .decisions import unpack_decisions
from .events import EVENT_COLUMNS, stored_event_from
from .runs import refused_from
from .statements import load
from .values import dump_list, instant, instant_or_none

_SQL = load("backtest")
_MOST_BODY_BYTES = 16 * 2**20

_FIRST_CLAIM = """CASE WHEN r.claimed_after IS NOT NULL THEN r.queued_at + r.claimed_after
    WHEN r.token > 1 THEN min(r.started_at,
    coalesce((SELECT min(s.started_at) FROM steps AS s WHERE s.run_seq = r.seq), r.started_at),
    coalesce((SELECT min(a.started_at) FROM attempts AS a WHERE a.run_seq = r.seq), r.started_at))
    ELSE r.started_at END"""
"""When a run was first claimed; of a run of an earlier version what it did first is known."""

_RUNS = f"""(SELECT json_group_array(json_array(r.seq, r.id, r.replay, r.state, r.queued_at,
    {_FIRST_CLAIM}, r.finished_at, r.refused, r.forced)) FROM runs AS r WHERE """
_DECISIONS = """(SELECT json_group_array(items) FROM
    (SELECT items FROM decisions WHERE event_seq = e.seq ORDER BY ordinal))"""
_WINDOW = """(SELECT m.window_seq FROM window_events AS m
    CROSS JOIN windows AS w ON w.seq = m.window_seq
    WHERE m.event_seq = e.seq AND w.flow = ?1 ORDER BY m.window_seq DESC LIMIT 1)"""
_ARRIVALS = f"""
SELECT {EVENT_COLUMNS}, e.accepted_at, e.decisions, {_DECISIONS},
    {_RUNS} r.event_seq = e.seq AND r.flow = ?1 AND r.replay = 0 AND r.window_seq IS NULL),
    {_WINDOW}
FROM events AS e
WHERE e.seq > ?2 AND e.accepted_at >= ?3 AND e.accepted_at < ?4
    AND (e.trigger IN (SELECT value FROM json_each(?5))
        OR EXISTS (SELECT 1 FROM runs
            WHERE event_seq = e.seq AND flow = ?1 AND replay = 0 AND window_seq IS NULL)
        OR {_WINDOW} IS NOT NULL)
ORDER BY e.seq LIMIT ?6
"""
_OF_RUN = f"""
SELECT {EVENT_COLUMNS}, e.accepted_at, NULL, '[]', {_RUNS} r.seq = ?1), NULL
FROM events AS e WHERE e.seq = ?2
"""
_PAST_WINDOWS = f"""
SELECT w.seq, w.id, w.key, w.settings, iif(w.closed_at < ?2, w.state, 'open'), w.opened_at,
    iif(w.closed_at < ?2, w.closed_at, NULL),
    iif(w.closed_at < ?2, w.members,
        (SELECT count(*) FROM window_events AS m WHERE m.window_seq = w.seq AND m.at < ?2)),
    {_RUNS} r.window_seq = w.seq AND r.flow = w.flow AND r.replay = 0 AND r.state <> 'scheduled'),
    e.decisions, {_DECISIONS}
FROM windows AS w LEFT JOIN events AS e ON e.seq = (SELECT event_seq FROM window_events AS m
    WHERE m.window_seq = w.seq ORDER BY m.position LIMIT 1)
WHERE w.flow = ?1 AND {{which}}
ORDER BY w.opened_at, w.seq
"""
_WINDOWS_BY_SEQ = _PAST_WINDOWS.format(which="w.seq IN (SELECT value FROM json_each(?3))")
_WINDOWS_ACROSS = _PAST_WINDOWS.format(
    which="(w.closed_at IS NULL OR w.closed_at >= ?3) AND w.opened_at < ?4"
)


def arrivals(
    connection: apsw.Connection,
    flow: str,
    triggers: Sequence[str],
    since: int,
    until: int,
    after_seq: int,
    limit: int,
) -> list[Arrival]:
    """Return events that a flow was asked about; see `Reads.arrivals`."""
    after = max(after_seq, _seq_before(connection, since))
    names = dump_list([*triggers, *EMITTERS])
    rows = connection.execute(_ARRIVALS, (flow, after, since, until, names, limit))
    return list(_within_bound(_arrival(row) for row in rows))


def runs_beside(
    connection: apsw.Connection, flow: str, since: int, accepted_since: int, until: int
) -> list[Arrival]:
    """Return runs that count in a period; see `Reads.runs_beside`."""
    values = (flow, since, accepted_since, until)
    found: list[Any] = connection.execute(_SQL["runs_beside"], values).fetchall()
    rows = (connection.execute(_OF_RUN, pair).fetchone() for pair in found)
    return [_arrival(row) for row in rows if row is not None]


def past_windows(
    connection: apsw.Connection, flow: str, seqs: Sequence[int], until: int
) -> list[PastWindow]:
    """Return windows by seq; see `WindowReads.past_windows`."""
    rows = connection.execute(_WINDOWS_BY_SEQ, (flow, until, dump_list(seqs)))
    return [_past_window(row) for row in rows]


def windows_across(
    connection: apsw.Connection, flow: str, since: int, opened_before: int, until: int
) -> list[PastWindow]:
    """Return windows that were open in a period; see `WindowReads.windows_across`."""
    rows = connection.execute(_WINDOWS_ACROSS, (flow, until, since, opened_before))
    return [_past_window(row) for row in rows]


def past_members(connection: apsw.Connection, window_seq: int, until: int) -> list[PastMember]:
    """Return members of a window; see `WindowReads.past_members`."""
    rows = connection.execute(_SQL["past_members"], (window_seq, until, ABSENT))
    return [
        PastMember(
            event_seq, event_id, trigger, part, instant(at), size,
            None if keys is None else orjson.loads(keys), order_key, priority,
        )
        for event_seq, event_id, trigger, part, at, size, keys, order_key, priority in rows
    ]  # fmt: skip


def typical_microseconds(connection: apsw.Connection, flow: str, since: int) -> int | None:
    """Return how long a run of a flow takes."""
    found: int | None = connection.execute(_SQL["typical_microseconds"], (flow, since)).get
    return found


def _within_bound(found: Iterator[Arrival]) -> Iterator[Arrival]:
    """Yield as many as have bodies within a bound, and one at least."""
    total = 0
    for each in found:
        yield each
        total += len(each.stored.event.body)
        if total > _MOST_BODY_BYTES:
            return


def _seq_before(connection: apsw.Connection, since: int) -> int:
    """Return a seq that no event accepted since an instant comes before, found by halving."""
    low, high = 0, int(connection.execute(_SQL["last_seq"]).get)
    while high - low > 1_000:
        middle = (low + high) // 2
        row: Any = connection.execute(_SQL["seq_at"], (middle,)).fetchone()
        if row is None or row[1] >= since:
            high = middle
        else:
            low = row[0]
    return max(0, low - 1)


def _arrival(row: Sequence[Any]) -> Arrival:
    *event, accepted_at, first, later, runs, window = row
    past = [_past_run(each) for each in orjson.loads(runs)]
    occasions = [first, *orjson.loads(later)]
    stored = stored_event_from(event, accepted_at, [run.id for run in past], occasions)
    return Arrival(stored, past, window)


def _past_window(row: Sequence[Any]) -> PastWindow:
    seq, window_id, key, settings, state, opened_at, closed_at, members, runs, first, later = row
    occasions = [first, *orjson.loads(later)]
    decisions = [made for items in occasions if items for made in unpack_decisions(items)]
    return PastWindow(
        seq=seq,
        id=window_id,
        key=key,
        settings=WindowSettings.from_json(settings),
        state=state,
        opened_at=instant(opened_at),
        closed_at=instant_or_none(closed_at),
        members=members,
        run=next((_past_run(each) for each in orjson.loads(runs)), None),
        decisions=decisions,
        by_hand=state == "dropped" or any(_tells_by_hand(made, window_id) for made in decisions),
    )


def _tells_by_hand(made: Mapping[str, Any], window_id: str) -> bool:
    """Whether a decision says that somebody has fired a window."""
    is_of_window = made["facts"].get("window") == window_id
    return is_of_window and str(made["detail"]).startswith(FIRED_BY)


def _past_run(values: Sequence[Any]) -> PastRun:
    seq, run_id, replay, state, queued_at, started_at, finished_at, refused, forced = values
    why = refused_from(refused)
    return PastRun(
        seq=seq,
        id=run_id,
        replay=replay,
        state=RunState(state),
        queued_at=instant(queued_at),
        started_at=instant_or_none(started_at),
        finished_at=instant_or_none(finished_at),
        refused=None if why is None else why[0],
        was_forced=bool(forced),
    )

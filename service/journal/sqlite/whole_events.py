"""Events with their bodies, read through one JSON array; large bodies one by one.

Not here: events in lists (`event_reads`), which come without their bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from turnout.service.domain.event import Event

from .columns import selected
from .connection import read_all
from .events import ReadEvent, event_from
from .statements import load
from .values import dump_list

_INLINE_BODY_BYTES = 65_536
_BODY = load("claims")["body"]
_BODY_FIELD = ReadEvent._fields.index("body")

# Large bodies have their own statement, so that one result stays small.
WHOLE_EVENT = selected(
    ReadEvent._fields,
    "e",
    body=f"CASE WHEN length(e.body) <= {_INLINE_BODY_BYTES} THEN hex(e.body) END",
)
_EVENTS = f"""
SELECT json_array({WHOLE_EVENT}) AS item
FROM json_each(?1) AS asked CROSS JOIN events AS e ON e.seq = asked.value ORDER BY asked.key
"""


def whole_event(connection: apsw.Connection, values: list[Any]) -> Event:
    """Return the event of the values of `WHOLE_EVENT`, as JSON gives them."""
    return event_from(_with_body(connection, values))


def rows_of(connection: apsw.Connection, seqs: Sequence[int]) -> list[list[Any]]:
    """Return the values of these events, in this order, as `event_from` takes them."""
    rows = read_all(connection, _EVENTS, (dump_list(seqs),))
    return [_with_body(connection, row) for row in rows]


def _with_body(connection: apsw.Connection, values: list[Any]) -> list[Any]:
    body = values[_BODY_FIELD]
    if body is not None:
        values[_BODY_FIELD] = bytes.fromhex(body)
    else:
        values[_BODY_FIELD] = connection.execute(_BODY, (values[0],)).get
    return values

"""How fields of events are compared, for `wait_for(match=…)` and `cancel_on=`."""

from __future__ import annotations

import orjson

from .errors import InvalidData
from .event import Event


def field_of(event: Event, name: str) -> str | None:
    """Return an event's path parameter, or top-level field of its data, as text."""
    if name in event.params:
        return event.params[name]
    try:
        data = event.data
    except InvalidData:
        return None
    return as_text(data[name]) if isinstance(data, dict) and name in data else None


def as_text(value: object) -> str:
    """Return a value as it is compared: `7` and `"7"` are the same."""
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()

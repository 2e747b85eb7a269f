"""How fields of events are compared, for `wait_for(match=…)` and `cancel_on=`."""

from __future__ import annotations

import orjson

from .errors import InvalidData
from .event import Event


def field_of(event: Event, name: str, *, null: str | None = "null") -> str | None:
    """Return an event's path parameter, or top-level field of its data, as text.

    None if there is none; `null` for a field that is null.
    """
    if name in event.params:
        return event.params[name]
    try:
        data = event.data
    except InvalidData:
        return None
    if not isinstance(data, dict) or name not in data:
        return None
    value = data[name]
    return null if value is None else as_text(value)


def as_text(value: object) -> str:
    """Return a value as it is compared: `7` and `"7"` are the same."""
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()

"""Converts single values to columns and back: what is written is read back equal.

Pure functions. Instants are stored as integer microseconds UTC, so they come back equal, in UTC.
Not here: rows (`event_rows`, `run_rows`, `step_rows`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from turnout.service.domain.run import RunError
from turnout.service.domain.units import EPOCH, MICROSECOND

_LOWEST = datetime.min.replace(tzinfo=UTC)
_HIGHEST = datetime.max.replace(tzinfo=UTC)


def micros(instant: datetime) -> int:
    """Return an aware instant as microseconds since 1970 UTC, exactly.

    What is made for each event writes this expression out, since a call costs as much again.
    """
    return (instant - EPOCH) // MICROSECOND


def instant(stored: int) -> datetime:
    """Read back what `micros` wrote.

    A sender may send the last hours of year 9999 in a zone behind UTC, or the first of year 1 in
    one ahead. `datetime` cannot hold these in UTC, so the nearest instant is returned.
    """
    try:
        return EPOCH + timedelta(microseconds=stored)
    except OverflowError:
        return _HIGHEST if stored > 0 else _LOWEST


def micros_or_none(value: datetime | None) -> int | None:
    """Return `micros` of an instant that may be missing."""
    return None if value is None else micros(value)


def instant_or_none(stored: int | None) -> datetime | None:
    """Read back what `micros_or_none` wrote."""
    return None if stored is None else instant(stored)


def dump(value: Any) -> str:
    """Return a value as JSON text."""
    return orjson.dumps(value).decode()


def dump_list(values: Iterable[Any]) -> str:
    """Return values as a JSON array, for `json_each`."""
    return orjson.dumps(list(values)).decode()


def storable(text: str) -> str:
    """Return text that UTF-8 can encode: a message may quote a file name that it cannot.

    An outcome must be recorded whatever its message contains.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def pack_error(error: RunError | None) -> str | None:
    """Return an error with its traceback as JSON."""
    if error is None:
        return None
    fields = error.as_dict() | {"traceback": error.traceback}
    return dump({name: value and storable(value) for name, value in fields.items()})


def error_from(stored: str | None) -> RunError | None:
    """Read back what `pack_error` wrote."""
    return None if stored is None else RunError(**orjson.loads(stored))

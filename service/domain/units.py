"""Durations and sizes as people write them: `"500ms" "30s" "5m" "2h" "1d"`, `"1MiB"`.

Pure functions; a value that cannot be read raises `SetupError` showing the forms that can. No
duration is longer than `LONGEST`, so that any clock reading plus or minus one is still a date.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from .errors import SetupError

LONGEST = timedelta(days=36_525)
"""The longest duration there is: a hundred years."""

FOREVER = "forever"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
"""Instants are kept as `(instant - EPOCH) // MICROSECOND`."""

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?", re.ASCII)
_BYTES = {
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


utc_now: Callable[[], datetime] = partial(datetime.now, UTC)
"""Returns the wall clock in UTC; the default of every injected `now`."""


def parse_duration(value: str | timedelta) -> timedelta:
    """Read a duration such as `"1h30m"`, up to a hundred years; raises `SetupError` for others."""
    length = _read_duration(value)
    if length is None or length > LONGEST:
        raise SetupError(f"the duration {_words(value)} is too long: a hundred years are the most")
    return length


def is_duration(text: str) -> bool:
    """Whether a text is written as a duration, of whatever length."""
    return _parts(text) is not None


def parse_retention(value: str | timedelta) -> timedelta:
    """Read how long to keep something: a duration or `"forever"`; what is longer is `LONGEST`."""
    if isinstance(value, str) and value.strip().lower() == FOREVER:
        return LONGEST
    length = _read_duration(value)
    return LONGEST if length is None else min(length, LONGEST)


def _read_duration(value: str | timedelta) -> timedelta | None:
    """Return a duration as written, None for one that no `timedelta` can hold."""
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise SetupError(f"a duration cannot be negative, got {value!r}")
        return value
    parts = _parts(str(value))
    if parts is None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        seconds = f'"{value}s" for seconds, or ' if is_number else ""
        raise SetupError(
            f"cannot read the duration {_words(value)}; "
            f'write it like {seconds}"500ms", "30s", "5m", "1h30m", "1d"'
        )
    try:
        return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
    except OverflowError:
        return None


def _parts(text: str) -> list[tuple[str, str]] | None:
    parts: list[tuple[str, str]] = _DURATION_PART.findall(text.strip())
    is_whole = parts and "".join(number + unit for number, unit in parts) == text.strip()
    return parts if is_whole else None


def _words(value: object) -> str:
    """Return a value for a message, which a long one must not fill."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def parse_timeout(value: str | timedelta | None) -> timedelta | None:
    """Read a timeout, None for none; raises `SetupError` for a timeout of zero."""
    try:
        timeout = None if value is None else parse_duration(value)
    except SetupError as error:
        raise SetupError(f"timeout=: {error.message}") from None
    if timeout == timedelta(0):
        raise SetupError(f"timeout={value!r}: nothing ends in no time; leave it out for no bound")
    return timeout


def format_duration(value: timedelta) -> str:
    """Write a duration so that `parse_duration` reads it back to the millisecond."""
    milliseconds = round(value.total_seconds() * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def to_the_second(at: datetime) -> str:
    """Return an instant as people read it, in UTC: `2026-01-31T09:00:00Z`."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def parse_size(value: str | int) -> int:
    """Read a size in bytes such as `"1MiB"`; a plain number is bytes; raises `SetupError`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise SetupError(f'cannot read the size {value!r}; write it like "64KiB", "1MiB", "10GiB"')
    return int(float(match[1]) * _BYTES[match[2] or "B"])

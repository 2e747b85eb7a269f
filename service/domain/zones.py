"""Time zones by their IANA names."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from .errors import SetupError


@cache  # zoneinfo caches only eight; reading a file again would block the event loop
def load_zone(name: str) -> ZoneInfo:
    """Return an IANA zone; raises `SetupError` that suggests similar names."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, absolute or `..`, a folder of zones
        known = {zone.lower(): zone for zone in available_timezones()}
        close = [known[match] for match in get_close_matches(name.lower(), known, 3)]
        hint = f"; did you mean {' or '.join(close)}?" if close else ' like "Europe/Berlin"'
        raise SetupError(f"{name!r} is not an IANA time zone{hint}") from None

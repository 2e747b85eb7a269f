"""When flows of the bench reached their first line: they write `KEY NANOSECONDS` into a file."""

from __future__ import annotations

from pathlib import Path


def read(path: Path) -> dict[str, float]:
    """Return seconds since 1970 by key, of the first stamp each."""
    found: dict[str, float] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            key, nanoseconds = line.rsplit(" ", 1)
            found.setdefault(key, int(nanoseconds) / 1e9)
    return found

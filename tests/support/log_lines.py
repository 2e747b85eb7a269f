"""Log lines as values, for tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from turnout.service.telemetry import logs


@contextmanager
def logged(level: str = "info") -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged inside; the list is filled at the end. `message` is a line's name."""
    lines: list[dict[str, Any]] = []
    stream = io.StringIO()
    undo = logs.configure("json", level, stream)
    try:
        yield lines
    finally:
        undo()
        lines += [orjson.loads(text) for text in stream.getvalue().splitlines()]

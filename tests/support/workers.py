"""Workers test this checkout side by side, and a test that measures time runs alone.

`deploy/test` starts the workers. A test marked `alone` begins when what other workers run has
ended, and they begin nothing before its own end. Waiting for that is not part of its timeout.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DOOR, ROOM = Path(__file__), Path(__file__).with_name("__init__.py")
"""What is locked: two files that every worker has, and that nobody locks for another purpose."""


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside the clock of pytest-timeout
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Run beside others, or alone among the processes that test this checkout."""
    with DOOR.open() as door, ROOM.open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # who waits for the room lets nobody else in
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a forked child may still have the file open


# ---- what a worker sends


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    return _as_utf8((yield))


def _as_utf8(value: Any) -> Any:
    """Return a report in which half a character, which tests print, is an escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_utf8(key): _as_utf8(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as_utf8(each) for each in value)
    return value

"""The event of a file: exact bytes, a name fit to be shown, the same for the same version."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from turnout.triggers.files.file_version import FileVersion, displayed, file_event
from turnout.triggers.files.scan import Version

VERSION = Version(7, 100, 1_000_000_001, 5)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.csv", "plain.csv"),
        ("grün \U0001f600".encode(), "grün \U0001f600"),
        (b"new\nline", "new\\nline"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"bad\xff", "bad\\xff"),
        ("rtl\u202etxt".encode(), "rtl\\u202etxt"),
    ],
)
def test_bytes_are_exact_and_the_display_is_safe(name: bytes, shown: str) -> None:
    path = os.fsdecode(name)
    event = file_event("/in", FileVersion(path, VERSION), time=NOON)
    assert event.path is not None
    assert os.fsencode(event.path) == b"/in/" + name
    assert event.subject == event.data["name"] == displayed(path) == shown
    assert event.data["path"] == f"/in/{shown}"
    assert event.source == "file:///in"


def test_the_same_version_is_the_same_event() -> None:
    first = file_event("/in", FileVersion("a", VERSION), time=NOON)
    again = file_event("/in", FileVersion("a", VERSION._replace(changed_ns=9)), time=NOON)
    assert (first.id, first.body) == (again.id, again.body)
    assert not first.minted
    others = [
        FileVersion("b", VERSION),
        FileVersion("a", VERSION._replace(inode=8)),
        FileVersion("a", VERSION._replace(size=8)),
        FileVersion("a", VERSION._replace(mtime_ns=8)),
        FileVersion("a", VERSION, generation=1),
    ]
    ids = {file_event("/in", found, time=NOON).id for found in others}
    assert len(ids | {first.id}) == 6


def test_says_what_happened_and_what_is_wrong() -> None:
    event = file_event("/in", FileVersion("a", VERSION), time=NOON)
    assert event.type == "turnout.file.created"
    assert "fileerror" not in event.extensions
    changed = file_event("/in", FileVersion("a", VERSION, 1, True, "Permission denied"), time=NOON)
    assert changed.type == "turnout.file.changed"
    assert changed.extensions["fileerror"] == "Permission denied"
    assert changed.path == Path("/in/a")


@pytest.mark.parametrize(
    "mtime_ns",
    [-(2**63) - 1, -(2**63), -1, 0, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 253_402_300_799 * 10**9],
)
def test_any_time_a_file_may_have_is_told_to_the_nanosecond(mtime_ns: int) -> None:
    event = file_event("/in", FileVersion("a", VERSION._replace(mtime_ns=mtime_ns)), time=NOON)
    assert event.data["mtime_ns"] == mtime_ns
    assert event.data["name"] == "a"

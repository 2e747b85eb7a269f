"""Stored positions of files: every name as text and back, and a generation that never repeats."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from tests.support.trigger_contract import RecordingEmitter
from turnout.triggers.files.positions import GENERATION, FilePositions, partition_of, path_of
from turnout.triggers.files.scan import Version

ONE = Version(7, 100, 1_000_000_001, 5)
TWO = ONE._replace(mtime_ns=1_000_000_002)


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_name_survives_as_ascii_text(name: bytes) -> None:
    partition = partition_of(os.fsdecode(name))
    assert partition.isascii()
    assert partition.isprintable()
    assert os.fsencode(path_of(partition)) == name


def test_knows_a_version_by_inode_size_and_mtime_only() -> None:
    positions = FilePositions()
    assert not positions.knows("a", ONE)
    generation, rows = positions.opening("a", ONE)
    positions.apply(rows)
    assert generation == 0
    assert positions.knows("a", ONE._replace(changed_ns=99))
    for other in (TWO, ONE._replace(inode=70), ONE._replace(size=1000)):
        assert not positions.knows("a", other)


def test_the_generation_rises_when_a_file_goes_or_changes() -> None:
    positions = FilePositions()
    positions.apply(positions.opening("a", ONE)[1])
    changed, rows = positions.opening("a", TWO)
    positions.apply(rows)
    back, rows = positions.opening("a", ONE)
    positions.apply(rows)
    positions.apply(positions.closing(["a"]))
    again, rows = positions.opening("a", ONE)
    assert [changed, back, again] == [1, 2, 3]
    assert "a" not in positions
    assert len(positions) == 0


def test_nothing_moves_before_it_is_stored() -> None:
    positions = FilePositions()
    assert positions.opening("a", ONE) == positions.opening("a", ONE)
    assert "a" not in positions


def test_closed_files_leave_nothing_but_the_counter() -> None:
    positions, stored = FilePositions(), dict[str, str | None]()
    for number in range(100):
        for rows in (positions.opening(f"f{number}", ONE)[1], positions.closing([f"f{number}"])):
            # as the journal does, a row is forgotten when its value is None
            stored |= rows
            positions.apply(rows)
    assert {name for name, value in stored.items() if value is not None} == {GENERATION}


async def test_loads_what_the_journal_holds() -> None:
    emit = RecordingEmitter()
    first, second = FilePositions(), FilePositions()
    for path in ("a", os.fsdecode(b"s/\xff\n")):
        rows = first.opening(path, ONE)[1]
        await emit([], rows)
        first.apply(rows)
    await emit([], first.closing(["a"]))
    await second.load(emit)
    assert list(second) == [os.fsdecode(b"s/\xff\n")]
    assert second.generation == 1


def test_a_plain_path_is_its_own_partition_so_that_one_string_serves_all_who_remember_it() -> None:
    path = "orders/a b (1).csv"
    assert partition_of(path) is path_of(path) is path

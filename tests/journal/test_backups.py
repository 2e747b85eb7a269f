"""A backup file is whole or refused, whatever happened to it, and old journals are restored too."""

from __future__ import annotations

import io
import random
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.data.journals import make
from tests.support.old_service import copy_journal
from tests.support.program import turnout
from turnout.service.domain.errors import BackupError, SetupError
from turnout.service.domain.units import utc_now
from turnout.service.journal.backups import (
    make_backup,
    prune_backups,
    read_backup,
    read_status,
    restore_backup,
    write_status,
)
from turnout.service.journal.records import BackupContents, BackupStatus, RestoredTo
from turnout.service.journal.sqlite import migrations
from turnout.service.journal.sqlite.blobs import BlobStore, name_of
from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.journal.sqlite.examine import CHECKS
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder
from turnout.service.journal.sqlite.migrations import newest_version

pytestmark = pytest.mark.slow

OLD = sorted(make.HERE.glob("v*"))
LARGE = b"a large result" * 1000
CHANCES = 300


def nothing(_done: int, _total: int) -> None:
    """Note no progress."""


def back_up(data: Path, to: Path, now: Callable[[], datetime] = utc_now) -> BackupContents:
    return make_backup(data, to, now=now, min_free_bytes=0, progress=nothing)


def restore(file: Path, data: Path) -> RestoredTo:
    _, restored = restore_backup(file, data, now=utc_now, min_free_bytes=0, progress=nothing)
    return restored


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of a database by table."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for (name,) in tables.fetchall()
        }
    finally:
        connection.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return the data folder of a journal that has a large result in a file."""
    folder = tmp_path / "data"
    (folder / "journal").mkdir(parents=True, mode=0o700)
    connection = open_for_writing(folder, synchronous="full")
    blobs = BlobStore(folder / "journal")
    with blobs.hold(name_of(LARGE)):
        blobs.write(name_of(LARGE), LARGE)
    connection.execute(
        "INSERT INTO cache (key, task, run_id, encoding, blob, stored_at, expires_at)"
        " VALUES (x'01', 'draw', 'r', 'json', ?, 0, 0)",
        (name_of(LARGE),),
    )
    connection.close()
    return folder


@pytest.fixture
def backup(data: Path, tmp_path: Path) -> Path:
    """Return a backup of it."""
    return back_up(data, tmp_path / "backups").file


@pytest.mark.parametrize("old", OLD, ids=lambda path: str(path.name))
def test_a_journal_of_any_version_is_restored_as_it_was_and_upgraded_by_the_next_start(
    old: Path, tmp_path: Path
) -> None:
    data, again = tmp_path / "data", tmp_path / "again"
    copy_journal(old, data)
    before = rows(journal_folder(data) / FILE_NAME)
    held = back_up(data, tmp_path / "backups")
    assert restore(held.file, again) == RestoredTo(data=again, moved_to=None)
    assert rows(again / "journal" / FILE_NAME) == before
    connection = open_for_writing(again, synchronous="full")
    try:
        assert int(connection.pragma("user_version")) == newest_version() >= held.version
        assert [problem for _, check in CHECKS if (problem := check(connection))] == []
    finally:
        connection.close()


def test_a_backup_of_a_newer_turnout_is_refused_and_changes_nothing(
    data: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(data.rglob("*"))
    monkeypatch.setattr(migrations, "newest_version", lambda: 5)
    with pytest.raises(SetupError, match="upgrade turnout"):
        restore(backup, data)
    assert sorted(data.rglob("*")) == before


def test_what_is_restored_is_what_was_backed_up_and_the_old_journal_is_moved_aside(
    data: Path, backup: Path
) -> None:
    before, marker = rows(data / "journal" / FILE_NAME), (data / "journal-id").read_text()
    (data / "journal" / "journal.db").write_bytes(b"spoilt")
    (data / "journal-id").write_text("4711\n")
    (data / "approval-key").write_text("secret")
    restored = restore(backup, data)
    assert restored.moved_to is not None
    assert (restored.moved_to / "journal.db").read_bytes() == b"spoilt"
    assert rows(data / "journal" / FILE_NAME) == before
    assert (data / "journal-id").read_text() == marker, "the next start takes it for its own"
    assert BlobStore(data / "journal").read(name_of(LARGE)) == LARGE
    assert (data / "approval-key").read_text() == "secret", "keys stay where they are"
    modes = {path.stat().st_mode & 0o777 for path in (data / "journal").rglob("*")}
    assert modes == {0o600, 0o700}
    open_for_writing(data, synchronous="full").close()


def test_a_journal_of_an_earlier_version_in_the_root_of_its_folder_is_moved_aside(
    data: Path, backup: Path
) -> None:
    for path in list((data / "journal").iterdir()):
        path.rename(data / path.name)
    (data / "journal").rmdir()
    (data / "journal-v9.db").write_text("a snapshot")
    restored = restore(backup, data)
    assert restored.moved_to is not None
    moved = {path.name for path in restored.moved_to.iterdir()}
    assert moved >= {FILE_NAME, "results", "journal-v9.db"}
    assert not (data / FILE_NAME).exists()
    open_for_writing(data, synchronous="full").close()


def test_any_tar_unpacks_a_backup_and_only_its_owner_reads_it(backup: Path, tmp_path: Path) -> None:
    assert backup.stat().st_mode & 0o777 == 0o600
    with tarfile.open(backup) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "by-hand", filter="data")
    blob = name_of(LARGE)
    assert names == ["journal.db", f"results/{blob[:2]}/{blob}", "manifest.json"]
    assert rows(tmp_path / "by-hand" / FILE_NAME)["cache"]


def test_keys_and_tokens_are_not_in_a_backup(data: Path, tmp_path: Path) -> None:
    secrets = {"api-token": b"token-of-the-api", "approval-key": b"key-of-the-links"}
    for name, text in secrets.items():
        (data / name).write_bytes(text)
    content = back_up(data, tmp_path / "backups").file.read_bytes()
    assert not [name for name, text in secrets.items() if text in content]


def contents(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        members = [(each.name, tar.extractfile(each)) for each in tar]
        return {name: b"" if member is None else member.read() for name, member in members}


def test_a_byte_that_changed_anywhere_is_noticed(backup: Path, seed: int) -> None:
    """Where it is not, nothing has changed: in a tar, the digits of a checksum end in any byte."""
    whole, dice, before, unnoticed = backup.read_bytes(), random.Random(seed), contents(backup), 0
    with tarfile.open(backup) as tar:
        spans = [(each.offset, each.offset_data + each.size) for each in tar]
        spans += [(each.offset, each.offset_data) for each in tar]
    for begin, end in spans:
        for at in {begin, end - 1, *(dice.randrange(begin, end) for _ in range(CHANCES // 3))}:
            damaged = bytearray(whole)
            damaged[at] ^= 1 << dice.randrange(8)
            backup.write_bytes(damaged)
            try:
                read_backup(backup)
            except (BackupError, SetupError):
                continue
            assert contents(backup) == before
            unnoticed += 1
    assert unnoticed < CHANCES / 20


def test_a_file_that_was_cut_off_anywhere_is_noticed(backup: Path, seed: int) -> None:
    whole, dice = backup.read_bytes(), random.Random(seed)
    with tarfile.open(backup) as tar:
        end = max(each.offset_data + each.size for each in tar)
    for length in {0, 1, 512, end - 1, *(dice.randrange(end) for _ in range(CHANCES))}:
        backup.write_bytes(whole[:length])
        with pytest.raises(BackupError):
            read_backup(backup)


@pytest.mark.parametrize("kind", ["text", "empty", "tar", "database", "folder", "missing"])
def test_a_foreign_file_is_refused_by_name_and_the_journal_stays(
    kind: str, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    if kind == "text":
        file.write_text("hello" * 1000)
    elif kind == "empty":
        file.touch()
    elif kind == "tar":
        with tarfile.open(file, "w") as tar:
            member = tarfile.TarInfo(FILE_NAME)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"hello"))
    elif kind == "database":
        shutil.copyfile(data / "journal" / FILE_NAME, file)
    elif kind == "folder":
        file.mkdir()
    before = sorted(data.rglob("*"))
    with pytest.raises(BackupError, match=str(file)):
        restore(file, data)
    assert sorted(data.rglob("*")) == before


def test_a_tar_that_leads_out_of_the_folder_is_refused(backup: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.tar"
    with tarfile.open(changed, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in contents(backup).items():
            leads_out = name.startswith("results/")
            member = tarfile.TarInfo("results/../.." if leads_out else name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(BackupError, match="no results"):
        restore(changed, tmp_path / "again")


def test_pruning_deletes_the_oldest_of_this_journal_and_nothing_else(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    begin = utc_now().replace(microsecond=0)
    made = [
        back_up(data, folder, lambda number=number: begin + timedelta(hours=number)).file  # type: ignore[misc]  # a lambda's default
        for number in range(5)
    ]
    other = made[0].name.replace(made[0].name.split("-")[1], "0" * 16)
    foreign = [
        folder / name for name in (other, "notes.tar", f"{made[0].name}.gpg", "turnout-x.tar")
    ]
    for path in foreign:
        path.write_text("mine")
    assert prune_backups(data, folder, keep=2, newest=made[4]) == made[:3]
    assert sorted(folder.iterdir()) == sorted([*made[3:], *foreign])
    # A clock that was set back makes no backup that is deleted at once.
    late = back_up(data, folder, lambda: begin - timedelta(days=1)).file
    prune_backups(data, folder, keep=1, newest=late)
    assert sorted(folder.iterdir()) == sorted([late, *foreign])


def test_what_a_crash_left_is_deleted_by_the_next_backup(data: Path, backup: Path) -> None:
    left = backup.with_name(f".{backup.name}.part")
    left.write_text("half")
    back_up(data, backup.parent)
    assert not left.exists()


def test_the_writer_deletes_no_results_while_a_backup_is_made(data: Path, tmp_path: Path) -> None:
    blobs, seen = BlobStore(data / "journal"), []
    connection = open_for_writing(data, synchronous="full")
    connection.execute("DELETE FROM cache")

    def sweep(_done: int, _total: int) -> None:
        seen.append(blobs.sweep(connection, blobs.names()))

    try:
        make_backup(data, tmp_path / "to", now=utc_now, min_free_bytes=0, progress=sweep)
        assert set(seen) == {None}
        assert blobs.sweep(connection, blobs.names()) == len(LARGE)
    finally:
        connection.close()


@pytest.mark.parametrize("harm", ["missing", "damaged", "shorter"])
def test_a_result_that_the_journal_has_lost_keeps_nothing_else_out_of_a_backup(
    data: Path, tmp_path: Path, harm: str
) -> None:
    path = BlobStore(data / "journal").path(name_of(LARGE))
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(LARGE[:-1] + b"?" if harm == "damaged" else LARGE[:-1])
    made = back_up(data, tmp_path / "backups")
    assert (made.lost, made.files) == ((name_of(LARGE),), 0)
    again = tmp_path / "again"
    restore(made.file, again)
    assert rows(again / "journal" / FILE_NAME) == rows(journal_folder(data) / FILE_NAME)

    folder, asked = tmp_path / "more", ("--data", data)
    told = turnout("backup", "--to", folder, *asked)
    assert told.returncode == 1
    assert name_of(LARGE) in told.stderr
    (file,) = folder.glob("*.tar")
    looked = turnout("restore", file, "--check", *asked)
    assert looked.returncode == 0 and "not whole" in looked.stdout
    status = read_status(data)
    assert status is not None and status.failure is not None and status.taken_at is not None


def test_a_second_backup_at_the_same_time_is_refused(data: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def begin_another(_done: int, _total: int) -> None:
        if not said:
            said.append("")
            with pytest.raises(BackupError, match="another backup") as refusal:
                back_up(data, tmp_path / "other")
            said.append(str(refusal.value))

    make_backup(data, tmp_path / "to", now=utc_now, min_free_bytes=0, progress=begin_another)
    assert str(data) in said[1]


def test_how_backups_go_reads_as_it_was_written(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    for status in (
        BackupStatus(taken_at=datetime(2026, 1, 31, 9, tzinfo=UTC), failure=None),
        BackupStatus(taken_at=None, failure="the disk is full"),
    ):
        write_status(tmp_path, status)
        assert read_status(tmp_path) == status
    (tmp_path / "backup-status.json").write_text("{")
    assert read_status(tmp_path) is None

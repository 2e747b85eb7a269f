"""A journal of an earlier version is copied before it is upgraded, and no crash spoils either."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.data.journals import make
from tests.support import schema
from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import utc_now
from turnout.service.journal.sqlite.connection import open_for_writing, read_all
from turnout.service.journal.sqlite.examine import CHECKS
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder
from turnout.service.journal.sqlite.migrations import KEPT_SECONDS, newest_version
from turnout.service.journal.sqlite.runs import queued_from
from turnout.service.journal.sqlite.work_reads import QUEUED_AT_KEY, QUEUED_IN_ORDER, queued_text

OLD = [path for path in sorted(make.HERE.glob("v*")) if path.name != f"v{newest_version()}"]
COUNTS = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM runs), count(*) FROM steps"


@pytest.fixture(params=OLD, ids=lambda path: str(path.name))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of an old journal's data folder."""
    return copied(request.param, tmp_path / "data")


def copied(source: Path, data: Path) -> Path:
    shutil.copytree(source, data, copy_function=shutil.copyfile)
    for path in (data, *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return data


def look(path: Path) -> tuple[int, Any]:
    """Return the version of a database, which must be whole, and how much is in it."""
    connection = apsw.Connection(str(path))
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return int(connection.pragma("user_version")), connection.execute(COUNTS).get
    finally:
        connection.close()


def upgrade(data: Path, *, min_free_bytes: int = 0) -> None:
    open_for_writing(data, synchronous="full", min_free_bytes=min_free_bytes).close()


def test_there_are_old_journals() -> None:
    assert OLD


def test_an_upgrade_keeps_a_snapshot_of_the_old_journal_beside_the_new_one(old: Path) -> None:
    journal = journal_folder(old) / FILE_NAME
    version, content = look(journal)
    connection = open_for_writing(old, synchronous="full")
    assert [problem for name, check in CHECKS if (problem := check(connection))] == []
    connection.close()
    assert look(journal) == (newest_version(), content)
    snapshot = journal.with_name(f"journal-v{version}.db")
    assert look(snapshot) == (version, content)
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600


def test_a_state_that_was_not_changed_for_long_counts_as_used_when_its_use_is_first_noted(
    tmp_path: Path,
) -> None:
    data = copied(make.HERE / "v24", tmp_path / "data")
    journal = journal_folder(data) / FILE_NAME
    connection = apsw.Connection(str(journal))
    connection.execute(
        "INSERT INTO flow_state (flow, key, version, value, run_id, changed_at)"
        " VALUES ('polls', 'anna', 1, CAST('7' AS BLOB), 'run', 1)"
    )
    connection.close()
    begun = int(utc_now().timestamp()) * 1_000_000
    upgrade(data)
    connection = apsw.Connection(str(journal))
    used_at = connection.execute("SELECT used_at FROM flow_state WHERE key = 'anna'").get
    connection.close()
    assert begun <= used_at <= utc_now().timestamp() * 1_000_000


def test_runs_that_wait_keep_their_order_when_runs_get_an_arrival(tmp_path: Path) -> None:
    data = copied(make.HERE / "v24", tmp_path / "data")
    connection = apsw.Connection(str(journal_folder(data) / FILE_NAME))
    last = int(connection.execute("SELECT max(seq) FROM runs").get)
    for n in (1, 2, 3):
        connection.execute(
            "INSERT INTO runs (seq, id, event_seq, flow, state, token, order_key, keys, queued_at)"
            " VALUES (?, ?, ?, 'waits', 'queued', 0, 'k', '{\"limit\": \"a\"}', 9 - ?)",
            (last + n, f"run-{n}", last + n, n),
        )
        connection.execute("INSERT INTO run_keys VALUES ('waits', 'limit', 'a', ?)", (last + n,))
    connection.close()
    connection = open_for_writing(data, synchronous="full")
    asked = {
        queued_text(of_class=False): ("waits", 0, 2**62, 9, None),
        QUEUED_IN_ORDER: ("waits", "k", 0, 9),
        QUEUED_AT_KEY: ("waits", "limit", "a", 0, None, 9),
    }
    for text, values in asked.items():
        runs = [queued_from(row) for row in read_all(connection, text, values)]
        assert [run.id for run in runs] == ["run-1", "run-2", "run-3"]
        assert [run.arrival for run in runs] == [run.seq for run in runs]
    connection.close()


def test_no_condition_on_the_hot_path_needs_a_table(old: Path) -> None:
    connection = open_for_writing(old, synchronous="full")
    texts = [row[0] for row in connection.execute("SELECT sql FROM sqlite_schema")]
    connection.close()
    assert [text for text in texts if text and "state IN" in text] == []


def test_a_new_journal_is_what_the_migrations_lead_to() -> None:
    written = schema.FILE.read_text("utf-8")
    assert written == schema.schema(), "make it again: python -m tests.support.schema"


def test_the_snapshot_brings_the_old_journal_back(old: Path, tmp_path: Path) -> None:
    journal = journal_folder(old) / FILE_NAME
    before = look(journal)
    upgrade(old)
    snapshot = journal.with_name(f"journal-v{before[0]}.db")
    snapshot.replace(journal)
    for log in journal.parent.glob(f"{FILE_NAME}-*"):
        log.unlink()
    assert look(journal) == before
    upgrade(old)
    assert look(journal) == (newest_version(), before[1])


def test_an_upgrade_without_space_for_the_snapshot_changes_nothing(old: Path) -> None:
    journal = journal_folder(old) / FILE_NAME
    before = look(journal)
    with pytest.raises(SetupError, match=r"needs \d+ bytes free; the disk has \d+: free some"):
        upgrade(old, min_free_bytes=2**60)
    assert look(journal) == before
    assert list(journal.parent.glob("journal-v*")) == []


def test_the_snapshot_goes_at_the_first_start_after_a_week(old: Path) -> None:
    upgrade(old)
    (snapshot,) = journal_folder(old).glob("journal-v*.db")
    upgrade(old)
    assert snapshot.exists()
    made = snapshot.stat().st_mtime - KEPT_SECONDS
    os.utime(snapshot, (made, made))
    upgrade(old)
    assert not snapshot.exists()


def killed_at(data: Path, statement: int) -> bool:
    """Upgrade in a process of its own that is killed before a statement; False if there are fewer.

    `PRAGMA`s and the copy of the snapshot are statements like any other.
    """
    process = os.fork()
    if process == 0:
        left = statement

        def run(*_statement: Any) -> bool:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return True

        try:
            apsw.connection_hooks.append(lambda connection: connection.set_exec_trace(run))
            upgrade(data)
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_kill_at_any_statement_of_an_upgrade_loses_nothing(
    tmp_path: Path, seed: int, full: bool
) -> None:
    source = OLD[0]
    before = look(journal_folder(copied(source, tmp_path / "before")) / FILE_NAME)
    apart = 1 if full else 5
    statement = 1 + seed % apart
    while killed_at(data := copied(source, tmp_path / f"at-{statement}"), statement):
        journal = journal_folder(data) / FILE_NAME
        version, content = look(journal)
        assert content == before[1], f"at statement {statement}"
        if version > before[0]:  # it went on only once the snapshot was there
            assert look(journal.with_name(f"journal-v{before[0]}.db")) == before
        upgrade(data)
        assert look(journal) == (newest_version(), before[1])
        assert look(journal.with_name(f"journal-v{before[0]}.db")) == before
        shutil.rmtree(data)
        statement += apart
    assert statement > 20

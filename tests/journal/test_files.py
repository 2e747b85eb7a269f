"""The journal's files: gone, cut off, damaged, somebody else's, or at the place of old versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.program import Program, environment, turnout
from turnout.service.domain.errors import SetupError
from turnout.service.governance.links import load_or_make_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FLOWS = """
from turnout import flow, webhook

@flow(on=webhook("/note"))
async def note(data: dict) -> str:
    return "x" * 2000
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log") as program:
        yield program


def post(program: Program, count: int = 1) -> None:
    for number in range(count):
        answer = program.ask(
            "/hooks/note", method="POST", body=b"{}", headers={"Idempotency-Key": f"k{number}"}
        )
        assert answer is not None and answer.status == 202


def serve_and_stop(program: Program, count: int = 1) -> None:
    """Serve, accept, and stop."""
    program.start().ready()
    post(program, count)
    program.quiet(10)
    assert program.stop() == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a service that has accepted one event, and has stopped."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "flows.py").write_text(FLOWS)
    with Program(flows=folder / "flows.py", data=folder / "data", log=folder / "log") as program:
        serve_and_stop(program)
    return folder / "data"


@pytest.fixture
def stopped(program: Program, served: Path) -> Program:
    """A program that was served, and has stopped."""
    shutil.copytree(served, program.data)
    return program


def refusal(program: Program, code: int = 78) -> str:
    """Start the program, which must end by itself with `code`; returns what it said."""
    said = len(program.log_text())
    assert program.start().ended(20) == code, program.log_text()[said:]
    text = program.log_text()[said:]
    assert "Traceback" not in text
    return text


def truncate(file: Path) -> None:
    os.truncate(file, 0)


def replace(file: Path) -> None:
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


# ---------------------------------------------------------------- while it is served


@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal"])
@pytest.mark.parametrize("harm", [Path.unlink, truncate, replace])
def test_a_file_that_is_lost_under_the_service_ends_it(
    program: Program, name: str, harm: Callable[[Path], object]
) -> None:
    program.start().ready()
    file = program.data / "journal" / name
    harm(file)
    assert program.ended(10) == 74
    program.said(rf"journal.broken.*({file} was|the journal is damaged)", 1)


def test_what_is_in_a_removed_log_is_saved(program: Program) -> None:
    program.start().ready()
    post(program, 20)
    program.quiet(10)
    (program.data / "journal" / "journal.db-wal").unlink()
    assert program.ended(10) == 74
    program.start().ready()
    assert len(program.api("/runs")["items"]) == 20
    assert program.stop() == 0
    program.check_journal()


def test_a_log_that_is_cut_off_and_written_on_ends_the_service(program: Program) -> None:
    program.start().ready()
    os.truncate(program.data / "journal" / "journal.db-wal", 0)
    with suppress(AssertionError):
        post(program, 20)
    assert program.ended(10) == 74
    assert "journal.db-wal was cut off" in program.log_text()


def test_a_file_that_is_lost_just_before_the_stop_is_told_of(program: Program) -> None:
    program.start().ready()
    post(program)
    (program.data / "journal" / "journal.db").unlink()
    assert program.stop() == 74


def test_a_reader_that_meets_damage_ends_the_service(program: Program) -> None:
    serve_and_stop(program, 40)
    program.start().ready()
    database = program.data / "journal" / "journal.db"
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (database.stat().st_size - 4096))
    token = (program.data / "api-token").read_text().strip()
    program.ask("/api/runs", headers={"Authorization": f"Bearer {token}"})
    assert program.ended(10) == 74
    assert "the journal is damaged" in program.log_text()


# ---------------------------------------------------------------- at start


def test_a_damaged_journal_is_not_served(program: Program) -> None:
    serve_and_stop(program, 200)
    database = program.data / "journal" / "journal.db"
    size = database.stat().st_size
    with database.open("r+b") as file:  # somewhere behind what is read at the start
        file.seek(size - 30 * 4096)
        file.write(b"\xa5" * 20 * 4096)
    assert "is damaged" in refusal(program, 74)


def test_a_journal_that_is_gone_is_not_begun_anew(stopped: Program) -> None:
    database = stopped.data / "journal" / "journal.db"
    kept = database.read_bytes()
    database.unlink()
    text = refusal(stopped)
    assert f"the journal {database} is gone" in text and "restore it from a backup" in text
    database.write_bytes(b"")
    text = refusal(stopped)
    assert f"{database} is empty" in text and "restore it from a backup" in text
    database.write_bytes(kept)
    database.chmod(0o600)
    stopped.start().ready()
    assert len(stopped.api("/runs")["items"]) == 1
    assert stopped.stop() == 0
    for file in (database, stopped.data / "journal-id"):
        file.unlink()  # as the refusal says, to begin anew; the token and the key may stay
    stopped.start().ready()
    assert stopped.api("/runs")["items"] == []


def test_another_journal_than_the_last_is_refused(program: Program, tmp_path: Path) -> None:
    serve_and_stop(program)
    other = Program(flows=program.flows, data=tmp_path / "other", log=tmp_path / "log2")
    with other:
        serve_and_stop(other)
    shutil.copy(other.data / "journal" / "journal.db", program.data / "journal" / "journal.db")
    assert "is another journal than the one that was here" in refusal(program)


# ---------------------------------------------------------------- whose it is


def test_a_data_folder_that_all_may_write_has_a_journal_of_our_own(program: Program) -> None:
    program.data.mkdir()
    program.data.chmod(0o777)  # as the root of a volume often is
    serve_and_stop(program)
    assert (program.data / "journal").stat().st_mode & 0o777 == 0o700
    assert turnout("doctor", "--data", program.data).returncode == 0


@pytest.mark.parametrize("mode", [0o666, 0o606, 0o660, 0o777])
@pytest.mark.parametrize("name", ["journal/journal.db", "api-token", "approval-key", "journal"])
def test_what_others_may_write_is_refused(stopped: Program, name: str, mode: int) -> None:
    (stopped.data / name).chmod(mode | 0o100 * (name == "journal"))
    text = refusal(stopped)
    assert "others may write" in text and "chmod go-w" in text


def test_the_group_of_a_pod_is_not_others(stopped: Program) -> None:
    folders = [stopped.data, *(each for each in stopped.data.rglob("*") if each.is_dir())]
    for folder in folders:  # what Kubernetes does to a volume with `fsGroup`
        for file in folder.iterdir():
            file.chmod(file.stat().st_mode | (0o2070 if file.is_dir() else 0o060))
        folder.chmod(0o2770)
    stopped.start().ready()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("name", ["journal/journal.db", "api-token", "approval-key", "journal"])
def test_what_belongs_to_someone_else_is_refused(stopped: Program, name: str) -> None:
    os.chown(stopped.data / name, 12345, 12345)
    assert "belongs to user 12345" in refusal(stopped)


@pytest.mark.parametrize("key", ["", "00" * 31, "00" * 33, "zz" * 32])
def test_a_key_of_another_length_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "approval-key").write_text(key)
    (tmp_path / "approval-key").chmod(0o600)
    with pytest.raises(SetupError, match="key of approval links"):
        load_or_make_key(tmp_path)


# ---------------------------------------------------------------- the lock


def test_a_removed_lock_file_lets_no_second_service_in(program: Program, tmp_path: Path) -> None:
    program.start().ready()
    (program.data / "lock").unlink()
    second = Program(flows=program.flows, data=program.data, log=tmp_path / "log2")
    with second:
        assert "is in use by another process" in refusal(second)
    assert turnout("runs", "--data", program.data).returncode == 0
    assert program.stop() == 0


def test_a_lock_that_is_a_link_is_not_followed(program: Program, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    program.data.mkdir()
    (program.data / "lock").symlink_to(tmp_path / "precious")
    assert f"{program.data / 'lock'} is a symbolic link" in refusal(program)
    assert (tmp_path / "precious").read_text() == "precious"


# ---------------------------------------------------------------- places


def test_a_journal_at_the_place_of_earlier_versions_is_served_there(stopped: Program) -> None:
    for file in (stopped.data / "journal").iterdir():
        file.rename(stopped.data / file.name)
    (stopped.data / "journal").rmdir()
    (stopped.data / "journal-id").unlink()
    stopped.start().ready()
    assert len(stopped.api("/runs")["items"]) == 1
    assert len(turnout("runs", "--data", stopped.data, "--json").stdout.splitlines()) == 1
    post(stopped, 2)
    assert stopped.stop() == 0
    assert not (stopped.data / "journal").exists()
    stopped.check_journal()


def test_two_journals_in_a_data_folder_are_refused(stopped: Program) -> None:
    shutil.copy(stopped.data / "journal" / "journal.db", stopped.data / "journal.db")
    assert "has two journals" in refusal(stopped)


@pytest.fixture
def read_only(stopped: Program) -> Iterator[Path]:
    """A stopped service's data folder, to be made read-only."""
    yield stopped.data
    for folder in (stopped.data, stopped.data / "journal"):
        folder.chmod(0o700)


def look(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an owner who may not write, which root without its powers is too."""
    for each in (copy, *copy.rglob("*")):
        each.chmod(0o500 if each.is_dir() else 0o400)
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*prefix, sys.executable, "-m", "turnout.service.cli", *arguments, "--data", str(copy)],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", ["runs", "events", "doctor"])
def test_a_folder_that_can_only_be_read_is_read(read_only: Path, command: str) -> None:
    found = look(read_only, command)
    assert found.returncode == 0, found.stderr
    assert not list(read_only.rglob("*-wal"))


def test_a_log_that_cannot_be_folded_in_is_said(read_only: Path) -> None:
    (read_only / "journal" / "journal.db-wal").write_bytes(b"some rows")
    found = look(read_only, "runs")
    assert found.returncode == 78
    assert "journal.db-wal" in found.stderr and "copy the data folder" in found.stderr

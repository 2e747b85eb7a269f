"""A start that would be unsafe is refused, with what is wrong and what to do, and harms nothing."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.program import Program, turnout

FLOWS = Path(__file__).parent / "flows" / "work.py"

pytestmark = pytest.mark.timeout(60)


def program_in(folder: Path) -> Program:
    return Program(
        flows=FLOWS,
        data=folder / "data",
        log=folder / "log",
        env={
            "TURNOUT_TEST_WITNESS": str(folder / "witness"),
            "TURNOUT_TEST_GATE": str(folder / "gate"),
        },
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a program that has served, accepted and run something, and was stopped."""
    with program_in(tmp_path_factory.mktemp("served")) as program:
        program.start().ready()
        for _ in range(50):
            answer = program.ask("/hooks/minted", method="POST")
            assert answer is not None and answer.status == 202
        program.quiet(10)
        assert program.stop() == 0
    return program.data


@pytest.fixture
def stopped(served: Path, tmp_path: Path) -> Program:
    """A program that has served, accepted and run something, and was stopped."""
    program = program_in(tmp_path)
    shutil.copytree(served, program.data)
    return program


def refusal(program: Program) -> str:
    """Start the program, which must end by itself, untouched; returns what it said."""
    database = program.data / "journal" / "journal.db"
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    said = len(program.log_text())
    with program:
        code = program.start().ended(15)
    text = program.log_text()[said:]
    assert code not in (0, 70), text
    assert "Traceback" not in text, text
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before, "the file was changed"
    return text


def test_an_intact_journal_is_served_again(stopped: Program) -> None:
    with stopped as program:
        program.start().ready()
        assert program.stop() == 0


def test_a_journal_of_a_newer_turnout_is_refused(stopped: Program) -> None:
    with closing(sqlite3.connect(stopped.data / "journal" / "journal.db")) as database:
        database.execute("PRAGMA user_version = 9999")
        database.commit()
    text = refusal(stopped)
    assert "9999" in text and "upgrade turnout" in text


def test_a_journal_with_a_damaged_head_is_refused(stopped: Program) -> None:
    database = stopped.data / "journal" / "journal.db"
    with database.open("r+b") as file:
        file.write(b"not a database at all" * 5)
    text = refusal(stopped)
    assert str(database) in text and "backup" in text


def test_a_journal_with_a_damaged_middle_is_refused_or_reported(stopped: Program) -> None:
    database = stopped.data / "journal" / "journal.db"
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    doctor = turnout("doctor", "--data", stopped.data)
    assert doctor.returncode != 0, doctor.stdout
    text = refusal(stopped)
    assert str(database) in text and "backup" in text


def test_another_programs_database_is_refused(stopped: Program) -> None:
    database = stopped.data / "journal" / "journal.db"
    database.unlink()
    with closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
        other.commit()
    assert "another program" in refusal(stopped)


def test_a_second_process_is_refused_with_the_pid_of_the_first(
    stopped: Program, tmp_path: Path
) -> None:
    second = Program(flows=FLOWS, data=stopped.data, log=tmp_path / "second.log", env=stopped.env)
    with stopped as first, second:
        first.start().ready()
        code = second.start().ended(15)
        text = second.log_text()
        assert code not in (0, 70), text
        assert f"process {first.pid}" in text and f":{first.port}" in text
        assert first.alive and first.stop() == 0

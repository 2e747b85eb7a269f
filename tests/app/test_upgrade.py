"""A large old journal is upgraded by the real program, killed on the way, and brought back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.conftest import Say
from tests.data.journals import make
from tests.support.grown_journal import grow
from tests.support.old_service import copy_journal
from tests.support.program import Answer, Program, turnout, until
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder

OLD = "v24"
FOREVER = {f"TURNOUT_{name}": "30000d" for name in ("DEDUPE", "KEEP_FINISHED", "KEEP_FAILED")}

# So that a small journal takes as long as a large one.
SLOW = """
import time
import turnout.service.journal.sqlite.migrations as migrations

class Slowly(list):
    def __iter__(self):
        for file in list.__iter__(self):
            time.sleep(0.2)
            yield file

after = migrations._steps_after
migrations._steps_after = lambda version: Slowly(after(version))
"""

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture
def program(tmp_path: Path, full: bool) -> Iterator[Program]:
    copy_journal(make.HERE / OLD, tmp_path / "data")
    grow(tmp_path / "data", 1_000_000 if full else 2_000)
    for name in ("flows.py", "kept_types.py"):
        shutil.copy(make.HERE / name, tmp_path)
    with Program(
        flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log",
        env={**make.SETTINGS, **FOREVER}, sabotage="" if full else SLOW,
    ) as program:  # fmt: skip
        yield program


def count(program: Program) -> list[int]:
    connection = apsw.Connection(str(journal_folder(program.data) / FILE_NAME))
    try:
        version = int(connection.pragma("user_version"))
        tables = ("events", "runs", "steps")
        return [
            version,
            *(int(connection.execute(f"SELECT count(*) FROM {t}").get) for t in tables),
        ]
    finally:
        connection.close()


def upgrading(program: Program, doing: str) -> Answer:
    """Wait until `/readyz` says what is being done."""

    def said() -> Answer | None:
        answer = program.ask("/readyz")
        return answer if answer is not None and doing in answer.body.decode() else None

    return until(said, 120, f"/readyz says {doing!r}")


def test_an_upgrade_is_seen_survives_a_kill_and_has_a_way_back(program: Program, say: Say) -> None:
    before = count(program)
    plan = turnout("upgrade", "--plan", "--data", program.data)
    assert "version 24" in plan.stdout

    program.start()
    answer = upgrading(program, "before its upgrade")
    assert answer.status == 503
    refused = program.ask("/hooks/catches", method="POST", body=b"{}")
    assert refused is not None and refused.status == 503
    assert refused.headers["retry-after"] == "5" and b"upgrade" in refused.body
    health = program.ask("/healthz")
    assert health is not None and health.status == 200
    upgrading(program, "step 2")
    program.kill()

    say(f"ready {program.start().ready(300):.1f} s after the second start; the plan: {plan.stdout}")
    assert program.stop(60) == 0
    after = count(program)
    assert after[0] > before[0]
    assert after[1:3] == before[1:3]
    assert after[3] >= before[3]  # runs that waited have gone on
    doctor = turnout("doctor", "--data", program.data, timeout=300)
    assert doctor.returncode == 0, doctor.stdout

    # The way back of the page.
    own = journal_folder(program.data)
    (own / "journal-v24.db").replace(own / FILE_NAME)
    for name in ("-wal", "-shm"):
        (own / f"{FILE_NAME}{name}").unlink(missing_ok=True)
    assert count(program) == before
    program.start().ready(300)
    assert program.stop(60) == 0
    assert count(program)[1:3] == before[1:3]

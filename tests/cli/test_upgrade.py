"""`turnout upgrade` says what an upgrade takes, and does it while no service runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import apsw
import pytest

from tests.data.journals import make
from tests.support.old_service import copy_journal
from tests.support.program import Program, turnout
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder
from turnout.service.journal.sqlite.migrations import newest_version

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    copy_journal(make.HERE / "v24", tmp_path / "data")
    return tmp_path / "data"


def version_in(data: Path) -> int:
    connection = apsw.Connection(str(journal_folder(data) / FILE_NAME))
    try:
        return int(connection.pragma("user_version"))
    finally:
        connection.close()


def test_a_plan_changes_nothing_and_an_upgrade_is_done_once(data: Path) -> None:
    planned = json.loads(turnout("upgrade", "--plan", "--json", "--data", data).stdout)
    assert (planned["journal_version"], planned["newest_version"]) == (24, newest_version())
    assert planned["migrations"][-1].startswith(f"{newest_version():04}")
    assert planned["needed_bytes"] > planned["bytes"] > 0
    assert version_in(data) == 24
    shown = turnout("upgrade", "--plan", "--data", data).stdout
    assert "version 24" in shown and planned["migrations"][0] in shown

    done = turnout("upgrade", "--data", data)
    assert done.returncode == 0
    assert "journal-v24.db" in done.stdout
    assert version_in(data) == newest_version()
    assert (journal_folder(data) / "journal-v24.db").is_file()
    again = turnout("upgrade", "--data", data)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_too_little_space_is_said_before(data: Path) -> None:
    env = {"TURNOUT_MIN_FREE_BYTES": "1000000GiB"}
    plan = turnout("upgrade", "--plan", "--data", data, env=env)
    assert plan.returncode == 1 and "too little space" in plan.stdout
    refused = turnout("upgrade", "--data", data, env=env)
    assert refused.returncode == 78 and "free some" in refused.stderr
    assert version_in(data) == 24


def test_a_journal_in_use_or_a_newer_one_is_left_alone(data: Path, tmp_path: Path) -> None:
    for name in ("flows.py", "kept_types.py"):
        shutil.copy(make.HERE / name, tmp_path)
    with Program(
        flows=tmp_path / "flows.py", data=data, log=tmp_path / "log", env=make.SETTINGS
    ) as program:  # fmt: skip
        program.start().ready()
        beside = turnout("upgrade", "--data", data)
        assert beside.returncode == 0 and "nothing to do" in beside.stdout
        assert program.stop() == 0
    connection = apsw.Connection(str(journal_folder(data) / FILE_NAME))
    connection.pragma("user_version", 999)
    connection.close()
    newer = turnout("upgrade", "--plan", "--data", data)
    assert newer.returncode == 78 and "upgrade turnout" in newer.stderr
    nothing = turnout("upgrade", "--plan", "--data", tmp_path)
    assert nothing.returncode == 78 and "no journal" in nothing.stderr

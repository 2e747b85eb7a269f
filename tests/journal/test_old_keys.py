"""Runs with limit keys in a journal of an earlier version keep their keys when it is upgraded."""

from __future__ import annotations

import shutil
from pathlib import Path

import apsw
import pytest

from tests.data.journals import make
from tests.support.program import Program, turnout, until
from turnout.service.domain.foreign import short_key
from turnout.service.journal.sqlite.examine import CHECKS
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder
from turnout.service.journal.sqlite.migrations import migrate

KEYED = make.HERE / "keyed"
FOREVER = {f"TURNOUT_{name}": "30000d" for name in ("DEDUPE", "KEEP_FINISHED", "KEEP_FAILED")}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("old", sorted(KEYED.glob("v*")), ids=lambda path: str(path.name))
def test_runs_with_limit_keys_of_an_old_journal_go_on_one_a_key(old: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(old, data, copy_function=shutil.copyfile)
    for path in (data, *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.copy(KEYED / "flows.py", tmp_path)
    with Program(
        flows=tmp_path / "flows.py",
        data=data,
        log=tmp_path / "log",
        env={**make.SETTINGS, **FOREVER},
    ) as program:
        program.start().ready()
        (long, *_) = keys(data, "SELECT key FROM run_keys WHERE key LIKE 'sha256:%'")
        assert long == short_key("x" * 300), "as a key over 256 bytes is stored now"
        assert len(keys(data, "SELECT key FROM run_keys WHERE place = 'limit'")) == 7
        for n, customer in ((8, "anna"), (9, "x" * 300)):
            make.post(program, "bills", {"customer": customer, "n": n})
        assert turnout("resume", "bill", "--data", data, env=program.env).returncode == 0
        until(lambda: program.unfinished() == 0, 20, "every run at its end")
        runs = program.api("/runs?limit=100")["items"]
        results = [run["result"] for run in runs[::-1]]
        assert [n for _, n, _ in results] == [*range(1, 10)]
        assert {most for *_, most in results} == {1}, "never two of a customer at once"
        assert program.stop() == 0
        program.check_journal()


def keys(data: Path, query: str) -> list[str]:
    connection = apsw.Connection(
        str(journal_folder(data) / FILE_NAME), flags=apsw.SQLITE_OPEN_READONLY
    )
    try:
        return [str(row[0]) for row in connection.execute(query)]
    finally:
        connection.close()


def test_a_run_that_its_keys_do_not_find_is_a_problem_of_the_journal(tmp_path: Path) -> None:
    connection = apsw.Connection(":memory:")
    migrate(connection, tmp_path / FILE_NAME)
    check = dict(CHECKS)["every unfinished run is found by its keys"]
    connection.execute(
        "INSERT INTO runs (seq, id, event_seq, flow, state, token, keys, queued_at) VALUES"
        """ (1, 'one', 1, 'bill', 'queued', 0, '{"limit": "a", "limit.2": null}', 0)"""
    )
    assert check(connection) == "runs whose keys are missing, or left over: one"
    connection.execute("INSERT INTO run_keys VALUES ('bill', 'limit', 'a', 1, NULL)")
    assert check(connection) is None
    connection.execute("UPDATE runs SET state = 'succeeded'")
    assert check(connection) == "runs whose keys are missing, or left over: one"

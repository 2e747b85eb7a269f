"""Data to and from other systems: a PostgreSQL backup in S3, a drop over SFTP, polars and requests.

PostgreSQL and the SFTP server are real, S3 is moto's; the service is the real program, and is
killed at every boundary of a step.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest

from tests.bench.peers import services
from tests.faults.crash_points import forgetting
from tests.support import CHECKOUT
from tests.support.boundaries import behind_ours, killed_at
from tests.support.peer_server import stub
from tests.support.program import Program, killed_once, supervised, until
from tests.support.stand_ins import Cloud, sftp

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples"
PATIENCE = 120.0
"""Seconds; the machine may be busy with other tests."""

TOKEN = "the-token-of-this-test"


class Served:
    """An example that is served, with `folder` as its working folder."""

    def __init__(self, folder: Path, flows: Path, code: str, **env: str) -> None:
        self.folder = folder
        self.program = Program(
            flows=flows,
            data=folder / "data",
            log=folder / "log",
            env={"TURNOUT_API_TOKEN": TOKEN, "MARKER": str(folder / "marker"), **env},
            sabotage=f"import os; os.chdir({str(folder)!r})\n{code}",
        )

    def fire(self, trigger: str) -> None:
        """Have a tick now."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        path = f"/api/triggers/{quote(trigger, safe='')}/fire"
        answer = self.program.ask(path, method="POST", headers=headers)
        assert answer is not None and answer.status in (200, 202), answer

    def only_run(self, flow: str = "") -> dict[str, Any]:
        """Wait for the end of the one run there is, or the flow has; returns it."""
        path = f"/runs?flow={flow}" if flow else "/runs"

        def look() -> dict[str, Any] | None:
            try:
                (found,) = self.program.api(path)["items"]
                run: dict[str, Any] = self.program.api(f"/runs/{found['id']}")
            except (AssertionError, ValueError):  # it is down, or nothing has come
                return None
            return run if run["finished_at"] else None

        return until(look, PATIENCE, "the end of the run")


# ---------------------------------------------------------------- PostgreSQL to S3

PROGRAMS = ("pg_dump", "createdb", "dropdb", "pg_restore", "psql")
STEP_OF = {
    "pg_dump": "shell#1", "createdb": "restore#1", "dropdb": "restore#1", "pg_restore": "restore#1",
    "psql": "restore#1", "PUT": "store#1", "GET": "download#1", "DELETE": "prune#1",
}  # fmt: skip
"""Each effect of a backup, and the step that has it."""

OLD = [f"shop/2025-01-0{day}T020000.dump" for day in range(1, 8)]


@pytest.fixture
def cloud(started_cloud: Cloud) -> Cloud:
    """An S3 with the backups of seven days; it takes seconds to start."""
    started_cloud.reset()
    place = b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint>"
    started_cloud.s3("backups", place + b"</CreateBucketConfiguration>", method="PUT")
    for name in OLD:
        started_cloud.s3(f"backups/{name}", b"an old one", method="PUT")
    return started_cloud


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, str]]:
    """A PostgreSQL with a shop of three orders; yields where it is."""
    folder = Path(tempfile.mkdtemp(prefix="turnout-test-"))  # pytest's folder is closed to others
    folder.chmod(0o755)
    try:
        with services.postgres(folder) as url:
            port = url.rsplit(":", 1)[1].partition("/")[0]
            where = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "bench"}
            psql(where, "postgres", "CREATE DATABASE shop")
            psql(where, "shop", "CREATE TABLE orders (id int PRIMARY KEY, amount numeric)")
            yield where
    finally:
        shutil.rmtree(folder)


def psql(where: dict[str, str], name: str, text: str) -> str:
    command = ["psql", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-Atc", text, name]
    return subprocess.run(
        command, env=os.environ | where, capture_output=True, text=True, check=True
    ).stdout.strip()


class Backup(Served):
    """The backup of a shop with some orders; PostgreSQL's programs note their keys."""

    def __init__(
        self, folder: Path, cloud: Cloud, where: dict[str, str], orders: int = 3, sabotage: str = ""
    ) -> None:
        self.cloud, self.where = cloud, where
        psql(where, "shop", "TRUNCATE orders")
        psql(
            where,
            "shop",
            f"INSERT INTO orders SELECT n, n * 1.5 FROM generate_series(1, {orders}) n",
        )
        (folder / "bin").mkdir()
        for name in PROGRAMS:
            shim = folder / "bin" / name
            note = f'#!/bin/sh\necho "{name} $TURNOUT_STEP_KEY" >> {folder}/seen\n'
            shim.write_text(f'{note}exec {shutil.which(name)} "$@"\n')
            shim.chmod(0o755)
        path = f"{folder}/bin:{os.environ['PATH']}"
        code = behind_ours("clients") + sabotage
        flows = EXAMPLES / "systems" / "backup.py"
        super().__init__(folder, flows, code, PATH=path, **where, **cloud.env)
        self._logged = len(cloud.log.read_text())

    def tonight(self) -> None:
        self.fire("cron:0 2 * * *")

    def effects(self) -> dict[str, list[str]]:
        """Return the keys of each effect; S3 has no key of a GET and a DELETE, but their names."""
        found = defaultdict(list)
        for line in (self.folder / "seen").read_text().splitlines():
            program, key = line.split(" ")
            found[program].append(key)
        asked = self.cloud.log.read_text()[self._logged :]
        for line in asked.splitlines():
            for method in ("PUT", "GET", "DELETE"):
                if f"{method} /backups/shop/" in line:
                    found[method].append(line.split(f"{method} /backups/")[1].partition(" ")[0])
        return found


def check(effects: dict[str, list[str]], boundary: str) -> None:
    """Nothing is done twice but by the step that was not recorded, and that under the same key."""
    assert effects.keys() == STEP_OF.keys()
    for effect, step in STEP_OF.items():
        times = Counter(effects[effect])
        most = 2 if boundary.startswith(step) and effect != "DELETE" else 1
        assert len(times) == (2 if effect == "dropdb" else 1), f"{effect} under {times}"
        assert set(times.values()) == {most}, f"{effect}: {times} with a kill at {boundary}"


def backed_up(it: Backup, run: dict[str, Any], boundary: str = "none") -> None:
    """The new backup is there, can be restored, and the oldest has gone; nothing else is left."""
    assert run["state"] == "succeeded", run["error"]
    assert run["result"]["rows"] == 3
    runs_again = boundary == "prune#1 succeeded"  # and finds none to remove
    assert run["result"]["removed"] == ([] if runs_again else OLD[:1])
    new = run["result"]["name"]
    assert it.cloud.names("backups") == [*OLD[1:], new]
    headers, _ = it.cloud.s3(f"backups/{new}", method="HEAD")
    assert "x-amz-meta-turnout-key: " in headers
    databases = psql(it.where, "postgres", "SELECT datname FROM pg_database ORDER BY 1").split()
    assert databases == ["postgres", "shop", "template0", "template1"]
    assert list(it.folder.glob("*.part")) == []


BOUNDARIES = [
    "none", "shell#1 succeeded", "store#1 succeeded", "download#1 succeeded", "restore#1 succeeded",
    "prune#1 succeeded", "run succeeded",
]  # fmt: skip


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_backup_killed_at_a_boundary_does_no_recorded_step_again(
    tmp_path: Path, cloud: Cloud, database: dict[str, str], boundary: str
) -> None:
    it = Backup(tmp_path, cloud, database, sabotage=killed_at(boundary))
    with it.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            it.tonight()
            run = it.only_run()
        assert deaths == [-signal.SIGKILL] * (boundary != "none")
    backed_up(it, run, boundary)
    check(it.effects(), boundary)


def test_the_check_notices_a_recorded_step_that_is_done_again(
    tmp_path: Path, cloud: Cloud, database: dict[str, str]
) -> None:
    boundary = "prune#1 succeeded"
    code = killed_at(boundary) + forgetting("store#1")
    it = Backup(tmp_path, cloud, database, sabotage=code)
    with it.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2):
            it.tonight()
            it.only_run()
    with pytest.raises(AssertionError, match="PUT: "):
        check(it.effects(), boundary)


def test_a_backup_that_was_damaged_in_s3_is_removed_and_the_old_ones_stay(
    tmp_path: Path, cloud: Cloud, database: dict[str, str]
) -> None:
    code = killed_at("store#1 succeeded", recorded=True)
    it = Backup(tmp_path, cloud, database, sabotage=code)
    with it.program.start() as program:
        program.ready(PATIENCE)
        it.tonight()
        program.ended(PATIENCE)
        (new,) = set(cloud.names("backups")) - set(OLD)
        cloud.s3(f"backups/{new}", b"PGDMP and nothing else", method="PUT")
        program.start()
        program.ready(PATIENCE)
        run = it.only_run()
    assert (run["state"], run["undo"], run["error"]["step"]) == ("failed", "done", "restore#1")
    assert run["error"]["type"] == "ShellError"
    assert cloud.names("backups") == OLD
    assert "restored_" not in psql(database, "postgres", "SELECT datname FROM pg_database")


def test_a_backup_without_rows_fails_and_is_removed(
    tmp_path: Path, cloud: Cloud, database: dict[str, str]
) -> None:
    it = Backup(tmp_path, cloud, database, orders=0)
    with it.program.start() as program:
        program.ready(PATIENCE)
        it.tonight()
        run = it.only_run()
    assert run["error"]["message"] == "the backup has no rows" and run["undo"] == "done"
    assert cloud.names("backups") == OLD


# ---------------------------------------------------------------- a drop over SFTP


class Partner(Served):
    """The SFTP example, and a partner who has dropped a file, and still writes another one."""

    def __init__(self, folder: Path, where: str, sabotage: str = "") -> None:
        self.theirs = folder / "partner"
        for name in ("out/taken", "in"):
            (self.theirs / name).mkdir(parents=True)
        (folder / "ready").mkdir()
        (self.theirs / "out" / "a.csv").write_text("id,amount\n1,2\n2,3\n")
        (self.theirs / "out" / "b.csv.part").write_text("id,am")
        text = (EXAMPLES / "systems" / "sftp_drop.py").read_text()
        assert text.count('every("1m")') == 1  # ticks of its own would come between
        flows = folder / "sftp_drop.py"
        flows.write_text(text.replace('every("1m")', 'every("1m", start="2090-01-01T00:00Z")'))
        super().__init__(folder, flows, behind_ours("clients") + sabotage, PARTNER_SFTP=where)

    @property
    def seen(self) -> list[str]:
        noted = self.folder / "seen"
        return noted.read_text().splitlines() if noted.exists() else []


@pytest.mark.parametrize(
    "boundary",
    ["none", "dropped#1 succeeded", "take#1 succeeded", "fetch#1 succeeded", "book#1 succeeded",
     "run succeeded"],
)  # fmt: skip
def test_what_is_dropped_is_moved_and_booked_once_over_a_kill(
    tmp_path: Path, boundary: str
) -> None:
    with sftp(tmp_path) as where:
        it = Partner(tmp_path, where, killed_at(boundary))
        with it.program.start() as program:
            program.ready(PATIENCE)
            with supervised(program, most_restarts=2) as deaths:
                it.fire("every:1m")
                assert it.only_run("collect")["result"] == ["a.csv"]
                run = it.only_run("receive")
            assert deaths == [-signal.SIGKILL] * (boundary != "none")
            (taken,) = (it.theirs / "out" / "taken").iterdir()
            kept = program.ask(
                f"/api/runs/{run['id']}/artefacts/{taken.name}",
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
        assert run["result"] == 2, run["error"]
        assert kept is not None and kept.body == b"id,amount\n1,2\n2,3\n" == taken.read_bytes()
        assert it.seen == [f"rename out/a.csv out/taken/{taken.name}"]
        assert [each.name for each in it.theirs.glob("out/*.*")] == ["b.csv.part"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_partner_never_sees_half_a_file(tmp_path: Path, killed: bool) -> None:
    code = (
        "import asyncssh\nhonest = asyncssh.SFTPClient.put\n"
        "async def put(self, *arguments, **named):\n"
        "    await honest(self, *arguments, **named)\n"
        "    die()\n"
        "asyncssh.SFTPClient.put = put"
    )
    with sftp(tmp_path) as where:
        it = Partner(tmp_path, where, killed_once(code) if killed else "")
        with it.program.start() as program:
            program.ready(PATIENCE)
            with supervised(program, most_restarts=2) as deaths:
                (tmp_path / "ready" / "report.csv").write_text("day,sum\n1,2\n")
                run = it.only_run()
            assert deaths == [-signal.SIGKILL] * killed
        assert run["state"] == "succeeded", run["error"]
        *written, renamed = it.seen
        (part,) = set(written)
        assert len(written) == 1 + killed and part.startswith("write in/.report.csv.")
        assert renamed == f"rename {part.removeprefix('write ')} in/report.csv"
        (there,) = (it.theirs / "in").iterdir()
        assert there.read_text() == "day,sum\n1,2\n"


# ---------------------------------------------------------------- polars and requests


@pytest.mark.parametrize("boundary", ["none", "summarise#1 succeeded"])
def test_pages_of_readings_become_the_summary_of_a_day(tmp_path: Path, boundary: str) -> None:
    readings = [{"sensor": "b", "value": 1.0}, {"sensor": "a", "value": None}]
    with stub() as web:
        for days in (0, 1):  # it may be midnight
            day = (datetime.now(UTC) - timedelta(days=days)).date().isoformat()
            path = f"/readings?day={day}&page="
            web.bodies[f"{path}0"] = {"readings": readings, "pages": 2}
            web.bodies[f"{path}1"] = {"readings": [{"sensor": "b", "value": 4.0}], "pages": 2}
            web.statuses[f"{path}1"] = [503, 200]
        flows = EXAMPLES / "data" / "readings.py"
        it = Served(
            tmp_path, flows, behind_ours("data") + killed_at(boundary), READINGS_URL=web.url
        )
        with it.program.start() as program:
            program.ready(PATIENCE)
            with supervised(program, most_restarts=2) as deaths:
                it.fire("cron:15 0 * * *")
                run = it.only_run()
            assert deaths == [-signal.SIGKILL] * (boundary != "none")
        assert run["state"] == "succeeded", run["error"]
        assert len(web.asked) == 3, "a page that failed is asked for again, and no other"
    with duckdb.connect() as database:
        rows = database.execute(f"FROM '{tmp_path / run['result']}'").fetchall()
    assert rows == [("b", 2.5, 4.0)]

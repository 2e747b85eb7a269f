"""Backups beside a service under load: each restores, and holds all that was accepted before it.

The commands are those that an operator types. Kills at any moment leave only whole backups, and
either the old journal or none. Negative controls leave something out of a backup, which must be
noticed when it is made.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.program import Program, environment, turnout, until
from turnout.service.domain.units import utc_now

from .ledger import Snapshot, snapshot
from .load import Generator
from .machine import Ballast, small_disk

pytestmark = pytest.mark.timeout(600)

FLOWS = """
from turnout import current, flow, task, webhook

@task
def draw(number: str) -> str:
    current().attach("drawing.txt", number.encode() * 500)
    return f"{number} " * 500

@flow(on=webhook("/minted"))
def order(data: dict[str, str]) -> str:
    number = data["number"]
    count = number.partition("-")[2]  # of those that come under load, one of 100 has files
    return number if count and int(count) % 100 else draw(number)[:20]

@flow(on=webhook("/waits"))
async def waits() -> None:
    from turnout import sleep
    await sleep("1h")
"""

SMALL = {"TURNOUT_MAX_RESULT_BYTES": "1KiB", "TURNOUT_MIN_FREE_BYTES": "0"}

TIMED = """
import os, time
from turnout.service.journal.sqlite import writer

honest = writer.observe_together
times = os.open(os.environ["COMMIT_TIMES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def noted(one, took, *more):
    os.write(times, b"%f %f\\n" % (time.monotonic(), took))
    return honest(one, took, *more)

writer.observe_together = noted
"""

WITHOUT_LOG = """
import apsw
from turnout.service.journal.sqlite import backups
from contextlib import contextmanager

@contextmanager
def without_log(folder):
    address = f"{(folder / 'journal.db').absolute().as_uri()}?immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(address, flags=flags)
    yield connection
    connection.close()

backups._snapshot = without_log
"""

WITHOUT_A_RESULT = """
from turnout.service.journal.sqlite import backups

honest = backups._blobs_of

def all_but_one(*arguments):
    found = honest(*arguments)
    found.popitem()
    return found

backups._blobs_of = all_but_one
"""

SLOW = """
import time
from pathlib import Path
from turnout.service.journal.sqlite import backups

honest = backups._add_blobs

def slow(archive, *arguments):
    Path(os.environ["BEGUN"]).touch()
    while not Path(os.environ["GO_ON"]).exists():
        time.sleep(0.01)
    return honest(archive, *arguments)

import os
backups._add_blobs = slow
"""

PRUNES_AT_ONCE = """
from turnout.service.operate import maintenance
maintenance.INTERVAL_SECONDS = 0.05
"""

DELETES_ANYWAY = """
from contextlib import contextmanager
from turnout.service.journal.sqlite.blobs import BlobStore

@contextmanager
def no_backup(self):
    yield True

BlobStore._no_backup = no_backup
"""

SEES_SPACE = """
import shutil
shutil.disk_usage = lambda _: shutil._ntuple_diskusage(0, 0, 2**40)
"""

KILLED_AT = """
import os, signal

left = int(os.environ["KILLED_AT"])

def deadly(function, after=False):
    def called(*arguments, **named):
        global left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return called

from pathlib import Path
from turnout.service.journal.sqlite import restoring

restoring._write = deadly(restoring._write)
restoring._move_aside = deadly(restoring._move_aside)
restoring.write_marker = deadly(restoring.write_marker)
restoring.sync = deadly(restoring.sync)
"""


class Desk:
    """A program with flows that make results and artefacts, and an operator's commands."""

    def __init__(self, folder: Path, *, data: Path | None = None, **env: str) -> None:
        self.folder = folder
        self.to = folder / "backups"
        (folder / "flows.py").write_text(FLOWS)
        self.program = Program(
            flows=folder / "flows.py",
            data=data or folder / "data",
            log=folder / "log",
            env={**SMALL, **env},
        )

    def backup(self, **more: Any) -> Path:
        """Make a backup; returns its file."""
        done = self.run("backup", "--to", self.to, "--json", **more)
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["file"])

    def run(
        self,
        *words: str | Path,
        sabotage: str = "",
        data: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the data folder of the program, or another."""
        arguments = [str(word) for word in (*words, "--data", data or self.program.data)]
        chosen = {**self.program.env, **(env or {})}
        if not sabotage:
            return turnout(*arguments, env=chosen, timeout=120)
        return subprocess.run(
            sabotaged(sabotage, *arguments),
            env=environment(chosen),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @contextmanager
    def running(self, *words: str | Path, sabotage: str = "", **env: str) -> Iterator[Any]:
        """Run a command beside what is done inside the block."""
        arguments = [str(word) for word in (*words, "--data", self.program.data)]
        with subprocess.Popen(
            sabotaged(sabotage, *arguments),
            env=environment({**self.program.env, **env}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            try:
                yield command
            finally:
                command.kill()

    def restored(self, file: Path, name: str) -> Snapshot:
        """Restore a backup into another folder, examine it there and read it."""
        data = self.folder / name
        done = self.run("restore", file, data=data)
        assert done.returncode == 0, done.stderr
        doctor = self.run("doctor", data=data)
        assert doctor.returncode == 0, doctor.stdout
        return snapshot(data)


def sabotaged(code: str, *arguments: str) -> list[str]:
    return [
        sys.executable, "-c", f"{code}\nfrom turnout.service.cli import main\nmain()", *arguments
    ]  # fmt: skip


def load_on(desk: Desk, seed: int, pace: float) -> Generator:
    return Generator(port=desk.program.port, seed=seed, pace=pace, github_share=0.0)


def test_backups_under_load_restore_whole_and_lack_nothing_accepted_before(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    times = tmp_path / "times"
    desk = Desk(tmp_path, COMMIT_TIMES=str(times))
    made: list[tuple[Path, set[str]]] = []
    spans: list[tuple[float, float]] = []
    words = ["backup", "--to", str(desk.to), "--every", "15s" if full else "1s", "--json"]
    with desk.program as program:
        program.sabotage = TIMED
        program.start().ready()
        load = load_on(desk, seed, 500 if full else 100)
        with load.running() as ledger:
            time.sleep(20 if full else 2)
            with desk.running(*words) as command:
                ahead = time.monotonic() - utc_now().timestamp()
                accepted: set[str] = set()
                for line in islice(command.stdout, 11 if full else 4):
                    told = json.loads(line)
                    taken_at = datetime.fromisoformat(told["taken_at"]).timestamp() + ahead
                    made.append((Path(told["file"]), accepted))
                    spans.append((taken_at, time.monotonic()))
                    with ledger.lock:  # before the next
                        accepted = set(ledger.accepted)
        program.quiet(120)
        assert program.stop() == 0
    for number, (file, before) in enumerate(made):
        kept = {event for _, event in desk.restored(file, f"again-{number}").events}
        assert before <= kept, f"{len(before - kept)} of {len(before)} are missing"
    assert set(ledger.statuses) == {202}
    commits = [
        (float(at), float(took)) for at, took in map(str.split, times.read_text().splitlines())
    ]

    began, ended = spans[-1]
    say(
        f"{len(made)} backups of {len(ledger.accepted)} events at {load.pace:g}/s, "
        f"the last {made[-1][0].stat().st_size / 2**20:.1f} MiB in {ended - began:.1f} s"
    )
    if full:
        # Each is compared with the time before it: other machines are noisy neighbours.
        pairs = [
            (p99(commits, begin, end), p99(commits, max(before, 2 * begin - end), begin))
            for (_, before), (begin, end) in pairwise(spans)
        ]
        ratios = sorted(beside / without for beside, without in pairs)
        say(
            f"p99 of a commit beside them {median(each for each, _ in pairs):.2f} ms, without "
            f"{median(each for _, each in pairs):.2f}; ratios "
            + ", ".join(f"{ratio:.2f}" for ratio in ratios)
        )
        assert median(ratios) <= 1.5


def p99(commits: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return the p99 of commits between two instants, in milliseconds; fails for too few."""
    took = sorted(took for at, took in commits if begin <= at <= end)
    assert len(took) >= 100, f"{len(took)} commits in {end - begin:.1f} s"
    return 1000 * took[int(len(took) * 0.99)]


def test_a_backup_that_leaves_out_the_log_or_a_result_is_noticed_when_it_is_made(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    with desk.program as program:
        program.start().ready()
        for number in range(3):
            program.post("minted", {"number": str(number)})
        program.quiet(20)
        for sabotage, words in (
            (WITHOUT_LOG, "events or runs are missing"),
            (WITHOUT_A_RESULT, "is missing"),
        ):
            done = desk.run("backup", "--to", desk.to, sabotage=sabotage)
            assert done.returncode == 1 and words in done.stderr, done.stderr
            assert list(desk.to.iterdir()) == [], "half a backup was left"
        _verified(program, 0.0)
        assert program.metrics("turnout_backup_age_seconds") == {}
        desk.backup()
        _verified(program, 1.0)
        assert 0 <= program.metrics("turnout_backup_age_seconds")[""] < 60


def _verified(program: Program, expected: float) -> None:
    """Wait until the metrics, which are measured now and then, say how the last backup went."""
    name = "turnout_backup_verified"
    until(lambda: program.metrics(name) == {"": expected}, 30, f"{name} {expected:g}")


@pytest.mark.parametrize("honest", [True, False], ids=["held", "deleted anyway"])
def test_results_that_a_backup_names_are_not_deleted_before_they_are_copied(
    tmp_path: Path, honest: bool
) -> None:
    desk = Desk(tmp_path, TURNOUT_KEEP_FINISHED="1s", TURNOUT_KEEP_FAILED="1s")
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    with desk.program as program:
        program.sabotage = PRUNES_AT_ONCE
        program.start().ready()
        run = program.post("waits", {})
        for number in range(5):
            program.post("minted", {"number": str(number)})
        stored = tmp_path / "data" / "journal" / "results"
        until(lambda: list(stored.glob("*/*")), 20, "results in files")
        assert program.stop() == 0
        program.sabotage = "" if honest else DELETES_ANYWAY
        with desk.running(
            "backup", "--to", desk.to, sabotage=SLOW, BEGUN=str(begun), GO_ON=str(go_on)
        ) as backup:
            until(begun.exists, 20, "the snapshot")
            program.sabotage += PRUNES_AT_ONCE
            program.start().ready()
            until(lambda: len(snapshot(program.data).runs) == 1, 30, "old runs deleted")
            if not honest:
                until(lambda: not list(stored.glob("*/*")), 20, "their results deleted")
            go_on.touch()
            _, said = backup.communicate(timeout=60)
        if not honest:
            assert backup.returncode == 1 and "missing or damaged" in said, said
            return
        assert backup.returncode == 0, said
        until(lambda: not list(stored.glob("*/*")), 20, "the results deleted after the backup")
        assert program.stop() == 0
    (file,) = desk.to.iterdir()
    kept = desk.restored(file, "again")
    assert len(kept.runs) == 6 and run in kept.runs


@pytest.mark.full
def test_a_backup_that_is_killed_leaves_nothing_that_looks_whole(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    desk, dice = Desk(tmp_path), random.Random(seed)
    with desk.program as program:
        program.start().ready()
        with load_on(desk, seed, 50).running():
            took = _seconds(desk.backup)
            for _ in range(40 if full else 6):
                patience = dice.uniform(0.2, 1.1) * took
                backing_up = desk.running("backup", "--to", desk.to)
                with backing_up as backup, suppress(subprocess.TimeoutExpired):
                    backup.wait(patience)
        made = list(desk.to.glob("*.tar"))
        for file in made:
            done = desk.run("restore", file, "--check")
            assert done.returncode == 0, done.stderr
        drafts = len(list(desk.to.glob(".*")))
        last = desk.backup()
        assert sorted(desk.to.iterdir()) == sorted([*made, last]), "drafts are left"
        assert program.stop() == 0
    say(f"{len(made)} whole backups and {drafts} drafts after the kills")


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.full
def test_a_restore_that_is_killed_anywhere_leaves_the_old_journal_or_none(
    tmp_path: Path, full: bool, say: Say
) -> None:
    desk = Desk(tmp_path)
    with desk.program as program:
        program.start().ready()
        program.post("minted", {"number": "old"})
        program.quiet(20)
        backup = desk.backup()
        program.post("minted", {"number": "new"})
        program.quiet(20)
        assert program.stop() == 0
        before, boundary, killed, gone = len(snapshot(program.data).runs), 0, 0, 0
        while True:
            boundary += 1 if full else 2
            env = {"KILLED_AT": str(boundary)}
            done = desk.run("restore", backup, sabotage=KILLED_AT, env=env)
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            killed += 1
            if (program.data / "journal" / "journal.db").exists():
                runs = len(snapshot(program.data).runs)
                assert runs in (before, 1), "neither the old journal nor the backup"
                program.start().ready()
                assert program.stop() == 0
            else:
                gone += 1
                program.start()
                assert program.ended(20) == 78
                program.said("restore it from a backup", 5)
            _reset(desk, before)
        assert len(snapshot(program.data).runs) == 1
        program.start().ready()
        program.check_journal()
        assert program.stop() == 0
    say(f"{killed} kills, {gone} of them between the two journals")
    assert killed >= 3


def _reset(desk: Desk, runs: int) -> None:
    """Bring the old journal back, by hand: it was moved aside and is whole."""
    data = desk.program.data
    for aside in data.glob("journal-replaced-*"):
        journal = data / "journal"
        if journal.exists():
            journal.rename(data / f"tried-{time.monotonic_ns()}")
        aside.rename(journal)
    assert len(snapshot(data).runs) == runs


def test_a_restore_goes_on_with_what_had_not_ended_and_says_what_is_lost(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with desk.program as program:
        program.start().ready()
        waiting = program.post("waits", {})
        program.post("minted", {"number": "1"})
        until(lambda: program.api(f"/runs/{waiting}")["state"] == "waiting", 20, "it waits")
        until(lambda: program.unfinished() == 1, 20, "the other has ended")
        backup = desk.backup()
        checked = desk.run("restore", backup, "--check", "--json")
        refused = desk.run("restore", backup)
        lost = program.post("minted", {"number": "2"})
        until(lambda: program.api(f"/runs/{lost}")["state"] == "succeeded", 20, "its end")
        program.kill()
        restored = desk.run("restore", backup)
        assert restored.returncode == 0, restored.stderr
        program.start().ready()
        assert program.api(f"/runs/{waiting}")["state"] == "waiting"
        assert lost not in {run["id"] for run in program.api("/runs")["items"]}
        assert program.stop() == 0
    (found,) = [json.loads(line) for line in checked.stdout.splitlines()]
    assert found["verified"] and found["restored_to"] is None and found["unfinished"] == 1
    assert {each["state"]: each["count"] for each in found["states"]} == {
        "succeeded": 1, "waiting": 1,
    }  # fmt: skip
    told = {each["name"]: each for each in found["triggers"]}
    assert set(told) == {"webhook:/minted", "webhook:/waits"}
    assert {each["since"] for each in told.values()} == {found["taken_at"]}
    assert "senders must send again" in told["webhook:/minted"]["advice"]
    assert refused.returncode == 78 and "in use by process" in refused.stderr
    aside = re.search(r"the journal that was there is in (\S+)", restored.stdout)
    assert aside is not None and (Path(aside[1]) / "journal.db").exists()


@pytest.mark.full
def test_a_full_disk_refuses_a_backup_and_a_restore_and_leaves_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with desk.program as program:
        program.start().ready()
        for number in range(20):
            program.post("minted", {"number": str(number)})
        program.quiet(20)
        with small_disk(tmp_path / "disk", 24) as place:
            ballast, desk.to = Ballast(place), place / "backups"
            backup = desk.backup()
            ballast.fill()
            for sabotage in ("", SEES_SPACE):
                done = desk.run("backup", "--to", desk.to, sabotage=sabotage)
                assert done.returncode == 74 and str(desk.to) in done.stderr, done.stderr
                assert "free some" in done.stderr
                assert list(desk.to.iterdir()) == [backup], "half a backup was left"
                again = desk.run("restore", backup, data=place / "again", sabotage=sabotage)
                assert again.returncode == 74 and "free some" in again.stderr, again.stderr
                assert not (place / "again" / "journal" / "journal.db").exists()
                assert not (place / "again" / "journal-restoring").exists()
            ballast.free()
            desk.backup()
        assert program.stop() == 0


def test_backups_go_on_until_sigterm_and_one_that_fails_is_told_and_tried_again(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    with desk.program as program:
        program.start().ready()
        program.post("minted", {"number": "1"})
        log = tmp_path / "backup.log"
        words = ["backup", "--to", str(desk.to), "--every", "300ms", "--keep", "2", "--json"]
        with (
            log.open("w") as out,
            subprocess.Popen(
                sabotaged("", *words, "--data", str(program.data)),
                env=environment(program.env),
                stdout=subprocess.DEVNULL,
                stderr=out,
            ) as command,
        ):
            until(lambda: log.read_text().count("backup.made") >= 3, 60, "three backups")
            desk.to.rename(tmp_path / "away")
            desk.to.write_text("a file, where a folder was")
            until(lambda: "backup.failed" in log.read_text(), 60, "a failure in the log")
            _verified(program, 0.0)
            assert program.metrics("turnout_backup_age_seconds")[""] >= 0
            desk.to.unlink()
            until(lambda: desk.to.is_dir() and any(desk.to.glob("*.tar")), 60, "another backup")
            command.send_signal(signal.SIGTERM)
            assert command.wait(30) == 0
        assert len(list((tmp_path / "away").glob("*.tar"))) <= 2
        assert not list(desk.to.glob(".*")), "a draft is left"
        assert program.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (failed,) = {line["error"] for line in lines if line["message"] == "backup.failed"}
    assert str(desk.to) in failed


def test_a_backup_without_a_service_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with desk.program as program:
        program.start().ready()
        program.post("minted", {"number": "1"})
        program.quiet(20)
        program.kill()  # its newest rows are in the log
    kept = desk.restored(desk.backup(), "again")
    assert len(kept.runs) == 1
    nowhere = desk.run("backup", "--to", desk.to, data=tmp_path / "nowhere")
    assert nowhere.returncode == 78 and "no journal" in nowhere.stderr
    inside = desk.run("backup", "--to", tmp_path / "data" / "backups")
    assert inside.returncode == 78 and "is in the data folder" in inside.stderr
    (tmp_path / "file").touch()
    file = desk.run("backup", "--to", tmp_path / "file")
    assert file.returncode == 78 and str(tmp_path / "file") in file.stderr
    assert not (tmp_path / "nowhere").exists()

"""The contract on SQLite, and what only a database file can do wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest

from tests.support.journal_contract import (
    NOW,
    JournalContract,
    claim_of,
    ended,
    expect_run,
    finish,
    make_event,
    make_run,
    put,
    start,
    step,
)
from turnout.service.domain.errors import (
    ClaimLost,
    JournalBroken,
    JournalError,
    JournalFull,
    NotFound,
    Overloaded,
    SetupError,
)
from turnout.service.domain.run import RunState
from turnout.service.journal.contract import Journal, Lifecycle
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Claim, ClaimedRun, Entry, Filter, Move
from turnout.service.journal.sqlite import dedupe, rescue, retention
from turnout.service.journal.sqlite.append import Intake
from turnout.service.journal.sqlite.apply import Batch
from turnout.service.journal.sqlite.blobs import BlobStore
from turnout.service.journal.sqlite.claims import ClaimJob
from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.journal.sqlite.counters import RunCounters
from turnout.service.journal.sqlite.dedupe import DeliveryRow
from turnout.service.journal.sqlite.disk_space import DiskSpace
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.journal.sqlite.lock import Holder, read_lock
from turnout.service.journal.sqlite.reader import open_reader
from turnout.service.journal.sqlite.resume_cache import ResumeCache
from turnout.service.journal.sqlite.values import micros
from turnout.service.journal.sqlite.work_reads import WorkReads
from turnout.service.journal.sqlite.writer import CallJob
from turnout.service.telemetry.metrics import Metrics

_Value = TypeVar("_Value")


@asynccontextmanager
async def opened(
    folder: Path, metrics: Metrics | None = None, /, **bounds: int
) -> AsyncIterator[SqliteJournal]:
    chosen: dict[str, Any] = {"max_unfinished_runs": 10_000, "min_free_bytes": 0} | bounds
    journal = await open_journal(folder / "data", metrics=metrics or Metrics(), **chosen)
    try:
        yield journal
    finally:
        await journal.close()


class TestSqliteJournal(JournalContract):
    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[SqliteJournal]:
        return opened(folder, None, **bounds)

    async def test_too_little_disk_is_refused(self, tmp_path: Path) -> None:
        async with self.open(tmp_path, min_free_bytes=2**60) as journal:
            with pytest.raises(Overloaded, match="min_free_bytes"):
                await put(journal, make_run())
            await journal.append([], trigger="t", positions={"0": Move(None, "1")}, now=NOW)


def test_the_class_has_the_contract_s_shape() -> None:
    kind: type[Journal] = SqliteJournal  # the type checker is the test
    around: type[Lifecycle] = SqliteJournal
    assert {kind.__name__, around.__name__} == {"SqliteJournal"}


# ---------------------------------------------------------------- the folder


async def locked(data: Path) -> Holder | None:
    return await asyncio.to_thread(read_lock, data)


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await put(journal, make_run())
        data = tmp_path / "data"
        for folder in (data, data / "journal"):
            assert folder.stat().st_mode & 0o777 == 0o700
        files = [each for each in data.rglob("*") if each.is_file()]
        assert {each.name for each in files} >= {"journal.db", "journal.db-wal", "lock"}
        assert {each.stat().st_mode & 0o777 for each in files} == {0o600}


async def test_a_second_process_is_refused_with_the_first_one_s_address(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert await locked(data) is None
    async with opened(tmp_path) as journal:
        assert await locked(data) == Holder(os.getpid(), None)
        journal.write_url("http://127.0.0.1:8080")
        assert await locked(data) == Holder(os.getpid(), "http://127.0.0.1:8080")
        with pytest.raises(SetupError, match=rf"process {os.getpid()} \(http://127.0.0.1:8080\)"):
            async with opened(tmp_path):
                pass
    assert await locked(data) is None
    async with opened(tmp_path):
        pass


def open_files(folder: Path) -> list[str]:
    """Return what this process has open below a folder."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return [each for each in links if each.startswith(str(folder))]


async def test_an_opening_that_is_cancelled_leaves_neither_lock_nor_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on, open_blobs = threading.Event(), threading.Event(), BlobStore.open

    def slow(blobs: BlobStore) -> None:
        begun.set()
        assert goes_on.wait(30)
        open_blobs(blobs)

    monkeypatch.setattr(BlobStore, "open", slow)
    opening = asyncio.get_running_loop().create_task(opened(tmp_path).__aenter__())
    await asyncio.to_thread(begun.wait, 30)
    assert open_files(tmp_path)
    opening.cancel()
    await asyncio.wait([opening])
    goes_on.set()
    async with asyncio.timeout(30):
        while open_files(tmp_path):  # noqa: ASYNC110  a thread closes them
            await asyncio.sleep(0.01)
    async with opened(tmp_path):
        pass


async def test_an_opening_that_fails_leaves_neither_lock_nor_files_open(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    unfinished = tmp_path / "data" / "journal" / "results" / "a.part"
    unfinished.mkdir(parents=True)  # a folder cannot be unlinked
    with pytest.raises(SetupError, match="Is a directory"):
        async with opened(tmp_path):
            pass
    assert not open_files(tmp_path)
    unfinished.rmdir()
    async with opened(tmp_path):
        pass


async def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from turnout.service.journal.sqlite.lock import FolderLock;"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True);"
        "sys.stdin.read(); os._exit(9)"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None
    assert await child.stdout.readline() == b"held\n"
    assert await locked(tmp_path) == Holder(child.pid, None)
    child.kill()
    await child.wait()
    assert await locked(tmp_path) is None


async def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    _change(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(SetupError, match=r"99 and this turnout knows \d+: upgrade"):
        async with opened(tmp_path):
            pass
    with pytest.raises(SetupError, match="TURNOUT_DATA"):
        await open_reader(tmp_path / "data")


async def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "journal").mkdir(mode=0o700, parents=True)
    _change(tmp_path, "CREATE TABLE theirs (a)")
    with pytest.raises(SetupError, match="another program's database"):
        async with opened(tmp_path):
            pass


async def test_a_damaged_file_is_refused_and_the_folder_is_free_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await put(journal, make_run())
    file = tmp_path / "data" / "journal" / "journal.db"
    whole = file.read_bytes()
    for damaged in (b"not a database" * 1000, whole[:100] + os.urandom(4096) + whole[4196:]):
        file.write_bytes(damaged)
        with pytest.raises(SetupError, match=r"damaged.*turnout doctor"):
            async with opened(tmp_path):
                pass
        with pytest.raises(SetupError, match="damaged"):
            await open_reader(tmp_path / "data")
    file.write_bytes(whole)
    async with opened(tmp_path) as journal:
        assert journal.counts()[0] == {"queued": 1}


async def test_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        claimed = await start(journal)
        await put(journal, make_run())
    _change(tmp_path, "DELETE FROM events WHERE seq = 1")
    _change(tmp_path, "UPDATE runs SET finished_at = 1 WHERE seq = 2")
    reader = await open_reader(tmp_path / "data")
    found = {name: problem async for name, problem in reader.examine()}
    await reader.close()
    assert claimed.claim.run_id in str(found["every run has its event"])
    assert "does not fit" in str(found["only ended runs have an end"])
    assert found["integrity of the file"] is None


def _change(tmp_path: Path, statement: str) -> None:
    connection = apsw.Connection(str(tmp_path / "data" / "journal" / "journal.db"))
    connection.execute(statement)
    connection.close()


# ---------------------------------------------------------------- readers


async def test_reading_works_beside_a_service_and_without_one(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no journal"):
        await open_reader(tmp_path / "data")
    async with opened(tmp_path) as journal:
        first = await put(journal, make_run())
        reader = await open_reader(tmp_path / "data")
        assert len(await reader.runs(Filter())) == 1
        second = await put(journal, make_run())
        assert [run.id for run in await reader.runs(Filter())] == [*second.runs, *first.runs]
    assert (await expect_run(reader, first.runs[0])).state == "queued"
    await reader.close()
    reader = await open_reader(tmp_path / "data")
    assert len(await reader.runs(Filter())) == 2
    await reader.close()
    async with opened(tmp_path) as journal:
        assert len(await journal.runs(Filter())) == 2


# ---------------------------------------------------------------- sharing a commit


def _commits(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("turnout_journal_commit_seconds_count") or 0.0


async def test_what_arrives_together_shares_a_commit(tmp_path: Path) -> None:
    metrics = Metrics()
    async with opened(tmp_path, metrics) as journal:
        claims = await asyncio.gather(*(start(journal) for _ in range(500)))
        appends = _commits(metrics)
        assert appends <= 5
        await asyncio.gather(
            *(
                journal.record_step(claimed.claim, step(f"a#{n}"))
                for claimed in claims
                for n in range(3)
            )
        )
        steps = _commits(metrics) - appends
        assert steps <= 5
        await asyncio.gather(*(finish(journal, claimed, ended()) for claimed in claims))
        assert _commits(metrics) - appends - steps <= 5


async def test_one_of_many_fails_alone_whatever_the_others_do(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        claims = [await start(journal) for _ in range(4)]
        await journal.cancel(claims[0].claim.run_id, now=NOW)
        queued = make_run(state=RunState.QUEUED)
        results = await asyncio.gather(
            put(journal, make_run()),
            put(journal, make_run(), event=make_event("broken", headers={"a": "\ud800"})),
            put(journal, make_run(), event=make_event("bro\ud800ken")),
            put(journal, queued),
            journal.record_step(claims[1].claim, step("a#1")),
            finish(journal, claims[0], ended()),
            finish(journal, claims[1], ended()),
            journal.cancel(claims[2].claim.run_id, now=NOW),
            finish(journal, claims[2], ended()),
            journal.cancel("nobody", now=NOW),
            journal.probe(),
            return_exceptions=True,
        )
        assert [type(result) for result in results if isinstance(result, Exception)] == [
            JournalError, JournalError, ClaimLost, ClaimLost, NotFound,
        ]  # fmt: skip
        counted = {state: count for state, count in journal.counts()[0].items() if count}
        assert counted == {"running": 1, "queued": 2}
    async with opened(tmp_path) as journal:
        assert journal.counts()[0] == counted


async def test_a_caller_that_gave_up_stops_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(put(journal, make_run())) for _ in range(10)]
            await asyncio.sleep(0)
            tasks[3].cancel()
        assert sum(not task.cancelled() for task in tasks) == 9
        await put(journal, make_run())
        assert journal.counts()[0]["queued"] in (10, 11)


async def test_closing_writes_what_is_queued_and_refuses_what_is_late(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(put(journal, make_run()))
            await asyncio.sleep(0)
            await journal.close()
        with pytest.raises(JournalError, match="closed"):
            await put(journal, make_run())
    async with opened(tmp_path) as journal:
        assert journal.counts()[0] == {"queued": 50}


async def test_the_log_is_folded_into_the_database(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for _ in range(12):
            event = make_event(body=os.urandom(4 * 2**20))
            await finish(journal, await start(journal), ended())
            await put(journal, make_run(), event=event)
        await journal.probe()
        assert (tmp_path / "data" / "journal" / "journal.db-wal").stat().st_size < 40 * 2**20
        assert journal.size_bytes() > 48 * 2**20


async def test_pruning_by_size_makes_room(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        kept = await put(journal, make_run(), event=make_event(body=os.urandom(10**6)))
        for _ in range(6):
            claimed = await start(journal)
            await finish(journal, claimed, ended(RunState.FAILED))
            await put(journal, event=make_event(body=os.urandom(10**6)))
        await journal.probe()
        before = journal.size_bytes()
        while await journal.prune_oldest(2):
            pass
        assert before - journal.size_bytes() > 5 * 10**6
        assert [stored.event.id for stored in await journal.events(Filter())] == [kept.event]
        assert journal.counts()[1] == {}


# ---------------------------------------------------------------- cost


class CountingReader(WorkReads):
    """Counts the steps of the database's own machine, which no other load on this box changes."""

    counted = 0

    async def read(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        return await super().read(partial(self._count, query))

    def _count(
        self, query: Callable[[apsw.Connection], _Value], connection: apsw.Connection
    ) -> _Value:
        def count() -> bool:
            self.counted += 1
            return False

        connection.set_progress_handler(count, 1)
        try:
            return query(connection)
        finally:
            connection.set_progress_handler(None)


async def _costs(folder: Path, backlog: int) -> dict[str, int]:
    """Return the steps each question and each write takes beside a backlog."""
    async with opened(folder) as journal:
        for state in (RunState.QUEUED, RunState.SCHEDULED, RunState.RUNNING, RunState.FAILED):
            runs = [make_run(f"f{n % 2}", state, due_at=NOW) for n in range(backlog)]
            entries = [Entry(event=make_event(), runs=[run]) for run in runs]
            appended = await journal.append(entries, now=NOW)
            if state is RunState.RUNNING:
                for entry, one in zip(entries, appended, strict=True):
                    await finish(journal, claim_of(entry, one), ended())
    reader = CountingReader(folder / "data" / "journal")
    costs = {}
    questions: dict[str, Callable[[], Awaitable[object]]] = {
        "queued": lambda: reader.queued("f1", 5, 3),
        "due": lambda: reader.due(NOW, 3),
        "next due": reader.next_due_at,
        "after-run actions due": lambda: reader.due_actions(0, 9),
        "ended": lambda: reader.event_ended(3),
        "runs": lambda: reader.runs(Filter(limit=3)),
        "runs of a flow": lambda: reader.runs(Filter(flow="f1", limit=3)),
        "runs in a state": lambda: reader.runs(Filter(state=RunState.FAILED, limit=3)),
        "cancelled runs": lambda: reader.runs(Filter(state=RunState.CANCELLED, limit=3)),
        "an event": lambda: reader.event("nobody"),
        "runs of an event": lambda: reader.runs(Filter(event="nobody")),
        "events": lambda: reader.events(Filter(limit=3)),
    }
    for name, question in questions.items():
        reader.counted = 0
        await question()
        costs[name] = reader.counted
    await reader.close()
    return costs | await asyncio.to_thread(_write_costs, folder / "data")


def _write_costs(folder: Path) -> dict[str, int]:
    connection = open_for_writing(folder, synchronous="normal")
    disk_space = DiskSpace(connection, folder, 0)
    intake = Intake(connection, disk_space, max_unfinished_runs=10**6)
    batch = Batch(connection, intake, ResumeCache())
    early, late = micros(NOW) - 1, micros(NOW) + 10**7
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    def prune(before: int) -> CallJob:
        ages = dict.fromkeys(
            ("finished_before", "failed_before", "unmatched_before", "dedupe_before", "now"), before
        )
        return CallJob(
            lambda connection, counters: retention.prune(connection, counters, **ages, limit=3)
        )

    first = ClaimedRun(
        claim=Claim(4, "4", 1), flow="f1", event_seq=4, event=make_event(), attempt=1, crashes=0,
        replay=0, order_key=None, keys=None, due_at=NOW,
    )  # fmt: skip
    costs = {}
    connection.set_progress_handler(count, 1)
    for name, job in {
        "claim": ClaimJob([1, 2, 3], {}, micros(NOW)),
        "first claim": ClaimJob([4], {4: first}, micros(NOW)),
        "prune nothing": prune(early),
        "prune": prune(late),
        "prune oldest": CallJob(
            lambda connection, counters: retention.prune_oldest(connection, counters, 3)
        ),
        "rescue": CallJob(lambda connection, counters: rescue.rescue(connection, counters, NOW)),
    }.items():
        steps = 0
        batch([job], RunCounters(0))
        costs[name] = steps
    connection.close()
    return costs


@pytest.mark.slow
async def test_nothing_costs_more_beside_a_backlog(tmp_path: Path) -> None:
    small = await _costs(tmp_path / "small", 20)
    large = await _costs(tmp_path / "large", 1000)
    grown = {name: (small[name], cost) for name, cost in large.items() if cost > 2 * small[name]}
    assert grown == {}


def _prune_costs(folder: Path, deliveries: int) -> tuple[int, int]:
    """Store deliveries with a long window of their own; return what two prunings cost."""
    (folder / "journal").mkdir(parents=True, mode=0o700)
    connection = open_for_writing(folder, synchronous="normal")
    at, steps = micros(NOW), 0
    rows: list[Any] = []
    for seq in range(1, deliveries + 1):
        rows += DeliveryRow(seq, seq.to_bytes(20), b"", at, at + 10**12)
    dedupe.INSERT.run(connection, rows)

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    ages = dict.fromkeys(
        ("finished_before", "failed_before", "unmatched_before", "dedupe_before", "now"), at + 9
    )
    costs = []
    connection.set_progress_handler(count, 1)
    for _ in range(2):
        steps = 0
        retention.prune(connection, RunCounters(0), **ages, limit=3)
        costs.append(steps)
    connection.close()
    return costs[0], costs[1]


def test_deliveries_that_are_kept_for_longer_are_passed_once(tmp_path: Path) -> None:
    _, few = _prune_costs(tmp_path / "few", 10)
    first, second = _prune_costs(tmp_path / "many", 5000)
    assert first > 5000 and second <= 2 * few


# ---------------------------------------------------------------- a disk that fails


@contextmanager
def _no_file_may_grow(size: int) -> Iterator[None]:
    """Make writes past `size` fail with EFBIG, as a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        claimed = await start(journal)
        await put(journal, make_run())
        log = tmp_path / "data" / "journal" / "journal.db-wal"
        big = make_event("big", body=os.urandom(2**20))
        with _no_file_may_grow(log.stat().st_size + 8192):
            with pytest.raises(JournalFull):
                await put(journal, make_run(), event=big)
            assert os.strerror(errno.EFBIG) in str(journal.writable)
            with pytest.raises(JournalFull):
                await asyncio.gather(*(put(journal, make_run(), event=big) for _ in range(3)))
        assert not journal.broken.is_set()
        await journal.probe()
        assert journal.writable is None
        await finish(journal, claimed, ended())
        await put(journal, make_run(), event=big)
    async with opened(tmp_path) as journal:
        assert journal.counts()[0] == {"queued": 2}
        assert [problem async for _, problem in journal.examine() if problem] == []


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root"
)
async def test_a_small_disk_filled_to_the_brim(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)])  # noqa: ASYNC221  one short call
    if made.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        kept: list[str] = []
        async with opened(disk) as journal:
            with pytest.raises(JournalFull):
                while True:
                    event = make_event(body=os.urandom(50_000))
                    kept += (await put(journal, make_run(), event=event)).runs
            with pytest.raises(JournalFull):
                await put(journal, make_run(), event=make_event(body=os.urandom(50_000)))
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)  # noqa: ASYNC221
            await journal.probe()
            assert journal.writable is None
            kept += (await put(journal, make_run())).runs
        async with opened(disk) as journal:
            stored = {run.id for run in await journal.runs(Filter(limit=1000))}
            assert set(kept) == stored
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: ASYNC221


_FAILING_SYNC = """
import asyncio, sys
from pathlib import Path
from tests.journal.test_sqlite import opened
from tests.support.journal_contract import make_run, put
from turnout.service.domain.errors import JournalBroken

async def main():
    accepted = 0
    async with opened(Path(sys.argv[1])) as journal:
        try:
            while True:
                await put(journal, make_run())
                accepted += 1
        except JournalBroken as error:
            assert "disk failed" in str(error), error
        try:
            await put(journal, make_run())
        except JournalBroken:
            print(accepted, journal.broken.is_set(), journal.writable is not None)

asyncio.run(main())
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="failing an fsync needs strace")
async def test_a_failed_fsync_ends_writing_for_good(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync",
        "-e", "inject=fdatasync:error=EIO:when=150+", sys.executable, "-c", _FAILING_SYNC,
        str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, complaint = await child.communicate()
    accepted, *told = out.decode().split()
    assert told == ["True", "True"], complaint
    async with opened(tmp_path) as journal:
        # the one whose fsync failed may be there or not: it was never acknowledged
        assert int(accepted) <= journal.counts()[0]["queued"] <= int(accepted) + 1


async def test_damage_found_later_breaks_the_journal(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for _ in range(300):
            await put(journal, make_run(), event=make_event(body=os.urandom(3000)))
    file = tmp_path / "data" / "journal" / "journal.db"
    content = file.read_bytes()
    file.write_bytes(content[:8192] + os.urandom(len(content) - 8192))
    try:
        async with opened(tmp_path) as journal:
            with pytest.raises(JournalBroken):
                for _ in range(10):
                    await put(journal, make_run(), event=make_event("x"))
            await asyncio.wait_for(journal.broken.wait(), 5)
            with pytest.raises(JournalBroken):
                await journal.probe()
    except SetupError as error:
        assert "damaged" in str(error)


async def test_damage_that_a_reader_meets_when_it_opens_breaks_the_journal(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await put(journal, make_run())
    async with opened(tmp_path) as journal:  # no thread has read yet
        path = tmp_path / "data" / "journal" / "journal.db"
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (path.stat().st_size - 4096))
        with pytest.raises(JournalBroken, match="damaged"):
            await journal.runs(Filter(limit=10))
        assert journal.broken.is_set()

"""The journal on SQLite: one process, one folder, one writing connection.

Keeps the promises of `contract.py`. Writes are jobs for the one writing thread (`writer.py`); reads
have their own connections (`reader.py`). Several processes cannot share this journal.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import apsw
import orjson

from turnout.service.domain.errors import JournalBroken, JournalError, SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome, Run
from turnout.service.domain.trigger import Backlog
from turnout.service.journal.contract import Positions
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    Cached,
    Claim,
    ClaimedRun,
    Entry,
    NewRun,
    Opening,
    Rescued,
    StepRecord,
    UsedLink,
)
from turnout.service.telemetry.metrics import Metrics

from . import cache, operations, rescue, retention, withdrawal
from .append import Intake
from .apply import Batch
from .blobs import BATCH, BlobStore, name_of
from .claims import ClaimJob
from .connection import DAMAGE, QUICKLY_CHECKED_BYTES, damage, open_for_writing, usable
from .counters import RunCounters
from .disk_space import DiskSpace
from .events import AppendJob, pack_details
from .files import WatchedFiles, journal_folder, last_change
from .lock import FolderLock
from .outcomes import OutcomeJob
from .positions import move
from .reader import SqliteReader
from .resume_cache import ResumeCache
from .statements import load
from .steps import StepJob
from .values import micros
from .writer import CallJob, Writer

_SQL = load("operations")
_READS = load("reads")
_FLUSH_SECONDS = 0.5
_Value = TypeVar("_Value")
_Counts: TypeAlias = tuple[dict[str, int], dict[str, int], dict[str, int]]
_Parts: TypeAlias = tuple[WatchedFiles, apsw.Connection, BlobStore, DiskSpace, Intake, _Counts]


async def open_journal(
    folder: Path,
    *,
    metrics: Metrics,
    synchronous: Literal["full", "normal"] = "full",
    max_unfinished_runs: int,
    min_free_bytes: int,
    url: str | None = None,
) -> SqliteJournal:
    """Open the journal of a data folder as its only writer; the folder is made (0700) if missing.

    Raises `SetupError` when another process uses the folder, when the journal is gone, belongs to
    another user or was written by a newer turnout; `JournalBroken` when it is damaged. With
    `synchronous="normal"` a power loss may lose the last commits.
    """

    def prepare() -> tuple[datetime | None, FolderLock, *_Parts]:
        with usable(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = last_change(folder)
            lock = FolderLock(folder, url=url)
            try:
                return known, lock, *parts()
            except BaseException:
                lock.release()
                raise

    def parts() -> _Parts:
        connection = open_for_writing(
            folder, synchronous=synchronous, min_free_bytes=min_free_bytes
        )
        place = journal_folder(folder)
        blobs = BlobStore(place)
        blobs.open()
        disk_space = DiskSpace(connection, place, min_free_bytes)
        intake = Intake(connection, disk_space, max_unfinished_runs=max_unfinished_runs)
        counts = _counts(connection)  # a read, so that the log exists and can be watched
        return WatchedFiles(place), connection, blobs, disk_space, intake, counts

    # Shielded, so that a cancelled opening does not leave the folder locked by nobody.
    opened = await asyncio.get_running_loop().run_in_executor(None, prepare)
    return SqliteJournal(*opened, metrics)


class SqliteJournal(SqliteReader):
    """Implements `Journal`. `broken` is set once the disk failed for good: end the process (74).

    `last_written_at` is when the files were last changed before they were opened.
    """

    def __init__(
        self,
        last_written_at: datetime | None,
        lock: FolderLock,
        files: WatchedFiles,
        connection: apsw.Connection,
        blobs: BlobStore,
        disk_space: DiskSpace,
        intake: Intake,
        counts: _Counts,
        metrics: Metrics,
    ) -> None:
        super().__init__(files.folder)
        self.last_written_at = last_written_at
        self._files = files
        self._blobs = blobs
        self._lock = lock
        self._disk_space = disk_space
        self._intake = intake
        self._unfinished, self._dead, self._not_undone = counts
        self.broken = asyncio.Event()
        self._resume_cache = ResumeCache()
        self._batch = Batch(connection, intake, self._resume_cache)
        self._writer = Writer(
            connection,
            self._batch,
            metrics=metrics,
            unfinished=sum(self._unfinished.values()),
            committed=self._count,
            broke=self.broken.set,
        )

    async def read(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        """Run `query` on a reading thread; give the journal up if the query finds it damaged."""
        try:
            return await super().read(query)
        except JournalBroken as error:
            self._give_up(str(error))
            raise
        except SetupError as error:  # a thread opens its connection and finds none, or damage
            problem = await self.look_at_files()
            if problem is None and isinstance(error.__cause__, DAMAGE):
                problem = f"the journal is damaged: {error.__cause__}; see `turnout doctor`"
                self._give_up(problem)
            if problem is None:
                raise
            raise JournalBroken(problem) from error

    async def look_at_files(self) -> str | None:
        """Return what happened to the files of the open journal, None when nothing did.

        Otherwise the journal is given up, after a checkpoint if only the log was removed.
        """
        loss = await asyncio.get_running_loop().run_in_executor(None, self._files.loss)
        if loss is None:
            return None
        if loss.log_is_whole:
            with suppress(JournalError):
                self._writer.always_checkpoints = True
                for _ in range(2):  # the checkpoint is done after the first and before the second
                    await self._call(lambda _connection, _counters: None)
        self._give_up(loss.words)
        return loss.words

    def _give_up(self, reason: str) -> None:
        """Stop writing and set `broken`: the files on disk are not what was written."""
        self._writer.give_up(reason)

    async def check(self) -> None:
        """Check a large journal for damage, which opening it did not."""
        if self._disk_space.used_bytes <= QUICKLY_CHECKED_BYTES:
            return
        with suppress(JournalBroken):  # given up already
            problem = await self.read(damage)
            if problem is not None:
                self._give_up(f"the journal is damaged ({problem}); see `turnout doctor`")

    def write_url(self, url: str) -> None:
        """Write the address of this process to the lock file, for the CLI."""
        self._lock.write_url(url)

    async def close(self) -> None:
        """Finish queued writes, close the files, release the folder; may be called twice."""
        await super().close()  # first: SQLite checkpoints when the last connection closes
        await self._writer.close()
        self._lock.release()

    # ---------------------------------------------------------------- accepting events

    def append(
        self,
        entries: Sequence[Entry],
        *,
        trigger: str = "",
        positions: Positions = NOTHING,
        now: datetime,
    ) -> asyncio.Future[list[Appended]]:
        """Write events, their runs and decisions, and the trigger's positions, in one commit."""
        return self._writer.submit(AppendJob(entries, now, trigger, positions))

    async def replay(self, event_seq: int, runs: Sequence[NewRun], *, now: datetime) -> list[str]:
        """Start new runs of a stored event; sets each run's `replay` to one above the highest."""
        ids: list[str] = await self._call(
            lambda connection, counters: operations.replay(
                connection, counters, self._intake, event_seq, runs, now
            )
        )
        return ids

    # ---------------------------------------------------------------- a run's life

    async def claim(
        self,
        seqs: Sequence[int],
        *,
        now: datetime,
        untouched: Mapping[int, ClaimedRun] | None = None,
    ) -> list[ClaimedRun]:
        """Make runs `running` under a new token; runs no longer claimable are left out."""
        job = ClaimJob(seqs, untouched or {}, micros(now))
        claimed: list[ClaimedRun] = await self._writer.submit(job)
        return claimed

    async def held_keys(self) -> list[tuple[str, str, str, bool]]:
        """Return (flow, order_key, run_id, dead) of runs that may hold their ordering key."""
        found = await self._call(
            lambda connection, _counters: connection.execute(_READS["held_keys"]).get
        )
        return [(flow, key, run_id, bool(dead)) for flow, key, run_id, dead in orjson.loads(found)]

    def record_step(self, claim: Claim, step: StepRecord) -> asyncio.Future[None]:
        """Record a step, durable when the future is done; raises `ClaimLost`."""
        return self._writer.submit(StepJob(claim, step))

    def flush(self) -> None:
        """Block the loop until submitted writes are durable or failed, for a second at most."""
        for _ in range(2):  # the first may share a commit with the writes it waits for
            passed = threading.Event()
            self._writer.submit(CallJob(_sets(passed))).add_done_callback(_ignore_failure)
            passed.wait(_FLUSH_SECONDS)

    def record_with(
        self,
        claim: Claim,
        step: StepRecord,
        *,
        entries: Sequence[Entry] = (),
        opening: Opening | None = None,
        again: StepRecord | None = None,
        now: datetime,
    ) -> asyncio.Future[list[Appended]]:
        """Record a step together with events it causes and the wait it opens, in one commit."""
        recorded = StepJob(claim, step)
        repeated = None if again is None else StepJob(claim, again)
        caused = AppendJob(entries, now, "", NOTHING) if entries else None
        return self._writer.submit(
            CallJob(
                lambda _connection, counters: self._batch.record_with(
                    recorded, caused, opening, counters, again=repeated
                )
            )
        )

    async def record(
        self,
        run: ClaimedRun,
        outcome: Outcome,
        *,
        started_at: datetime,
        now: datetime,
        has_waits: bool = False,
        changed: Collection[str] = (),
        progress: Mapping[str, Any] = NOTHING,
    ) -> None:
        """Record an attempt's outcome; raises `ClaimLost`. A failed run becomes a dead letter."""
        waits = has_waits or run.has_waits
        await self._writer.submit(
            OutcomeJob(run, outcome, micros(started_at), micros(now), has_waits=waits)
        )
        if outcome.waits:
            self._resume_cache.keep(run, changed, progress)

    async def rescue(self, *, now: datetime) -> Rescued:
        """At start: requeue runs found running; this spends no attempt."""
        rescued: Rescued = await self._call(
            lambda connection, counters: rescue.rescue(connection, counters, now)
        )
        return rescued

    async def fail_orphaned_runs(self, flow: str, *, now: datetime) -> list[str]:
        """Make dead letters of a flow's queued runs that have failed; returns their ids."""
        failed: list[str] = await self._call(
            lambda connection, counters: rescue.fail_orphaned_runs(connection, counters, flow, now)
        )
        return failed

    @asynccontextmanager
    async def store_blob(self, result: bytes) -> AsyncIterator[str]:
        """Make a large result durable in a file of its own, and yield its name."""
        loop = asyncio.get_running_loop()
        name = await loop.run_in_executor(None, name_of, result)
        with self._blobs.hold(name):
            await loop.run_in_executor(None, self._blobs.write, name, result)
            yield name

    def hold_blob(self, name: str) -> AbstractContextManager[None]:
        """Keep a stored large result from being pruned inside the block."""
        return self._blobs.hold(name)

    # ---------------------------------------------------------------- giving events back

    async def backlog(self, trigger: str, flows: Sequence[str]) -> Backlog:
        """Return a trigger's events that start these flows and have no run that has begun."""
        # Claims that are being written count as begun.
        await self._call(lambda _connection, _counters: None)
        return await self.read(partial(withdrawal.backlog, trigger=trigger, flows=flows))

    async def withdraw(self, seqs: Sequence[int], *, trigger: str, positions: Positions) -> None:
        """Delete events of `backlog` with their runs, as if they had never arrived."""

        def first(connection: apsw.Connection, counters: RunCounters) -> None:
            move(connection, trigger, positions)
            withdrawal.withdraw(connection, counters, seqs[: withdrawal.BATCH])

        await self._call(first)
        for start in range(withdrawal.BATCH, len(seqs), withdrawal.BATCH):
            part = seqs[start : start + withdrawal.BATCH]
            await self._call(partial(withdrawal.withdraw, seqs=part))

    async def is_under_way(
        self,
        trigger: str,
        flows: Sequence[str],
        partitions: Sequence[str],
        *,
        due_by: datetime | None,
    ) -> bool:
        """Whether an event of these partitions has a run that is running or about to run."""
        asked = partial(
            withdrawal.is_under_way,
            trigger=trigger,
            flows=flows,
            partitions=partitions,
            due_by=due_by,
        )
        return await self.read(asked)

    # ---------------------------------------------------------------- after the last run

    async def record_action(self, event_seq: int, event: Event | None) -> None:
        """Record an event's after-run action as done, with the event's new extensions if given."""
        details = None if event is None else pack_details(event)

        def write(connection: apsw.Connection, counters: RunCounters) -> None:
            values = (event_seq, event is not None, details)
            connection.execute(_SQL["record_action"], values)

        await self._call(write)

    # ---------------------------------------------------------------- operators

    async def cancel(
        self, run_id: str, *, now: datetime, reason: str = "", by: str = ""
    ) -> list[Run]:
        """Cancel the children an unfinished run waits for, then the run; returns all of them."""
        runs: list[Run] = await self._call(
            lambda connection, counters: operations.cancel(
                connection, counters, run_id, now, reason=reason, by=by
            )
        )
        return runs

    async def end_children(self, claim: Claim, *, now: datetime) -> tuple[list[Run], list[str]]:
        """Cancel the children a failed run waits for; returns them, and steps with some left."""
        ended: tuple[list[Run], list[str]] = await self._call(
            lambda connection, counters: operations.end_children(connection, counters, claim, now)
        )
        return ended

    async def answer(
        self,
        run_id: str,
        key: str | None,
        said: bytes,
        *,
        link: UsedLink | None = None,
        now: datetime,
    ) -> str:
        """Store an approver's answer to a run's open approval; returns the step's key."""
        answered: str = await self._call(
            lambda connection, counters: operations.answer(connection, run_id, key, said, link, now)
        )
        return answered

    async def retry(self, run_id: str, from_step: str | None, *, now: datetime) -> Run:
        """Queue a finished run again; `from_step` drops the steps recorded at and after it."""
        run: Run = await self._call(
            lambda connection, counters: operations.retry(
                connection, counters, run_id, from_step, now
            )
        )
        return run

    async def drop(self, run_id: str, *, now: datetime) -> Run:
        """Take a dead letter off the list; the run stays `failed`. Raises `NotFound`, `Refused`."""
        run: Run = await self._call(
            lambda connection, counters: operations.drop(connection, counters, run_id)
        )
        return run

    async def pause(self, name: str, *, now: datetime) -> None:
        """Store that `flow:NAME` or `trigger:NAME` is paused; the first pause counts."""
        await self._execute("pause", (name, micros(now)))

    async def resume(self, name: str) -> None:
        """Delete a pause."""
        await self._execute("resume", (name,))

    async def cache(self, cached: Cached) -> None:
        """Cache a result under its key, in place of an older one."""
        await self._call(lambda connection, counters: cache.store(connection, cached))

    async def clear_cache(
        self, *, task: str | None = None, over_by: datetime | None = None, limit: int = 1_000_000
    ) -> int:
        """Clear cached results, of one task or those expired by `over_by`; returns how many."""
        over = None if over_by is None else micros(over_by)
        count: int = await self._call(
            lambda connection, counters: cache.clear(connection, task, over, limit)
        )
        return count

    async def rename_flow(self, was: str, name: str) -> int:
        """Give a flow's unfinished runs and dead letters to its new name; returns how many."""
        count: int = await self._call(
            lambda connection, counters: rescue.rename_flow(connection, counters, was, name)
        )
        return count

    # ---------------------------------------------------------------- retention

    async def prune(
        self,
        *,
        finished_before: datetime,
        failed_before: datetime,
        unmatched_before: datetime,
        dedupe_before: datetime,
        limit: int,
    ) -> int:
        """Delete up to `limit` old runs with their steps, then events left without runs."""
        before = {
            "finished_before": micros(finished_before),
            "failed_before": micros(failed_before),
            "unmatched_before": micros(unmatched_before),
            "dedupe_before": micros(dedupe_before),
        }

        def write(connection: apsw.Connection, counters: RunCounters) -> int:
            deleted = retention.prune(connection, counters, **before, limit=limit)
            self._disk_space.measure()
            return deleted

        deleted: int = await self._call(write)
        return deleted

    async def prune_oldest(self, limit: int) -> int:
        """Delete up to `limit` runs and unmatched events, the first ended first; returns rows.

        For `max_journal_bytes`: call until `size_bytes` is low enough or it returns 0.
        """

        def write(connection: apsw.Connection, counters: RunCounters) -> int:
            deleted = retention.prune_oldest(connection, counters, limit)
            self._disk_space.measure()
            return deleted

        deleted: int = await self._call(write)
        return deleted

    async def prune_blobs(self) -> int:
        """Delete large results that no row names any more; returns how many bytes."""
        names = await asyncio.get_running_loop().run_in_executor(None, self._blobs.names)
        freed = 0
        for start in range(0, len(names), BATCH):
            sweep = partial(self._blobs.sweep, names=names[start : start + BATCH])
            freed += await self.read(sweep)
        return freed

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return (unfinished runs by state, dead letters by flow); exact, from memory."""
        return dict(self._unfinished), dict(self._dead)

    def not_undone(self) -> Mapping[str, int]:
        """Return how many dead letters, by flow, have an undo that failed; exact, from memory."""
        return dict(self._not_undone)

    def size_bytes(self) -> int:
        """Return the journal's size on disk, its log and large results included.

        Pages free for reuse do not count. Writes measure it, at most every quarter of a second,
        and so do pruning and `probe`.
        """
        return self._disk_space.used_bytes + self._blobs.used_bytes

    @property
    def writable(self) -> str | None:
        """None while writes work, else the reason (disk full, broken)."""
        return self._writer.broken or self._writer.full

    @property
    def short_of_space(self) -> str | None:
        """None while the disk has enough free space for new events, else how much is missing."""
        refusal = self._disk_space.refusal()
        return None if refusal is None else str(refusal)

    async def probe(self) -> None:
        """Try a durable write, to notice when a full disk has space again; raises as any write."""

        def write(connection: apsw.Connection, counters: RunCounters) -> None:
            connection.execute(_SQL["probe"])
            self._disk_space.measure()

        await self._call(write)

    # ---------------------------------------------------------------- helpers

    async def _call(self, write: Callable[[apsw.Connection, RunCounters], Any]) -> Any:
        return await self._writer.submit(CallJob(write))

    async def _execute(self, name: str, values: tuple[Any, ...]) -> None:
        def write(connection: apsw.Connection, counters: RunCounters) -> None:
            connection.execute(_SQL[name], values)

        await self._call(write)

    def _count(self, counters: RunCounters) -> None:
        """Add the changes of a commit, in the same step of the loop that wakes its callers."""
        for state, change in counters.states.items():
            self._unfinished[state] = self._unfinished.get(state, 0) + change
        _add(self._dead, counters.dead)
        _add(self._not_undone, counters.not_undone)


def _add(counted: dict[str, int], changes: Mapping[str, int]) -> None:
    for flow, change in changes.items():
        left = counted.get(flow, 0) + change
        if left:
            counted[flow] = left
        else:
            counted.pop(flow, None)


def _sets(passed: threading.Event) -> Callable[[apsw.Connection, RunCounters], None]:
    return lambda _connection, _counters: passed.set()


def _ignore_failure(future: asyncio.Future[Any]) -> None:
    """Retrieve the failure of a write, which its own caller gets anyway."""
    if not future.cancelled():
        future.exception()


def _counts(connection: apsw.Connection) -> _Counts:
    """Return unfinished runs by state, and dead letters by flow, all and not undone."""

    def counted(name: str) -> dict[str, int]:
        rows: list[Any] = connection.execute(_READS[name]).fetchall()
        return dict(rows)

    return counted("unfinished"), counted("dead"), counted("not_undone")

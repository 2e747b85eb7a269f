"""The journal on SQLite: one process, one folder, one writing connection.

Keeps the promises of `contract`. Writes are jobs for the one writing thread (`writer.py`); reads
have their own connections (`reader.py`). Several processes cannot share this journal.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import apsw

from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.errors import JournalBroken, JournalError, SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.handover import handed_over
from turnout.service.domain.run import Outcome, Run, Start
from turnout.service.journal.contract import Attachment, Positions, StagedFile
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    BackupStatus,
    Claim,
    ClaimedRun,
    Entry,
    NewRun,
    NextWake,
    Opening,
    Spent,
    StepRecord,
    Taking,
)
from turnout.service.telemetry.metrics import Metrics

from . import artefacts, breakers, operations
from .alerting import Alerting
from .append import Intake
from .apply import Batch
from .backup_status import read_status
from .blobs import BlobStore, name_of
from .claims import ClaimJob
from .connection import (
    DAMAGE,
    QUICKLY_CHECKED_BYTES,
    damage,
    damaged,
    open_for_writing,
    usable,
)
from .counters import RunCounters
from .disk_space import DiskSpace
from .events import AppendJob, pack_details
from .files import FILE_NAME, WatchedFiles, journal_folder, last_change
from .giving_back import GivingBack
from .lock import FolderLock
from .migrations import Progress
from .next_wake import write_next_wake
from .operating import Operating
from .outcomes import OutcomeJob
from .pruning import Pruning, RunTotals
from .queue_writes import QueueWriting
from .resume_cache import ResumeCache
from .staging import StagedBlob, StagedBytes
from .statements import load
from .steps import StepJob
from .suspension import Suspension
from .traces import Tracing
from .values import micros, micros_or_none
from .window_writes import WindowWriting
from .writer import CallJob, Writer

_SQL = load("operations")
_READS = load("reads")
_FLUSH_SECONDS = 0.5
_Value = TypeVar("_Value")
_Parts: TypeAlias = tuple[
    datetime | None,
    FolderLock,
    WatchedFiles,
    apsw.Connection,
    BlobStore,
    DiskSpace,
    Intake,
    RunTotals,
]
_Opened: TypeAlias = tuple[_Parts, ExitStack]
"""The parts of an open journal, and what closes them."""


async def open_journal(
    folder: Path,
    *,
    metrics: Metrics,
    synchronous: Literal["full", "normal"] = "full",
    max_unfinished_runs: int,
    min_free_bytes: int,
    url: str | None = None,
    progress: Progress = lambda _doing: None,
) -> SqliteJournal:
    """Open the journal of a data folder as its only writer; the folder is made (0700) if missing.

    Raises `SetupError` when another process uses the folder, when the journal is gone, belongs to
    another user or was written by a newer turnout; `JournalBroken` when it is damaged. With
    `synchronous="normal"` a power loss may lose the last commits. `progress` is told of an upgrade,
    in a thread.
    """

    def prepare() -> _Opened:
        with usable(folder), ExitStack() as opening:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = last_change(folder)
            lock = FolderLock(folder, url=url)
            opening.callback(lock.release)
            connection = open_for_writing(
                folder, synchronous=synchronous, min_free_bytes=min_free_bytes, progress=progress
            )
            opening.callback(connection.close)
            own = journal_folder(folder)
            blobs = BlobStore(own)
            blobs.open()
            disk_space = DiskSpace(connection, own, min_free_bytes)
            intake = Intake(connection, disk_space, max_unfinished_runs=max_unfinished_runs)
            counted = RunTotals(connection)  # a read, so that the log exists and can be watched
            parts = (known, lock, WatchedFiles(own), connection, blobs, disk_space, intake, counted)
            return parts, opening.pop_all()

    in_thread = partial(asyncio.get_running_loop().run_in_executor, None)
    parts, _ = await handed_over(in_thread, prepare, lambda opened: opened[1].close())
    return SqliteJournal(*parts, metrics)


class SqliteJournal(
    Operating, Alerting, Pruning, WindowWriting, GivingBack, QueueWriting, Suspension, Tracing
):
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
        counted: RunTotals,
        metrics: Metrics,
    ) -> None:
        super().__init__(files.folder)
        self.last_written_at = last_written_at
        self._files = files
        self._blobs = blobs
        self._lock = lock
        self._disk_space = disk_space
        self._intake = intake
        self._counted = counted
        self.broken = asyncio.Event()
        self._resume_cache = ResumeCache()
        self._batch = Batch(connection, intake, self._resume_cache)
        self._writer = Writer(
            connection,
            self._batch,
            metrics=metrics,
            unfinished=sum(counted.unfinished.values()),
            committed=counted.add,
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
                problem = damaged(self._folder / FILE_NAME, error.__cause__)
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
                self._give_up(damaged(self._folder / FILE_NAME, problem))

    def write_url(self, url: str) -> None:
        """Write the address of this process to the lock file, for the CLI."""
        self._lock.write_url(url)

    def write_next_wake(self, wake: NextWake | None) -> None:
        """Keep for the command line what comes next once this process has gone; None: it serves."""
        write_next_wake(self._lock.data, wake)

    def backup_status(self) -> BackupStatus | None:
        """Return how the backups of this journal go, None if none was made; not on the loop."""
        return read_status(self._lock.data)

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
        dedupe: timedelta | None = None,
    ) -> asyncio.Future[list[Appended]]:
        """Write events, their runs and decisions, and the trigger's positions, in one commit."""
        return self._writer.submit(AppendJob(entries, now, trigger, positions, dedupe=dedupe))

    async def replay(self, event_seq: int, runs: Sequence[NewRun], *, now: datetime) -> Appended:
        """Start new runs of a stored event; sets each run's `replay` to one above the highest."""
        replayed: Appended = await self._call(
            lambda connection, counters: operations.replay(
                connection, counters, self._intake, event_seq, runs, now
            )
        )
        return replayed

    # ---------------------------------------------------------------- a run's life

    async def claim(
        self,
        seqs: Sequence[int],
        *,
        now: datetime,
        untouched: Mapping[int, ClaimedRun] | None = None,
        starts: Mapping[int, Sequence[Start]] | None = None,
    ) -> list[ClaimedRun]:
        """Make runs `running` under a new token; runs no longer claimable are left out."""
        job = ClaimJob(seqs, untouched or {}, micros(now), starts)
        claimed: list[ClaimedRun] = await self._writer.submit(job)
        return claimed

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
        caller = claim.run_seq if opening is not None else None
        caused = AppendJob(entries, now, "", NOTHING, caller=caller) if entries else None
        return self._writer.submit(
            CallJob(
                lambda _connection, counters: self._batch.record_with(
                    recorded, caused, opening, counters, again=repeated
                )
            )
        )

    def record_waits(
        self,
        claim: Claim,
        steps: Sequence[StepRecord],
        *,
        openings: Mapping[str, Opening] = NOTHING,
        closes: Collection[str] = (),
        now: datetime,
    ) -> asyncio.Future[list[Run]]:
        """Record several steps, and open and close their waits, in one commit."""
        jobs = [StepJob(claim, step) for step in steps]
        return self._writer.submit(
            CallJob(
                lambda _connection, counters: self._batch.record_waits(
                    claim, jobs, openings, closes, counters, now
                )
            )
        )

    def take(
        self, claim: Claim, step: StepRecord, taking: Taking, *, now: datetime
    ) -> asyncio.Future[Spent | None]:
        """Record a step and take from a budget, in one commit; neither when it is spent."""
        job = StepJob(claim, step)
        return self._writer.submit(
            CallJob(
                lambda _connection, counters: self._batch.take(job, taking, counters, micros(now))
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
    ) -> Sequence[Run]:
        """Record an attempt's outcome; raises `ClaimLost`. A failed run becomes a dead letter."""
        waits = has_waits or run.has_waits
        job = OutcomeJob(run, outcome, started_at, now, has_waits=waits)
        cancelled: Sequence[Run] | None = await self._writer.submit(job)
        if outcome.waits:
            self._resume_cache.keep(run, changed, progress)
        return cancelled or ()

    def record_breaker(self, breaker: StoredBreaker) -> asyncio.Future[None]:
        """Submit a change of a breaker at once, in place of an earlier generation."""
        return self._writer.submit(
            CallJob(lambda connection, _counters: breakers.write(connection, breaker))
        )

    @asynccontextmanager
    async def store_blob(self, result: bytes) -> AsyncIterator[str]:
        """Make a large result durable in a file of its own, and yield its name."""
        loop = asyncio.get_running_loop()
        name = await loop.run_in_executor(None, name_of, result)
        with self._blobs.hold(name):
            await loop.run_in_executor(None, self._blobs.write, name, result)
            yield name

    def stage_file(self, *, min_free_bytes: int) -> StagedFile:
        """Open a file for content of any size, which leaves so much of the disk free."""
        return StagedBlob(self._blobs, min_free_bytes)

    def stage_bytes(self, data: bytes) -> StagedFile:
        """Hold content in memory until it is kept."""
        return StagedBytes(self._blobs, data)

    async def record_artefacts(
        self, claim: Claim, step: StepRecord, attached: Sequence[Attachment]
    ) -> None:
        """Record a step with what it has attached, once the files are durable."""
        job = StepJob(claim, step)
        at = micros_or_none(step.finished_at) or 0
        rows = artefacts.rows_of(claim.run_seq, step.key, attached, at)
        loop = asyncio.get_running_loop()
        with ExitStack() as held:
            for each in attached:
                held.enter_context(self._blobs.hold(each.blob))
            for each in attached:
                await loop.run_in_executor(None, each.file.keep)
            await self._call(
                lambda _connection, counters: self._batch.record_artefacts(job, rows, counters)
            )

    def hold_blob(self, name: str) -> AbstractContextManager[None]:
        """Keep a stored large result from being pruned inside the block."""
        return self._blobs.hold(name)

    # ---------------------------------------------------------------- after the last run

    async def record_action(self, event_seq: int, event: Event | None) -> None:
        """Record an event's after-run action as done, with the event's new extensions if given."""
        details = None if event is None else pack_details(event)

        def write(connection: apsw.Connection, counters: RunCounters) -> None:
            values = (event_seq, event is not None, details)
            connection.execute(_SQL["record_action"], values)

        await self._call(write)


def _sets(passed: threading.Event) -> Callable[[apsw.Connection, RunCounters], None]:
    return lambda _connection, _counters: passed.set()


def _ignore_failure(future: asyncio.Future[Any]) -> None:
    """Retrieve the failure of a write, which its own caller gets anyway."""
    if not future.cancelled():
        future.exception()

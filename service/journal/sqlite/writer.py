"""The writing thread: jobs that arrive together share a transaction and an fsync.

A job's future resolves only after COMMIT has returned, jobs take effect in the order they were
submitted, and a job that cannot be written fails alone: its batch is rolled back and written again
job by job. Once the disk has failed for good, nothing is tried again.

The writer knows nothing of events and runs; `Apply` does (see `apply.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import apsw

from turnout.service.domain.errors import JournalBroken, JournalError, JournalFull, TurnoutError
from turnout.service.telemetry.meters import observe_together
from turnout.service.telemetry.metrics import Metrics

from .connection import translate
from .counters import RunCounters

BATCH_ROWS = 2_000
_CHECKPOINT_PAGES = 4_000  # 16 MiB of log, then its pages go to the database file


class Job:
    """One write whose caller waits; `rows` is about how many rows it writes.

    `submit` sets the future; whoever applies the job sets its `result`, or its `error`.
    """

    __slots__ = ("error", "future", "result")

    future: asyncio.Future[Any]
    result: Any
    error: Exception | None
    rows: int = 1


class CallJob(Job):
    """A rarer write: a function of the open connection, called alone in its turn."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[apsw.Connection, RunCounters], Any]) -> None:
        self.function = function


class Split(Exception):
    """Raised by a group of jobs when only writing them one by one tells which job is at fault."""


class Apply(Protocol):
    """Writes jobs inside an open transaction, setting each job's `result`, or its `error`.

    An error rolls back all jobs it was given; if there are several, the writer then tries them
    one by one.
    """

    def __call__(self, jobs: Sequence[Job], counters: RunCounters) -> None:
        """Write `jobs`, in order wherever order matters, and count runs in `counters`."""


class Writer:
    """Runs submitted jobs on one thread with one connection, many jobs to a commit."""

    def __init__(
        self,
        connection: apsw.Connection,
        apply: Apply,
        *,
        metrics: Metrics,
        unfinished: int,
        committed: Callable[[RunCounters], None],
        broke: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._apply = apply
        self._unfinished = unfinished
        self._committed = committed
        self._broke = broke
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._commit_seconds = metrics.journal_commit_seconds
        self._batch_rows = metrics.journal_batch_rows
        self._in_progress: list[Job] = []
        self._rows = 0  # of the batch in progress
        self._took: float | None = None  # to commit it, in seconds
        self._closed = False
        self.always_checkpoints = False  # however short the log is
        self.full: str | None = None
        self.broken: str | None = None
        self._thread = threading.Thread(target=self._run, name="turnout-journal", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> asyncio.Future[Any]:
        """Queue a job; the future resolves after its commit. Call on the loop's thread only."""
        if self.broken is not None:
            raise JournalBroken(self.broken)
        if self._closed:
            raise JournalError("the journal is closed")
        job.result = job.error = None
        job.future = future = self._loop.create_future()
        self._queue.put(job)
        return future

    @property
    def queued(self) -> int:
        """How many jobs are not written yet, those of the batch in progress included."""
        return self._queue.qsize() + len(self._in_progress)

    def give_up(self, reason: str) -> None:
        """Stop writing: the journal cannot be trusted. Call on the loop's thread only."""
        self.broken = self.broken or reason
        self._broke()

    async def close(self) -> None:
        """Write what is queued, checkpoint the log, and close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # ---------------------------------------------------------------- on the thread

    def _run(self) -> None:
        clean = False
        try:
            while self.broken is None:
                batch, last = self._take()
                if batch:
                    self._in_progress = batch
                    self._write(batch)
                    self._in_progress = []
                if last:
                    break
                self._checkpoint()
            clean = True
        finally:
            if not clean:  # a bug: the thread's hook prints it, and no caller may wait for ever
                self.broken = self.broken or "the journal's writer ended unexpectedly"
            self._end()

    def _take(self) -> tuple[list[Job], bool]:
        """Wait for a job and take all that are queued, up to a bound; returns whether to end."""
        batch: list[Job] = []
        rows, queue = 0, self._queue
        while (job := queue.get()) is not None:
            batch.append(job)
            rows += job.rows
            if rows >= BATCH_ROWS or queue.empty():  # nobody else takes from it
                self._rows = rows
                return batch, False
        self._rows = rows
        return batch, True

    def _write(self, batch: list[Job]) -> None:
        counters = RunCounters(self._unfinished)
        self._took = None
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._apply(batch, counters)
            self._commit()
        except (apsw.Error, TurnoutError, Split, ValueError, TypeError) as error:
            self._roll_back()
            failure = self._failure(error)
            if isinstance(failure, JournalFull | JournalBroken) or len(batch) == 1:
                counters = RunCounters(self._unfinished)
                for job in batch:
                    job.error = failure
            else:
                counters = self._write_singly(batch)
        else:
            self.full = None
        self._unfinished = counters.unfinished
        if self._took is None:
            self._batch_rows.observe(self._rows)
        else:
            observe_together(self._commit_seconds, self._took, self._batch_rows, self._rows)
        self._resolve(batch, counters)

    def _write_singly(self, batch: list[Job]) -> RunCounters:
        """Write each job in its own savepoint, so that a bad one fails only its caller."""
        total = RunCounters(self._unfinished)
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for job in batch:
                counters = total.child()
                job.error = None
                execute("SAVEPOINT job")
                try:
                    self._apply([job], counters)
                except (apsw.Error, TurnoutError, ValueError, TypeError) as error:
                    failure = self._failure(error)
                    if isinstance(failure, JournalFull | JournalBroken):
                        raise failure from error
                    job.error = failure
                    execute("ROLLBACK TO job")
                else:
                    total.add(counters)
                execute("RELEASE job")
            self._commit()
        except (apsw.Error, JournalError) as error:
            self._roll_back()
            for job in batch:
                job.error = self._failure(error)
            return RunCounters(self._unfinished)
        return total

    def _commit(self) -> None:
        started = time.perf_counter()
        self._connection.execute("COMMIT")
        self._took = time.perf_counter() - started

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite already rolled back after some errors
            self._connection.execute("ROLLBACK")

    def _failure(self, error: Exception) -> Exception:
        """Return the error for the caller, and note when the journal is full or broken."""
        failure = translate(error, self._connection) if isinstance(error, apsw.Error) else error
        if isinstance(failure, JournalFull):
            self.full = str(failure)
        elif isinstance(failure, JournalBroken):
            self.broken = str(failure)
        elif isinstance(failure, ValueError | TypeError):
            failure = JournalError(f"this cannot be stored: {failure}")
        failure.__cause__ = error if failure is not error else error.__cause__
        return failure

    def _resolve(self, batch: list[Job], counters: RunCounters) -> None:
        """Wake every caller of a batch with one call into the loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, batch, counters)

    def _wake(self, batch: list[Job], counters: RunCounters) -> None:
        if counters.states or counters.dead or counters.not_undone:
            self._committed(counters)
        for job in batch:
            future = job.future
            if future.done():
                continue
            if job.error is None:
                future.set_result(job.result)
            else:
                future.set_exception(job.error)
        if self.broken is not None:
            self._broke()

    def _checkpoint(self) -> None:
        """Write the log back into the database when it is long enough; callers have their answers.

        SQLite's automatic checkpoint ignores a failed fsync and tries it again.
        """
        if self.broken is not None:
            return
        written, _ = self._connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)
        if written < _CHECKPOINT_PAGES and not self.always_checkpoints:
            return
        self._connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE, True)
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            self._failure(error)
            self._resolve([], RunCounters(0))

    def _end(self) -> None:
        """Fail the jobs that are left, then close; a broken journal is not synced again."""
        left = self._in_progress
        try:
            while True:
                job = self._queue.get_nowait()
                if job is not None:
                    left.append(job)
        except Empty:
            pass
        reason = self.broken or "the journal is closed"
        for job in left:
            job.error = JournalBroken(reason) if self.broken else JournalError(reason)
        if left or self.broken:
            self._resolve(left, RunCounters(0))
        try:
            if self.broken is not None:
                self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._connection.close()
        except apsw.Error as error:
            self._failure(error)

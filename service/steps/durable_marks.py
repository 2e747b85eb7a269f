"""Durable marks: records a flow leaves between its steps, on disk before its next step starts.

`patched`, `on_undo` and failed branches leave them without an `await`. Not here: what each mark
means.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial

from turnout.service.domain.errors import TurnoutError
from turnout.service.journal.records import StepRecord


def mark_record(key: str, task: str, result: bytes, now: datetime) -> StepRecord:
    """Return the record of a durable mark."""
    return StepRecord(
        key=key,
        task=task,
        state="succeeded",
        tries=1,
        started_at=now,
        finished_at=now,
        result=result,
    )


class DurableMarks:
    """The marks of an attempt that are not on disk yet."""

    __slots__ = ("_flush", "_open", "_record", "_writing")

    def __init__(
        self, record: Callable[[StepRecord], Future[None]], flush: Callable[[], None] | None
    ) -> None:
        """Write marks with `record`; `flush` blocks until they are on disk (an isolated run)."""
        self._record = record
        self._flush = flush
        self._open: dict[str, StepRecord] = {}
        self._writing: dict[str, Future[None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, mark: StepRecord) -> None:
        """Add a mark, to be recorded before the next step starts."""
        self._open[mark.key] = mark

    def drop(self, keys: Iterable[str]) -> None:
        """Remove marks that are not recorded yet."""
        for key in keys:
            self._open.pop(key, None)

    def begin(self, key: str) -> None:
        """Start to record a mark now, on the loop only; an isolated run waits for the disk."""
        with suppress(TurnoutError):  # `write_all` tries again and raises
            self._write(key)
            if self._flush is not None:  # the process may end on the next line, as it did before
                self._flush()

    async def write(self, key: str) -> None:
        """Record a mark now; returns once it is on disk or the write has failed."""
        self.begin(key)
        writing = self._writing.get(key)
        if writing is not None:
            await asyncio.wait((writing,))

    async def write_all(self) -> None:
        """Return when all marks are on disk; raises what recording a step raises."""
        writing = [self._writing.get(key) or self._write(key) for key in self._open]
        if writing:
            await asyncio.wait(writing)  # shared: no cancel may reach them
        for written in writing:
            written.result()

    def _write(self, key: str) -> Future[None]:
        writing = self._writing[key] = self._record(self._open[key])
        writing.add_done_callback(partial(self._written, key))
        return writing

    def _written(self, key: str, writing: Future[None]) -> None:
        del self._writing[key]
        if not writing.cancelled() and writing.exception() is None:
            self._open.pop(key, None)

"""What the steps of a run need of a journal."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Protocol

from turnout.service.domain.run import Run
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    Cached,
    Claim,
    Entry,
    Opening,
    StepRecord,
    StoredState,
)

from .reads import RunReads


class Steps(RunReads, Protocol):
    """What an attempt writes before its end."""

    def record_step(self, claim: Claim, step: StepRecord) -> Future[None]:
        """Submit a step at once; it is durable when the future is done. Raises `ClaimLost`."""

    def record_with(
        self,
        claim: Claim,
        step: StepRecord,
        *,
        entries: Sequence[Entry] = (),
        opening: Opening | None = None,
        again: StepRecord | None = None,
        now: datetime,
    ) -> Future[list[Appended]]:
        """Record a step together with events it causes and the wait it opens, in one transaction.

        The call itself submits the write, as `append` does.
        When an entry was stored before, `again` is recorded instead of `step`; when its id belongs
        to another event, no step is. Without `opening` the step's wait is closed. A child run that
        `unique` refuses is another one's work: the step then waits for that run. What wakes a
        wait (an awaited event, the end of a child run, `answer`) makes its waiting run due in the
        transaction that stores it. Raises what `record_step` and `append` raise.
        """

    def record_waits(
        self,
        claim: Claim,
        steps: Sequence[StepRecord],
        *,
        openings: Mapping[str, Opening] = NOTHING,
        closes: Collection[str] = (),
        now: datetime,
    ) -> Future[list[Run]]:
        """Record several steps, and open and close their waits, in one transaction.

        `openings` and `closes` are by the key of the step. The unfinished children that a closed
        wait was for are cancelled, as `cancel` does, and returned. Raises what `record_step` does.
        """

    def flow_state(self, flow: str, key: str) -> StoredState | None:
        """Return at once what a flow keeps between runs under a key; on the loop only."""

    def flush(self) -> None:
        """Block the loop until submitted writes are durable or have failed, for a second at most.

        For a write after which the process may end at once.
        """

    async def end_children(self, claim: Claim, *, now: datetime) -> tuple[list[Run], list[str]]:
        """Cancel the children a failed run waits for, as `cancel` does.

        Returns them, and the keys of the steps whose children are still being undone: the only
        waits the run keeps.
        """

    async def cache(self, cached: Cached) -> None:
        """Cache a result under its key, in place of an older one."""

    def store_blob(self, result: bytes) -> AbstractAsyncContextManager[str]:
        """Make a large result durable in a file of its own, and yield its name for `read_blob`.

        It is safe from pruning inside the block, and after it while a row names it. Raises what
        any write does.
        """

    def hold_blob(self, name: str) -> AbstractContextManager[None]:
        """Keep a stored large result from being pruned inside the block."""

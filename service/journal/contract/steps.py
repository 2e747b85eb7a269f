"""What the steps of a run need of a journal."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import NamedTuple, Protocol

from turnout.service.domain.run import Run
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    Cached,
    Claim,
    EndedRun,
    Entry,
    Opening,
    Spent,
    StepRecord,
    StoredState,
    Taking,
)

from .reads import RunReads


class StagedFile(Protocol):
    """Content on its way into the journal's files; each call may block, one thread at a time.

    It is gone after a crash until `keep` and a row that names it.
    """

    size: int

    def write(self, data: bytes) -> None:
        """Write more of it; raises `OSError` where the disk has too little space."""

    def close(self) -> str:
        """End writing; returns the name of the content."""

    def keep(self) -> None:
        """Make the closed file durable under its name; may be called again after an error."""

    @property
    def is_kept(self) -> bool:
        """Whether it is durable, or has nothing to discard."""

    def discard(self) -> None:
        """Delete it, unless it was kept; may be called twice."""


class Attachment(NamedTuple):
    """A closed file that is to be recorded as an artefact of a step."""

    name: str
    type: str
    file: StagedFile
    blob: str


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
        """Record several steps, or none, and open and close waits, in one transaction.

        `openings` and `closes` are by the key of the step. The unfinished children that a closed
        wait was for are cancelled, as `cancel` does, and returned. Raises what `record_step` does.
        """

    def take(
        self, claim: Claim, step: StepRecord, taking: Taking, *, now: datetime
    ) -> Future[Spent | None]:
        """Record a step and take from a budget, in one transaction.

        When the budget has not enough left neither is done, and the answer says why. What was taken
        counts for its period, whatever becomes of the run. Raises what `record_step` does.
        """

    def flow_state(self, flow: str, key: str) -> StoredState | None:
        """Return at once what a flow keeps between runs under a key; on the loop only."""

    def history(self, flow: str, limit: int, *, at_most_bytes: int) -> list[EndedRun]:
        """Return at once the last runs of a flow that have ended, the newest first.

        On the loop only. Runs that a rule of the flow has refused are left out, and results larger
        than so many bytes.
        """

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

    def stage_file(self, *, min_free_bytes: int) -> StagedFile:
        """Open a file for content of any size, which leaves so much of the disk free."""

    def stage_bytes(self, data: bytes) -> StagedFile:
        """Hold content in memory until it is kept; on the loop too."""

    async def record_artefacts(
        self, claim: Claim, step: StepRecord, attached: Sequence[Attachment]
    ) -> None:
        """Record a step with what it has attached, in one transaction, once the files are durable.

        An artefact goes with its step: when that is deleted, or recorded anew in place of a
        superseded one. Raises what `record_step` and `store_blob` raise.
        """

    def hold_blob(self, name: str) -> AbstractContextManager[None]:
        """Keep a stored large result from being pruned inside the block."""

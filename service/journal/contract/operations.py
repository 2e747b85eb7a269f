"""What operators need of a journal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from turnout.service.domain.conditions import Mode
from turnout.service.domain.run import Run
from turnout.service.journal.records import (
    Appended,
    Discarded,
    NewRun,
    Retried,
    StoredOverride,
    StoredPause,
    UsedLink,
)

from .reads import Reads
from .retention import Clearing


class Operations(Reads, Clearing, Protocol):
    """Operators' writes."""

    async def replay(self, event_seq: int, runs: Sequence[NewRun], *, now: datetime) -> Appended:
        """Start new runs of a stored event; sets each run's `replay` to one above the highest.

        Their conditions are decided as by `append`.
        """

    async def cancel(
        self, run_id: str, *, now: datetime, reason: str = "", by: str = ""
    ) -> list[Run]:
        """Cancel the children an unfinished run waits for, then the run; their tokens become stale.

        Returns the run and those children. A run with something to undo is queued for that, after
        its children, with the step `FAILED`; it then ends as `cancelled`. Raises `NotFound`,
        `Refused` (it has ended, or it is being undone).
        """

    async def answer(
        self,
        run_id: str,
        key: str | None,
        said: bytes,
        *,
        link: UsedLink | None = None,
        now: datetime,
    ) -> str:
        """Store an approver's answer (JSON) to a run's open approval; returns the step's key.

        Raises `NotFound`; `Refused` when no approval is open, or several are and `key` is None;
        `Expired` for a `link` that was used before.
        """

    async def retry(
        self,
        run_id: str,
        from_step: str | None,
        *,
        mode: Mode | None = None,
        flow: str | None = None,
        force: bool = False,
        blocks: bool = False,
        now: datetime,
    ) -> Retried:
        """Queue a finished run again; `from_step` drops the steps recorded at and after it.

        One with an ordering key is queued behind all that are queued, by a new `arrival`. With
        `blocks` dead letters hold their key (`on_dead="block"`): one of these keeps its place.

        It is asked under the `mode` of its flow, which is called `flow` now, as a new run is:
        `Refused` where `skip` would end it. With `force` it is not, and has no key of the mode from
        now on. A run that is queued again goes to that name, as with `rename_flow`.

        Raises `NotFound`, `Refused`. Attempts count from 0 again, and the run is no dead letter any
        more. A run whose undo has failed only continues its undo, and is a dead letter until done.
        """

    async def drop(self, run_id: str, *, now: datetime) -> Run:
        """Take a dead letter off the list; the run stays `failed`. Raises `NotFound`, `Refused`."""

    async def pause(self, pause: StoredPause) -> None:
        """Store a pause, in place of one of the same name; if that has not ended, it began then."""

    async def resume(self, name: str) -> None:
        """Delete a pause."""

    async def end_pauses(self, *, now: datetime) -> list[StoredPause]:
        """Delete and return the pauses that end by `now`."""

    async def override(self, override: StoredOverride) -> None:
        """Store a limit that an operator has set, in place of one of the same name."""

    async def reset_limit(self, name: str) -> None:
        """Delete a limit that an operator has set."""

    async def end_overrides(self, *, now: datetime) -> list[StoredOverride]:
        """Delete and return the limits that end by `now`."""

    async def clear_state(self, flow: str, *, key: str | None, now: datetime) -> int:
        """Let a flow keep nothing between runs, under a key or any; returns how many values.

        A run that has read what is cleared starts over when it wants to keep another value.
        """

    async def discard(
        self,
        flow: str,
        *,
        now: datetime,
        detail: str = "",
        by: str = "",
        after: int = 0,
        up_to: int | None = None,
    ) -> Discarded:
        """End some queued runs of a flow that were never claimed, as skipped and `dropped`.

        Those after one seq and up to another, by default the last there is now. Each leaves a
        decision with `detail` and `by`; whoever awaits such a run is woken and told that it was
        refused, and a file of its event stays.
        """

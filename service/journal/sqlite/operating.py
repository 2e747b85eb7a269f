"""The part of the journal that operators write through: `Operations` in the contract.

Each method is one job for the writing thread. Not here: what it writes (`operations`, `rescue`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.conditions import Mode
from turnout.service.domain.run import Run
from turnout.service.journal.records import (
    Cached,
    Claim,
    Discarded,
    Retried,
    StoredOverride,
    StoredPause,
    UsedLink,
)

from . import cache, flow_state, operations, overrides, pauses, rescue, retries
from .append import Intake
from .calls import Calls
from .counters import RunCounters
from .statements import load
from .values import micros

_SQL = load("operations")


class Operating(Calls):
    """Writes of operators, and of what acts for them."""

    _intake: Intake

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
        """Queue a finished run again; `from_step` drops the steps recorded at and after it."""
        intake = self._intake
        retried: Retried = await self._call(
            lambda connection, counters: retries.retry(
                connection,
                counters,
                intake,
                run_id,
                from_step,
                now,
                mode=mode,
                force=force,
                flow=flow,
                blocks=blocks,
            )
        )
        return retried

    async def drop(self, run_id: str, *, now: datetime) -> Run:
        """Take a dead letter off the list; the run stays `failed`. Raises `NotFound`, `Refused`."""
        run: Run = await self._call(
            lambda connection, counters: operations.drop(connection, counters, run_id)
        )
        return run

    async def pause(self, pause: StoredPause) -> None:
        """Store a pause, in place of one of the same name; if that has not ended, it began then."""
        await self._call(lambda connection, counters: pauses.pause(connection, pause))

    async def resume(self, name: str) -> None:
        """Delete a pause."""
        await self._execute("resume", (name,))

    async def end_pauses(self, *, now: datetime) -> list[StoredPause]:
        """Delete and return the pauses that end by `now`."""
        ended: list[StoredPause] = await self._call(
            lambda connection, counters: pauses.end_pauses(connection, now)
        )
        return ended

    async def override(self, override: StoredOverride) -> None:
        """Store a limit that an operator has set, in place of one of the same name."""
        await self._call(lambda connection, counters: overrides.override(connection, override))

    async def reset_limit(self, name: str) -> None:
        """Delete a limit that an operator has set."""
        await self._execute("reset_limit", (name,))

    async def end_overrides(self, *, now: datetime) -> list[StoredOverride]:
        """Delete and return the limits that end by `now`."""
        ended: list[StoredOverride] = await self._call(
            lambda connection, counters: overrides.end_overrides(connection, now)
        )
        return ended

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
        """End some queued runs of a flow that were never claimed, as `skipped`."""
        ended: Discarded = await self._call(
            lambda connection, counters: pauses.discard(
                connection, counters, flow, now, detail=detail, by=by, after=after, up_to=up_to
            )
        )
        return ended

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

    async def clear_state(self, flow: str, *, key: str | None, now: datetime) -> int:
        """Let a flow keep nothing between runs, under a key or any; returns how many values."""
        count: int = await self._call(
            lambda connection, counters: flow_state.clear(connection, flow, key, micros(now))
        )
        return count

    async def rename_flows(self, renamed: Mapping[str, str]) -> int:
        """Give what is unfinished or dead of flows to their new names; returns how many runs."""
        count: int = await self._call(
            lambda connection, counters: sum(
                rescue.rename_flow(connection, counters, was, name) for was, name in renamed.items()
            )
        )
        return count

    async def _execute(self, name: str, values: tuple[Any, ...]) -> None:
        def write(connection: apsw.Connection, counters: RunCounters) -> None:
            connection.execute(_SQL[name], values)

        await self._call(write)

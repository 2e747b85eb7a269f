"""Giving events back to a source that keeps them, as if they had never arrived."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

import apsw

from turnout.service.domain.trigger import Backlog
from turnout.service.journal.contract import Positions

from . import withdrawal
from .calls import Calls
from .counters import RunCounters
from .positions import move


class GivingBack(Calls):
    """Withdraws events whose runs have not begun."""

    async def backlog(self, trigger: str, flows: Sequence[str]) -> Backlog:
        """Return a trigger's events that start these flows and have no run that has begun."""
        # Claims that are being written count as begun.
        await self._call(lambda _connection, _counters: None)
        return await self.read(partial(withdrawal.backlog, trigger=trigger, flows=flows))

    async def withdraw(
        self, seqs: Sequence[int], *, trigger: str, positions: Positions, now: datetime
    ) -> None:
        """Delete events of `backlog` with their runs, as if they had never arrived."""

        def first(connection: apsw.Connection, counters: RunCounters) -> None:
            move(connection, trigger, positions)
            withdrawal.withdraw(connection, counters, seqs[: withdrawal.BATCH], now)

        await self._call(first)
        for start in range(withdrawal.BATCH, len(seqs), withdrawal.BATCH):
            part = seqs[start : start + withdrawal.BATCH]
            await self._call(partial(withdrawal.withdraw, seqs=part, now=now))

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

"""Reads of what operators have set, and of what rules have counted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from turnout.service.domain.breaker import StoredBreaker
from turnout.service.journal.records import StoredBudget, StoredOverride, StoredPause

from . import breakers, budgets
from .overrides import override_from
from .pauses import pause_from
from .reading import Reading
from .statements import load
from .values import dump_list, instant, instant_or_none, micros

_SQL = load("reads")
_RATES = load("rates")


class SteeringReading(Reading):
    """Tells pauses, overrides, breakers and counts of rules."""

    async def breakers(self) -> list[StoredBreaker]:
        """Return the breakers of dependencies as they last changed, by name."""
        return await self.read(breakers.read)

    async def pauses(self, *, now: datetime) -> dict[str, StoredPause]:
        """Return the pauses that have not ended by `now`, by name."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["pauses"], (micros(now),)).fetchall()
        )
        return {row[0]: pause_from(row) for row in rows}

    async def overrides(self, *, now: datetime) -> dict[str, StoredOverride]:
        """Return the limits that operators have set and that have not ended by `now`, by name."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["overrides"], (micros(now),)).fetchall()
        )
        return {row[0]: override_from(row) for row in rows}

    async def budgets(self, *, now: datetime) -> list[StoredBudget]:
        """Return the budgets of which something is used, by name."""
        return await self.read(lambda connection: budgets.listed(connection, micros(now)))

    async def accepted_by_key(
        self, flow: str, rule_id: str, *, since: datetime, nth: int
    ) -> list[tuple[str, int, datetime | None]]:
        """Return how many runs a rate limit has accepted since then, the busiest key first."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(
                _RATES["accepted_by_key"], (flow, rule_id, micros(since), nth - 1)
            ).fetchall()
        )
        return [(key, count, instant_or_none(latest)) for key, count, latest in rows]

    async def queued_by_class(self, flows: Sequence[str]) -> dict[int, tuple[int, datetime]]:
        """Return how many runs of these flows are queued, by priority, and since when the first."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(
                _SQL["queued_by_class"], (dump_list(flows),)
            ).fetchall()
        )
        return {level: (count, instant(oldest)) for level, count, oldest in rows}

"""Suspends the windows of a flow whose time stands still, and lets them go on."""

from __future__ import annotations

from datetime import datetime

import apsw

from .calls import Calls
from .counters import RunCounters
from .statements import load
from .values import micros, micros_or_none

_SQL = load("suspension")


class Suspension(Calls):
    """The part of the journal that suspends windows: see `Windows` in the contract."""

    async def suspend_windows(self, flow: str, *, now: datetime) -> int:
        """Let the open windows of a flow keep the time they have left; returns how many."""
        values = (flow, micros(now))

        def write(connection: apsw.Connection, _counters: RunCounters) -> int:
            connection.execute(_SQL["suspend"], values)
            return connection.changes()

        count: int = await self._call(write)
        return count

    async def resume_windows(self, flow: str, *, since: datetime | None, now: datetime) -> int:
        """Let suspended windows go on, with the time they have left; returns how many."""
        opened, at = (flow, micros_or_none(since), micros(now)), (flow, micros(now))

        def write(connection: apsw.Connection, _counters: RunCounters) -> int:
            connection.execute(_SQL["put_off"], opened)
            connection.execute(_SQL["resume"], at)
            return connection.changes()

        count: int = await self._call(write)
        return count

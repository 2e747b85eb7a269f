"""The part of the journal that closes windows: `Windows` in the contract.

Each method is one job for the writing thread. Not here: what it writes (`windows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from turnout.service.domain.windows.firing import Firing
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.records import NOTHING, ClosedWindows, Told

from .append import Intake, Rows
from .calls import Calls
from .values import micros


class WindowWriting(Calls):
    """Closes windows at their deadline, or for operators."""

    _intake: Intake

    async def close_due(
        self,
        flows: Mapping[str, Firing],
        *,
        now: datetime,
        limit: int,
        told: Mapping[str, Told] = NOTHING,
    ) -> ClosedWindows:
        """Close windows of these flows that are due, at most `limit`, and queue their runs."""
        closed: ClosedWindows = await self._call(
            lambda _connection, counters: self._intake.windows.close_due(
                Rows({}), counters, micros(now), flows, limit, told
            )
        )
        return closed

    async def fire_window(
        self, window_id: str, firing: Firing, *, now: datetime, by: str = ""
    ) -> ClosedWindows:
        """Fire an open window at once. Raises `NotFound`."""
        closed: ClosedWindows = await self._call(
            lambda _connection, counters: self._intake.windows.fire(
                Rows({}), counters, micros(now), window_id, firing, by
            )
        )
        return closed

    async def drop_window(self, window_id: str, *, now: datetime, by: str = "") -> ClosedWindows:
        """Close an open window without a run; each member gets a decision. Raises `NotFound`."""
        closed: ClosedWindows = await self._call(
            lambda _connection, counters: self._intake.windows.drop(
                Rows({}), counters, micros(now), window_id, by
            )
        )
        return closed

    async def open_window(
        self, flow: str, settings: WindowSettings, *, due_at: datetime, now: datetime
    ) -> bool:
        """Open a window without a member, unless this was done for the flow before."""
        opened: bool = await self._call(
            lambda _connection, _counters: self._intake.windows.open_alone(
                flow, settings, micros(now), micros(due_at)
            )
        )
        return opened

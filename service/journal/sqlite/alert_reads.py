"""Reads of alerts, with the service running or down."""

from __future__ import annotations

from typing import Any

import orjson

from turnout.service.journal.records import FlowAbout, StoredAlert

from . import alerts
from .reading import Reading
from .statements import load

_SQL = load("alerts")


class AlertReading(Reading):
    """Reads alerts."""

    async def alerts(self, *, ended: bool = False, limit: int = 1000) -> list[StoredAlert]:
        """Return the open alerts, or with `ended` also those that have ended; the newest first."""
        return await self.read(
            lambda connection: alerts.listed(connection, ended=ended, limit=limit)
        )

    async def pending_messages(self) -> dict[str, int]:
        """Return how many messages wait to be sent, by channel."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["pending"]).fetchall()
        )
        return dict(rows)

    async def flows_about(self) -> dict[str, FlowAbout]:
        """Return what flows say of themselves, by name; those that say nothing are left out."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["described"]).fetchall()
        )
        return {
            flow: FlowAbout(owner, tuple(orjson.loads(tags)), description)
            for flow, owner, tags, description in rows
        }

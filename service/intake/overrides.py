"""Limits that operators have set for a while, as the journal says: applied and ended here.

Not here: what a limit with another count does (`dispatch`), and the verbs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.units import format_duration
from turnout.service.journal.contract import Operations
from turnout.service.journal.records import StoredOverride
from turnout.service.telemetry.logs import get_logger

from .expiry import Expiry

log = get_logger("turnout")


class Overrides:
    """The limits that hold instead of those that flow files say."""

    def __init__(
        self,
        journal: Operations,
        dispatcher: Dispatcher,
        tasks: asyncio.TaskGroup,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._now = now
        self._overrides: Mapping[str, StoredOverride] = {}
        self._reading = asyncio.Lock()
        self._expiry = Expiry(self.recheck, now=now)

    async def open(self) -> None:
        """Read the overrides at the start of the service; those whose time came meanwhile end.

        One that was set in the future, under a clock that was ahead, has its whole time before it.
        """
        await self._end_due()
        now = self._now()
        for made in (await self._journal.overrides(now=now)).values():
            if made.since > now:
                until = now + (made.until - made.since)
                await self._journal.override(replace(made, since=now, until=until))
        await self.refresh()
        for made in self._overrides.values():
            log.warning("limit.overridden", **log_fields(made))

    async def refresh(self) -> None:
        """Apply what the journal says now: an operator has set or reset a limit."""
        async with self._reading:  # an answer read earlier must not be applied later
            self._overrides = await self._journal.overrides(now=self._now())
            self._dispatcher.override_limits(
                {name: made.count for name, made in self._overrides.items()}
            )
            self._expiry.arm(made.until for made in self._overrides.values())

    def recheck(self) -> None:
        """End the overrides whose time has come; the clock may have been set."""
        now = self._now()
        if any(made.until <= now for made in self._overrides.values()):
            self._tasks.create_task(self._end())
        else:
            self._expiry.arm(made.until for made in self._overrides.values())

    async def _end(self) -> None:
        await self._end_due()
        await self.refresh()

    async def _end_due(self) -> None:
        """Delete the overrides whose time has come; on a full disk they end all the same."""
        with suppress(JournalFull):
            for made in await self._journal.end_overrides(now=self._now()):
                log.info("limit.restored", name=made.name)

    def close(self) -> None:
        """Wait for no end any more."""
        self._expiry.close()


def log_fields(made: StoredOverride) -> dict[str, Any]:
    """Return what a log line says of an override."""
    fields: dict[str, Any] = {
        "name": made.name,
        "count": made.count,
        "lasts": format_duration(made.until - made.since),
    }
    return fields | {key: text for key, text in (("note", made.note), ("by", made.by)) if text}

"""What operators have paused, as the journal says it: applied here, ended here when time is up.

A pause is a row of the journal; this is the one place where a running service knows of it. Not
here: what a pause does to a queue (`dispatch/queue`), to a trigger (`status`), and the verbs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.units import format_duration
from turnout.service.journal.contract import Operations
from turnout.service.journal.records import EVERYTHING, StoredPause
from turnout.service.telemetry.logs import get_logger

from .emitter import HasProject, TriggerEmitter
from .expiry import Expiry

log = get_logger("turnout")


class Pauses:
    """The pauses in force; `held` are flows that start nothing yet for another reason."""

    def __init__(
        self,
        journal: Operations,
        dispatcher: Dispatcher,
        served: HasProject,
        emitters: Mapping[str, TriggerEmitter],
        tasks: asyncio.TaskGroup,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._served = served
        self._emitters = emitters
        self._tasks = tasks
        self._now = now
        self._pauses: Mapping[str, StoredPause] = {}
        self._held: Collection[str] = ()
        self._reading = asyncio.Lock()
        self._expiry = Expiry(self.recheck, now=now)

    # ---------------------------------------------------------------- what is paused

    @property
    def of_everything(self) -> StoredPause | None:
        """The pause under which no flow starts a run."""
        return self._pauses.get(EVERYTHING)

    @property
    def next_end(self) -> datetime | None:
        """When the next pause ends by itself; None if none does."""
        ends = (pause.until for pause in self._pauses.values())
        return min((each for each in ends if each is not None), default=None)

    def of_flow(self, flow: str) -> StoredPause | None:
        """Return the pause for which a flow starts no run: its own, or that of everything."""
        return self._pauses.get(f"flow:{flow}") or self.of_everything

    def of_trigger(self, trigger: str) -> StoredPause | None:
        """Return the pause for which a trigger accepts nothing."""
        return self._pauses.get(f"trigger:{trigger}")

    def stopped(self, flows: Collection[str]) -> dict[str, datetime]:
        """Return those flows that may start no run now, and since when."""
        pauses = {flow: self.of_flow(flow) for flow in flows}
        return {
            flow: self._now() if pause is None else pause.since
            for flow, pause in pauses.items()
            if pause is not None or flow in self._held
        }

    # ---------------------------------------------------------------- changes

    async def open(self) -> None:
        """Read the pauses at the start of the service; those whose time came meanwhile end.

        One that began in the future, under a clock that was ahead, has its whole time before it.
        """
        await self._end_due()
        now = self._now()
        for pause in (await self._journal.pauses(now=now)).values():
            if pause.since > now and pause.until is not None:
                until = now + (pause.until - pause.since)
                await self._journal.resume(pause.name)
                await self._journal.pause(replace(pause, since=now, until=until))
        self._pauses = await self._journal.pauses(now=now)
        for pause in self._pauses.values():
            log.warning("pause.continues", **log_fields(pause))
        self._arm()

    async def refresh(self) -> None:
        """Apply what the journal says now: an operator has paused or resumed something."""
        async with self._reading:  # an answer read earlier must not be applied later
            self._pauses = await self._journal.pauses(now=self._now())
            self.apply()
            self._arm()

    def hold(self, flows: Collection[str]) -> None:
        """Start nothing of these flows either, and of those held before again."""
        self._held = flows

    def apply(self) -> None:
        """Pause and resume the queues and triggers of the project that is served."""
        flows = self._served.project.flows
        stopped = self.stopped(flows)
        for flow in flows:
            if flow in stopped:
                self._dispatcher.pause(flow, stopped[flow])
            else:
                self._dispatcher.resume(flow)
        self.apply_to_triggers()

    def apply_to_triggers(self) -> None:
        """Pause and resume the triggers."""
        for name, emitter in self._emitters.items():
            emitter.status.pause(self.of_trigger(name))

    # ---------------------------------------------------------------- the end of a pause

    def recheck(self) -> None:
        """End the pauses whose time has come; the clock may have been set."""
        now = self._now()
        if any(pause.until is not None and pause.until <= now for pause in self._pauses.values()):
            self._tasks.create_task(self._end())
        else:
            self._arm()

    async def _end(self) -> None:
        await self._end_due()
        await self.refresh()

    async def _end_due(self) -> None:
        """Delete the pauses whose time has come; on a full disk they end here all the same."""
        with suppress(JournalFull):
            for pause in await self._journal.end_pauses(now=self._now()):
                log.info("pause.ended", **log_fields(pause))

    def _arm(self) -> None:
        """Wake up when the next pause ends."""
        self._expiry.arm(pause.until for pause in self._pauses.values())

    def close(self) -> None:
        """Wait for no end any more."""
        self._expiry.close()


def log_fields(pause: StoredPause) -> dict[str, Any]:
    """Return what a log line says of a pause."""
    fields: dict[str, Any] = {"name": pause.name}
    if pause.until is not None:
        fields["lasts"] = format_duration(pause.until - pause.since)
    for name, text in (("note", pause.note), ("by", pause.by)):
        if text:
            fields[name] = text
    return fields

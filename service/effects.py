"""What is to be done once the last run of an event has ended: a file moved, a file deleted.

Each effect is a fact in the journal until it is recorded as done, so it happens at least once
whatever crashes; triggers make it repeatable (`EndsEvents.ended`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .emitter import TriggerEmitter
from .errors import JournalFull
from .event import Event
from .journal.contract import Journal
from .logs import get_logger
from .trigger import EndsEvents

log = get_logger("turnout.effects")

BATCH = 200


class Effects:
    """Ends events: calls their trigger and records that it was done."""

    def __init__(
        self, journal: Journal, emitters: Callable[[], Mapping[str, TriggerEmitter]]
    ) -> None:
        self._journal = journal
        self._emitters = emitters
        self._busy: set[int] = set()

    async def event_ended(self, event_seq: int) -> None:
        """Carry out the event's effect if its last run has ended."""
        if event_seq in self._busy:
            return
        ended = await self._journal.event_ended(event_seq)
        if ended is not None:
            await self._carry_out(event_seq, *ended)

    async def sweep(self) -> int:
        """Carry out every effect that is due and not recorded; returns how many were."""
        done = after = 0
        while batch := await self._journal.effects(after, BATCH):
            for event_seq, event, succeeded in batch:
                after = event_seq
                done += await self._carry_out(event_seq, event, succeeded)
        return done

    async def _carry_out(self, event_seq: int, event: Event, succeeded: bool) -> bool:
        if event_seq in self._busy:
            return False  # two runs ended together and both asked
        self._busy.add(event_seq)
        try:
            return await self._carry_out_once(event_seq, event, succeeded)
        finally:
            self._busy.discard(event_seq)

    async def _carry_out_once(self, event_seq: int, event: Event, succeeded: bool) -> bool:
        emitter = self._emitters().get(event.trigger)
        if emitter is None or not isinstance(emitter.trigger, EndsEvents):
            return False  # the trigger is gone from the project: kept, in case it comes back
        try:
            changed = await emitter.trigger.ended(event, succeeded, emitter)
            await self._journal.record_effect(event_seq, changed)
        except JournalFull:
            return False  # the sweep comes by again
        except Exception as error:  # noqa: BLE001  foreign place (a disk, a share): reported, tried again later
            log.warning(
                "effect.failed",
                trigger=event.trigger,
                event=event.id,
                error=f"{type(error).__name__}: {error}",
            )
            return False
        return True

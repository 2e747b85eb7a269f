"""After-run actions: what a trigger does once the last run of an event has ended.

A file is moved or deleted, for example. The journal lists an action until it is recorded as done,
so it happens at least once, whatever crashes; triggers make it repeatable (`AfterRun.ended`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from turnout.service.domain.errors import (
    FOREIGN,
    JournalBroken,
    JournalFull,
    Overloaded,
    TooEarly,
    words_of,
)
from turnout.service.journal.contract import Intake
from turnout.service.journal.records import EndedEvent
from turnout.service.telemetry.logs import get_logger

from .emitter import TriggerEmitter

log = get_logger("turnout.after_run_actions")

BATCH = 200


class AfterRunActions:
    """Calls the trigger of each ended event and records the action as done."""

    def __init__(
        self, journal: Intake, emitters: Callable[[], Mapping[str, TriggerEmitter]]
    ) -> None:
        self._journal = journal
        self._emitters = emitters
        self._asked: dict[int, bool] = {}

    @property
    def at_work(self) -> bool:
        """Whether an action is running."""
        return bool(self._asked)

    async def event_ended(self, event_seq: int) -> bool:
        """Carry out the event's action if its last run has ended; returns whether it did.

        For runs that end together only one call works; it looks again if another run asked
        meanwhile.
        """
        if event_seq in self._asked:
            self._asked[event_seq] = True
            return False
        self._asked[event_seq] = True
        try:
            while self._asked[event_seq]:
                self._asked[event_seq] = False
                ended = await self._journal.event_ended(event_seq)
                if ended is not None and await self._carry_out(ended):
                    return True
        finally:
            del self._asked[event_seq]
        return False

    async def sweep(self, *, of_run: int | None = None) -> int:
        """Carry out every due action, or those of a windowed run's events; returns how many.

        A run is told by its seq.
        """
        done = after = 0
        while batch := await self._journal.due_actions(after, BATCH, of_run=of_run):
            for ended in batch:
                after = ended.seq
                done += await self.event_ended(ended.seq)
        return done

    async def _carry_out(self, ended: EndedEvent) -> bool:
        """Carry out an event's action; none if a rule has refused a run and no other has failed."""
        event, failure = ended.event, ended.failure
        emitter = self._emitters().get(event.trigger)
        if emitter is None:
            return False  # the trigger is gone: the action stays listed, in case it returns
        action = emitter.parts.after_run  # None: its settings ask for none any more
        if ended.is_refused and failure is None:
            action = None  # not everything that was to be done is done: a file stays
        try:
            session = emitter.current
            changed = None if action is None else await action.ended(event, failure, session)
            await self._journal.record_action(ended.seq, changed)
        except JournalBroken:
            raise
        except (JournalFull, TooEarly, Overloaded):  # the disk is full, paused, or stopping
            return False  # the next sweep tries again
        except FOREIGN as error:  # foreign code, or a network share: tried again later
            log.warning(
                "after_run_action.failed",
                trigger=event.trigger,
                event=event.id,
                error=words_of(error),
            )
            return False
        return True

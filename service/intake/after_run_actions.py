"""After-run actions: what a trigger does once the last run of an event has ended.

A file is moved or deleted, for example. The journal lists an action until it is recorded as done,
so it happens at least once, whatever crashes; triggers make it repeatable (`AfterRun.ended`). One
that fails is tried again ever more rarely, and counted in the trigger's figure `failing_actions`.
That of a trigger that is gone waits for it to return, as long as runs are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

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
FAILURES_A_SWEEP = 20
"""So many actions of a trigger fail before a sweep leaves its others to the next one: each may wait
long for a share that is gone, and pruning waits for the sweep."""
AGAIN_SECONDS = (30.0, 600.0)
"""After how long a failed action is tried again: the first time, and at most."""


@dataclass(slots=True)
class _Failing:
    """An action that has failed, and when it is tried again, on the monotonic clock."""

    wait: float
    again_at: float


class AfterRunActions:
    """Calls the trigger of each ended event and records the action as done."""

    def __init__(
        self,
        journal: Intake,
        emitters: Callable[[], Mapping[str, TriggerEmitter]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._emitters = emitters
        self._monotonic = monotonic
        self._asked: dict[int, bool] = {}
        self._failing: dict[int, _Failing] = {}
        self._failing_of: Counter[str] = Counter()

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

        A run is told by its seq. Left for later: actions that failed a short while ago, further
        ones of a trigger that fails and fails, and those of a trigger that is gone.
        """
        done = after = 0
        failed: Counter[str] = Counter()
        while batch := await self._journal.due_actions(after, BATCH, of_run=of_run):
            for ended in batch:
                after, trigger = ended.seq, ended.event.trigger
                if failed[trigger] >= FAILURES_A_SWEEP or self._waits(ended):
                    continue
                if await self.event_ended(after):
                    done += 1
                elif after in self._failing:
                    failed[trigger] += 1
        return done

    async def drop_old(self, accepted_before: datetime) -> int:
        """Drop due actions of triggers that are gone and may not return; returns how many.

        Their events were accepted before an instant. Without their action they are pruned by age.
        """
        after, dropped = 0, Counter[str]()
        while batch := await self._journal.due_actions(
            after, BATCH, accepted_before=accepted_before
        ):
            after = batch[-1].seq
            served = self._emitters()
            gone = [each for each in batch if each.event.trigger not in served]
            await asyncio.gather(*[self._journal.record_action(each.seq, None) for each in gone])
            dropped.update(each.event.trigger for each in gone)
        for trigger, events in dropped.items():
            log.warning("after_run_action.dropped", trigger=trigger, events=events)
        return dropped.total()

    def _waits(self, ended: EndedEvent) -> bool:
        """Whether a sweep leaves an action for later: it has failed, or its trigger is gone."""
        failing = self._failing.get(ended.seq)
        if failing is not None and self._monotonic() < failing.again_at:
            return True
        return ended.event.trigger not in self._emitters()

    def _note_failure(self, ended: EndedEvent, emitter: TriggerEmitter) -> None:
        """Put the next try off for twice as long as the last time."""
        first, longest = AGAIN_SECONDS
        failing = self._failing.get(ended.seq)
        wait = first if failing is None else min(2 * failing.wait, longest)
        trigger = ended.event.trigger
        self._failing[ended.seq] = _Failing(wait, self._monotonic() + wait)
        if failing is None:
            self._failing_of[trigger] += 1
            emitter.show("failing_actions", self._failing_of[trigger])

    def _note_success(self, ended: EndedEvent, emitter: TriggerEmitter) -> None:
        if self._failing.pop(ended.seq, None) is not None:
            self._failing_of[ended.event.trigger] -= 1
            emitter.show("failing_actions", self._failing_of[ended.event.trigger])

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
            self._note_failure(ended, emitter)
            return False
        self._note_success(ended, emitter)
        return True

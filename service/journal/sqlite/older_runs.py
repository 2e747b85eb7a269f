"""Ends older runs for something new: a newer run of the same key, or an event that cancels them.

Each method writes inside the transaction it is called in, and notes in the answer of the write what
it has ended, for the owner of the runs. Not here: which runs (`conditions`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import Refused
from turnout.service.domain.event import Event
from turnout.service.journal.records import Appended, Decision, Retried

from . import operations
from .conditions import Newcomer, OlderRun, Verdict
from .counters import RunCounters
from .decisions import add_decisions
from .skip import skip
from .statements import load
from .values import instant

_CANCELLED_BY = load("conditions")["cancelled_by"]


class OlderRuns:
    """Ends runs that are older than an entry."""

    __slots__ = ("_answer", "_at", "_connection", "_counters")

    def __init__(
        self,
        connection: apsw.Connection,
        counters: RunCounters,
        answer: Appended | Retried,
        at: int,
    ) -> None:
        self._connection = connection
        self._counters = counters
        self._answer = answer
        self._at = at

    def end_for(self, new: Newcomer, verdict: Verdict) -> None:
        """Cancel the runs that a new one replaces, and skip those that it makes outdated."""
        for old in verdict.replaces:
            made = _decision(old, new, Reason.REPLACED, "replace", f"run {new.id} replaced it")
            if self._cancel(old.id, reason=f"replaced by run {new.id}", by=""):
                add_decisions(self._connection, old.event_seq, (made,), self._at)
                self._answer.decided = (*self._answer.decided, made)
        for old in verdict.outdates:
            made = _decision(old, new, Reason.LATEST, "latest", f"run {new.id} took its place")
            run = skip(self._connection, self._counters, old.seq, made, self._at)
            if run is not None:
                self._answer.skipped = (*self._answer.skipped, run)
                self._answer.decided = (*self._answer.decided, made)

    def cancel_by(self, event: Event, cancels: Iterable[tuple[str, str]]) -> None:
        """Cancel the runs of each (flow, key) that an event cancels."""
        for flow, key in cancels:
            rows: list[Any] = self._connection.execute(_CANCELLED_BY, (flow, key)).fetchall()
            for (run_id,) in rows:
                self._cancel(run_id, reason=f"cancelled by event {event.id}", by=event.trigger)

    def _cancel(self, run_id: str, *, reason: str, by: str) -> bool:
        """Cancel a run with the children it waits for; False if it ends already."""
        now: datetime = instant(self._at)
        try:
            runs = operations.cancel(
                self._connection, self._counters, run_id, now, reason=reason, by=by
            )
        except Refused:
            return False
        self._answer.cancelled = (*self._answer.cancelled, *runs)
        return True


def _decision(old: OlderRun, new: Newcomer, reason: Reason, mode: str, words: str) -> Decision:
    facts = {"run": old.id, "other": new.id, "rule": f'mode="{mode}"'}
    return Decision(new.flow, reason, words, facts)

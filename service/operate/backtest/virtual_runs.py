"""Runs of one flow on a virtual clock: what its conditions let start, and what starts ends for.

The conditions are decided by a journal in memory, which is the real one's code. A run that really
was made starts and ends when it did; another one starts at once, or when its mode lets it, and
takes as long as runs of the flow usually do. What only delays a start is ignored.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Literal

from turnout.service.domain.conditions import MODE_RULE, Conditions
from turnout.service.domain.decisions import Reason
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Decision, NewRun, PastRun
from turnout.service.journal.scratch import ScratchJournal

_Step = Literal["start", "end"]
_CUT_OFF = frozenset({Reason.REPLACED, Reason.LATEST})
"""Reasons for which a run ends because of another one."""


@dataclass(slots=True)
class _Live:
    """A run that has not ended, and the real run it stands for, if there was one."""

    run: NewRun
    past: PastRun | None
    accepted_at: datetime
    began: bool = False


class VirtualRuns:
    """The runs of a flow; `ended` is called with each that ends, and why if for a newer one."""

    def __init__(self, typical: timedelta, ended: Callable[[str, Reason | None], None]) -> None:
        self._journal = ScratchJournal()
        self._typical = typical
        self._ended = ended
        self._live: dict[str, _Live] = {}
        self._under_way: dict[str, str] = {}  # the run under way, by the key of the mode
        self._behind: dict[str, str] = {}  # the run that waits for it
        self._due: list[tuple[datetime, int, _Step, str]] = []
        self._order = count()
        self.assumed = 0  # runs whose duration is not known

    def close(self) -> None:
        """Release the memory."""
        self._journal.close()

    def keep(self, run: NewRun, past: PastRun) -> None:
        """Take a run that really was accepted, whatever the conditions would say."""
        self._pass(past.queued_at)
        self._journal.keep(run, past.queued_at)
        self._take(_Live(run, past, past.queued_at))

    def arrive(self, run: NewRun, at: datetime, past: PastRun | None) -> Decision | None:
        """Decide about a run that arrives; returns why it is refused, None if it is not.

        `past` is the real run of the event; one that another run has cut off says nothing of how
        long it would have taken.
        """
        self._pass(at)
        asked = run.conditions
        if asked is not None:
            run.conditions = _without_bound(asked)
        live = _Live(run, past, at)
        starts = self._starts_at(live)
        if starts is not None and starts <= at:
            run.state, live.began = RunState.RUNNING, True
        stored = self._journal.arrive(run, at)
        for decided in stored.decided:
            older = decided.facts.get("run")
            if decided.reason in _CUT_OFF and isinstance(older, str):
                self._forget(older)
                self._ended(older, decided.reason)
        refused = stored.refused.get(run.id)
        if refused is None:
            self._take(live)
        return refused

    # ---------------------------------------------------------------- starting and ending

    def _take(self, live: _Live) -> None:
        """Plan the start and the end of an accepted run."""
        run, past = live.run, live.past
        self._live[run.id] = live
        if live.began:
            self._begun(live, live.accepted_at)
        else:
            starts = self._starts_at(live)
            key = _mode_key(run)
            if starts is not None:
                self._plan(starts, "start", run.id)
            elif key is not None and key in self._under_way and not _never_began(past):
                self._behind[key] = run.id
        if past is not None and past.finished_at is not None and not _was_cut_off(past):
            self._plan(past.finished_at, "end", run.id)

    def _starts_at(self, live: _Live) -> datetime | None:
        """Return when a run starts, None if that is not known yet, or if it never does."""
        past = live.past
        if past is not None and (past.started_at is not None or _never_began(past)):
            return past.started_at
        key = _mode_key(live.run)
        is_behind = key is not None and key in self._under_way
        return None if is_behind else _not_before(past, live.accepted_at)

    def _begun(self, live: _Live, at: datetime) -> None:
        live.began = True
        run, past = live.run, live.past
        key = _mode_key(run)
        if key is not None:
            self._under_way[key] = run.id
        if past is None or _was_cut_off(past):
            self.assumed += 1
            ends = at + self._typical
            if past is not None and past.finished_at is not None:
                ends = max(ends, past.finished_at + timedelta(microseconds=1))
            self._plan(ends, "end", run.id)

    def _pass(self, now: datetime) -> None:
        """Let everything happen that is due."""
        while self._due and self._due[0][0] <= now:
            at, _, step, run_id = heapq.heappop(self._due)
            live = self._live.get(run_id)
            if live is None:
                continue  # it has ended for another run
            if step == "end":
                self._end(live, at)
            elif not live.began:
                self._journal.start(live.run, at)
                self._begun(live, at)

    def _end(self, live: _Live, at: datetime) -> None:
        past = live.past
        known = past is not None and not _was_cut_off(past)
        state = past.state if past is not None and known else RunState.SUCCEEDED
        self._journal.end(live.run, state, at)
        self._forget(live.run.id)
        self._ended(live.run.id, None)
        key = _mode_key(live.run)
        behind = None if key is None else self._behind.pop(key, None)
        if behind is not None and behind in self._live:
            self._plan(_not_before(self._live[behind].past, at), "start", behind)

    def _forget(self, run_id: str) -> None:
        live = self._live.pop(run_id, None)
        key = None if live is None else _mode_key(live.run)
        if key is not None and self._under_way.get(key) == run_id:
            del self._under_way[key]

    def _plan(self, at: datetime, step: _Step, run_id: str) -> None:
        heapq.heappush(self._due, (at, next(self._order), step, run_id))


def _mode_key(run: NewRun) -> str | None:
    return None if run.keys is None else run.keys.get(MODE_RULE)


def _was_cut_off(past: PastRun) -> bool:
    """Whether another run has ended it."""
    return past.refused in _CUT_OFF


def _not_before(past: PastRun | None, at: datetime) -> datetime:
    """Return when a run may start; one that really waited until a newer one came waits so long."""
    if past is None or not _was_cut_off(past) or past.started_at or past.finished_at is None:
        return at
    return max(at, past.finished_at + timedelta(microseconds=1))


def _never_began(past: PastRun | None) -> bool:
    """Whether a real run has ended before its first start, and not for another run."""
    return (
        past is not None
        and past.started_at is None
        and past.finished_at is not None
        and not _was_cut_off(past)
    )


def _without_bound(asked: Conditions) -> Conditions:
    """Return the conditions without the bound of the queue, which refuses a whole delivery."""
    return asked if asked.max_queued is None else replace(asked, max_queued=None)

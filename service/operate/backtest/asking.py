"""Evaluates a flow against the stored events of a period, in the order they came.

Not here: windows (`windows`), runs on the virtual clock (`virtual_runs`), and what the report
counts (`report`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import CALLED, Event, mint_id
from turnout.service.domain.event_types import EMITTERS, matches
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import StartsOnType
from turnout.service.domain.units import format_duration
from turnout.service.domain.windows.absent import ABSENT
from turnout.service.flowcontrol.keys import keys_of, with_order
from turnout.service.flowcontrol.priority import class_of
from turnout.service.intake.router import route
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import Arrival, Decision, NewMember, NewRun, PastRun
from turnout.service.project import AnyFlow, Project

from .past import known_run, of_event
from .report import FAILED, NOT_ASKED, OPEN, STARTED, Asked, KeepTimes, Report, WindowReport
from .unseen import tell_what_is_not_seen
from .virtual_runs import VirtualRuns
from .virtual_windows import Joining, micros
from .windows import Closed, Windows


async def backtest(
    reads: Reads,
    project: Project,
    name: str,
    *,
    since: datetime,
    until: datetime,
    keep_times: KeepTimes,
) -> Report:
    """Return what the flow of this name would have started of the stored events of a period.

    `project` has its code of today, or another one; in the journal the flow has this name.
    """
    flow = replace(_flow_named(project, name), shadow=False)
    typical = await reads.typical_duration(name, since=since)
    made = await asyncio.to_thread(  # it reads the statements of the journal
        Backtest, project, flow, name, since, until, typical or timedelta(0)
    )
    try:
        await made.run(reads)
    finally:
        made.close()
    tell_what_is_not_seen(made.report, flow, keep_times)
    if made.assumed:
        made.report.notes.append(
            f"how long {made.assumed} runs would take is not known: taken to be "
            f"{format_duration(typical or timedelta(0))}, as long as others of the flow"
        )
    return made.report


def _flow_named(project: Project, name: str) -> AnyFlow:
    for flow in project.flows.values():
        if name in (flow.name, flow.was):
            return flow
    raise LookupError(name)


class _Answer(NamedTuple):
    """What an event comes to by the router, why, and what is to be decided about."""

    would: str
    why: str = ""
    run: NewRun | None = None
    member: NewMember | None = None


class Backtest:
    """Asks one flow about the events of a period, one after the other."""

    def __init__(
        self,
        project: Project,
        flow: AnyFlow,
        name: str,
        since: datetime,
        until: datetime,
        typical: timedelta,
    ) -> None:
        self.report = Report(name, since, until, flow.code_version)
        self._project = project
        self._flow = flow
        self._name = name
        self._since = since
        self._until = until
        self._triggers = [trigger.name for trigger in flow.triggers]
        asks = flow.conditions
        self._runs = None if asks is None else VirtualRuns(typical, self._ended)
        self._live: dict[str, Asked | Closed] = {}
        self._beside: list[Arrival] = []
        self._windows: Windows | None = None
        if flow.window is not None:
            self.report.windows = WindowReport(flow.window.kind)
            self._windows = Windows(
                flow, name, self.report.windows,
                arrive=self._run_arrives, accepted=self._window_accepted, told=self.report.add,
                member_of=self._member_of,
            )  # fmt: skip

    @property
    def assumed(self) -> int:
        """How many runs there are whose duration is not known."""
        return 0 if self._runs is None else self._runs.assumed

    def close(self) -> None:
        """Release what it holds."""
        if self._runs is not None:
            self._runs.close()

    async def run(self, reads: Reads) -> None:
        """Ask the flow about each event of the period."""
        self._beside = await self._read_beside(reads)
        if self._windows is not None:
            await self._windows.begin(reads, self._since, self._until)
        async for arrival in self._arrivals(reads):
            self._pass(*_order(arrival), arrival.window)
            self._arrive(arrival)
        self._pass(self._until, -1)
        for run_id in list(self._live):
            self._settle(run_id)
        if self._windows is not None:
            self._windows.end(self._until)
            await self._windows.name_events(reads)
            self.report.notes += self._windows.notes()

    async def _read_beside(self, reads: Reads) -> list[Arrival]:
        """Return the runs that count and are not of the period's events, the latest first."""
        if self._runs is None:
            return []
        found = await reads.runs_beside(
            self._name,
            since=self._since,
            accepted_since=self._since - _memory_of(self._flow),
            until=self._until,
        )
        return sorted(found, key=_order, reverse=True)

    async def _arrivals(self, reads: Reads) -> AsyncIterator[Arrival]:
        after = 0
        while True:
            page = await reads.arrivals(
                self._name, self._triggers, since=self._since, until=self._until, after_seq=after
            )
            if self._windows is not None:
                seqs = [each.window for each in page if each.window is not None]
                await self._windows.read(reads, seqs, self._until)
            for arrival in page:
                yield arrival
            if not page:
                return
            after = page[-1].stored.seq

    def _pass(self, until: datetime, seq: float, window: int | None = None) -> None:
        """Let happen what did beside the events, and what windows do, until an event arrives.

        `window` is the real one that the event was in: at one instant with the event, an operator
        can only have closed it afterwards.
        """
        while True:
            beside = _order(self._beside[-1]) if self._beside else None
            closes = None if self._windows is None else self._windows.next_at()
            is_next = beside is not None and (closes is None or beside[0] < closes)
            if beside is not None and is_next and beside < (until, seq):
                self._keep(self._beside.pop())
            elif self._windows is not None and closes is not None and closes <= until:
                if closes == until and self._windows.next_is_closed_by_hand(window):
                    return
                self._windows.go_on()
            else:
                return

    def _keep(self, arrival: Arrival) -> None:
        """Play back a run from before the period, or a replay, as recorded."""
        assert self._runs is not None
        past = arrival.runs[0]
        run = self._new_run(arrival)
        if run is None:
            return
        asked = run.conditions
        if asked is not None and past.replay:
            run.conditions = asked.of_replay()
        if past.queued_at < self._since or run.conditions is None or past.was_forced:
            self._runs.keep(run, past)
        else:
            self._runs.arrive(run, past.queued_at, past)

    def _new_run(self, arrival: Arrival) -> NewRun | None:
        """Return a run for an event that is not routed, None if its keys cannot be told."""
        flow, event = self._flow, arrival.stored.event
        run = NewRun(
            id=mint_id(), flow=flow.name, state=RunState.QUEUED, conditions=flow.conditions,
            replay=arrival.runs[0].replay,
        )  # fmt: skip
        try:
            run.order_key, run.priority = flow.order_key(event), class_of(flow, event)
            run.keys = with_order(keys_of(flow, event), run.order_key, run.priority)
        except Exception:  # noqa: BLE001  the author's code; a run without keys refuses nobody
            return None
        return run

    # ---------------------------------------------------------------- an event

    def _arrive(self, arrival: Arrival) -> None:
        """Ask the flow about an event."""
        stored, event = arrival.stored, arrival.stored.event
        if event.type == ABSENT and event.source == "turnout":
            return  # a window made it, as it fired without a member
        answer, did = self._asked(arrival), self._did(arrival)
        if did == answer.would == NOT_ASKED:
            return
        if self.report.windows is not None and arrival.runs:
            self.report.windows.runs_did += did == STARTED
        asked = Asked(
            event.id,
            _trigger_of(self._flow, event),
            stored.accepted_at,
            did=did,
            would=answer.would,
            why=answer.why,
        )
        if answer.member is not None:
            self._offer(arrival, answer.member, asked)
        elif answer.run is None or self._runs is None:
            self._tell(asked)
        else:
            past = known_run(next(iter(arrival.runs), None), did)
            refused = self._runs.arrive(answer.run, stored.accepted_at, past)
            if refused is None:
                self._live[answer.run.id] = asked
            else:
                asked.would, asked.why = refused.reason, refused.detail
                self._tell(asked)

    def _did(self, arrival: Arrival) -> str:
        """Return what an event really came to, by itself or in a window."""
        run = next(iter(arrival.runs), None)
        if self._windows is not None:
            past = self._windows.past(arrival.window)
            if past is not None:
                return self._windows.did(past, arrival.stored.accepted_at)
        did = of_event(self._name, run, arrival.stored.decisions)
        was_in_window = did == NOT_ASKED and arrival.window is not None  # its flow had one once
        return STARTED if was_in_window else did

    def _asked(self, arrival: Arrival) -> _Answer:
        """Return what an event comes to by the router."""
        event = arrival.stored.event
        if event.type == CALLED and arrival.runs:
            run = self._new_run(arrival)
            if run is None:
                return _Answer(FAILED, "its keys cannot be told")
            asked = run.conditions
            run.conditions = None if asked is None else asked.of_child()
            return _Answer(STARTED, run=run)
        if not any(flow.name == self._flow.name for flow in self._project.started_by(event)):
            return _Answer(NOT_ASKED, "the flow does not listen to it")
        entry = route(event, [self._flow]).entry
        if entry.members:
            return _Answer(OPEN, member=entry.members[0])
        if not entry.runs:
            decision = entry.decisions[0]
            return _Answer(decision.reason, decision.detail)
        run = entry.runs[0]
        if run.error is not None:
            return _Answer(FAILED, f"{run.error.type}: {run.error.message}")
        return _Answer(STARTED, run=run)

    # ---------------------------------------------------------------- windows

    def _member_of(self, event: Event) -> NewMember | None:
        """Return what the flow says of an event for its window, None if it does not take it."""
        return next(iter(route(event, [self._flow]).entry.members), None)

    def _offer(self, arrival: Arrival, member: NewMember, asked: Asked) -> None:
        """Offer an event to the window of its key."""
        assert self._windows is not None
        stored = arrival.stored
        joining = Joining(
            member, asked.event, micros(stored.accepted_at), len(stored.event.body), asked,
            self._windows.past(arrival.window),
        )  # fmt: skip
        ignored = self._windows.offer(joining)
        if ignored is not None:
            asked.would, asked.why = Reason.WINDOWED, ignored
            self._tell(asked)

    def _run_arrives(self, run: NewRun, at: datetime, past: PastRun | None) -> Decision | None:
        return None if self._runs is None else self._runs.arrive(run, at, past)

    def _window_accepted(self, run_id: str, closed: Closed) -> None:
        self._live[run_id] = closed
        if self._runs is None:
            self._settle(run_id)

    # ---------------------------------------------------------------- the end of a run

    def _tell(self, asked: Asked) -> None:
        """Tell of an event that is in no window."""
        self.report.add(asked)
        if self.report.windows is not None:
            self.report.windows.runs_would += asked.would == STARTED

    def _ended(self, run_id: str, reason: Reason | None) -> None:
        """Note that a run would have ended, and why if for a newer one."""
        asked = self._live.get(run_id)
        if asked is None:
            return
        if reason is not None:
            asked.would, asked.why = reason, "a newer run of its key took its place"
        self._settle(run_id)

    def _settle(self, run_id: str) -> None:
        """Tell what an event or a window would have come to."""
        asked = self._live.pop(run_id)
        if isinstance(asked, Asked):
            self._tell(asked)
        else:
            assert self._windows is not None
            self._windows.settle(asked)


def _order(arrival: Arrival) -> tuple[datetime, float]:
    """Return when a run was made, or an event came that has none; runs of one instant by seq."""
    if not arrival.runs:
        return arrival.stored.accepted_at, math.inf
    return arrival.runs[0].queued_at, arrival.runs[0].seq


def _trigger_of(flow: AnyFlow, event: Event) -> str:
    """Return the trigger of a flow that an event is of, or who emitted it."""
    if event.trigger not in EMITTERS:
        return event.trigger
    for trigger in flow.triggers:
        if isinstance(trigger, StartsOnType) and matches(trigger.event_type, event.type):
            return trigger.name
    return event.trigger


def _memory_of(flow: AnyFlow) -> timedelta:
    """Return for how long an accepted run counts for later ones after it has ended."""
    asked = flow.conditions
    if asked is None:
        return timedelta(0)
    spans = [rule.period for rule in asked.rate_limits]
    if isinstance(asked.unique, timedelta):
        spans.append(asked.unique)
    return max(spans, default=timedelta(0))

"""Backtest: what a flow would have started of the events that are stored, beside what it did.

The events of a period are routed again, in the order they came and at their own instants. Filter,
parameters and keys are asked by the router, unique, mode and rate limits by a journal in memory.
Not asked: what only delays (concurrency, throttle, order), bounds of queues, pauses, and what came
before the flow is asked at all: identity.

Not here: the runs on the virtual clock (`virtual_runs`).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import CALLED, Event, mint_id
from turnout.service.domain.event_types import EMITTERS, matches
from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import StartsOnType, parts_of
from turnout.service.domain.units import format_duration
from turnout.service.flowcontrol.keys import keys_of, with_order
from turnout.service.flowcontrol.priority import class_of
from turnout.service.intake.router import route
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import Arrival, NewRun, PastRun
from turnout.service.project import AnyFlow, Project

from .documents import instant
from .virtual_runs import VirtualRuns

MOST_SHOWN = 1_000
"""The most differences that are told one by one."""

STARTED, FAILED, NOT_ASKED = "started", "failed", "not_asked"
"""What an event came to, beside the reasons of decisions: a run, a dead letter, nothing at all."""

_NOT_JUDGED = frozenset({Reason.START_TIMEOUT, Reason.DROPPED})
"""Reasons for which a run that was accepted never began; they depend on delays and operators."""


class Kept(NamedTuple):
    """For how long events are kept that started nothing, and those whose runs have ended."""

    unmatched: timedelta
    finished: timedelta


@dataclass(frozen=True, slots=True)
class Difference:
    """An event that would have come to something else than it did; `why` says the reason."""

    event: str
    trigger: str
    accepted_at: datetime
    did: str
    would: str
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {
            "event": self.event,
            "trigger": self.trigger,
            "accepted_at": instant(self.accepted_at),
            "did": self.did,
            "would": self.would,
            "why": self.why,
        }


@dataclass(slots=True)
class Seen:
    """What was seen of a trigger: how many events, since when, and what could not be seen."""

    events: int = 0
    since: datetime | None = None
    did: Counter[str] = field(default_factory=Counter)
    would: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What a flow did in a period, and what it would have done."""

    flow: str
    since: datetime
    until: datetime
    code_version: str
    events: int = 0
    did: Counter[str] = field(default_factory=Counter)
    would: Counter[str] = field(default_factory=Counter)
    triggers: dict[str, Seen] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    different: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, asked: _Asked) -> None:
        """Count an event of which it is clear what it would have come to."""
        self.events += 1
        self.did[asked.did] += 1
        self.would[asked.would] += 1
        seen = self.triggers.setdefault(asked.trigger, Seen())
        seen.events += 1
        seen.did[asked.did] += 1
        seen.would[asked.would] += 1
        seen.since = min(seen.since or asked.accepted_at, asked.accepted_at)
        if not asked.agrees:
            self.different += 1
            if len(self.differences) < MOST_SHOWN:
                self.differences.append(asked.difference())

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON shows it."""
        return {
            "flow": self.flow,
            "since": instant(self.since),
            "until": instant(self.until),
            "code_version": self.code_version,
            "events": self.events,
            "did": dict(self.did),
            "would": dict(self.would),
            "different": self.different,
            "triggers": [
                {
                    "name": name,
                    "events": seen.events,
                    "since": instant(seen.since),
                    "did": dict(seen.did),
                    "would": dict(seen.would),
                    "notes": seen.notes,
                }
                for name, seen in sorted(self.triggers.items())
            ],
            "notes": self.notes,
            "differences": [each.as_dict() for each in sorted(self.differences, key=_by_arrival)],
        }


@dataclass(slots=True)
class _Asked:
    """An event that the flow was asked about; `would` may still change while its run lives."""

    event: str
    trigger: str
    accepted_at: datetime
    did: str
    would: str
    why: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it would come to what it did; a shadow did nothing, and said what it would."""
        shadowed = self.did == Reason.SHADOW and self.would in (STARTED, FAILED)
        return shadowed or self.did == self.would

    def difference(self) -> Difference:
        return Difference(
            self.event, self.trigger, self.accepted_at, self.did, self.would, self.why
        )


def _by_arrival(one: Difference) -> datetime:
    return one.accepted_at


async def backtest(
    reads: Reads,
    project: Project,
    name: str,
    *,
    since: datetime,
    until: datetime,
    kept: Kept,
) -> Report:
    """Return what the flow of this name would have started of the stored events of a period.

    `project` has its code of today, or another one; in the journal the flow has this name.
    """
    flow = replace(_flow_named(project, name), shadow=False)
    if flow.window is not None:
        raise SetupError(
            f"flow {name!r} is started by a window, {flow.window.kind}(…): backtest asks flows of "
            "which each event starts a run",
            file=flow.file,
            line=flow.line,
        )
    typical = await reads.typical_duration(name, since=since)
    made = await asyncio.to_thread(  # it reads the statements of the journal
        Backtest, project, flow, name, since, until, typical or timedelta(0)
    )
    try:
        await made.run(reads)
    finally:
        made.close()
    _tell_what_is_not_seen(made.report, flow, kept)
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
        asks = flow.conditions
        self._runs = None if asks is None else VirtualRuns(typical, self._ended)
        self._live: dict[str, _Asked] = {}

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
        beside = await self._beside(reads)
        async for arrival in self._arrivals(reads):
            while beside and _place(beside[-1]) < _place(arrival):
                self._keep(beside.pop())
            self._arrive(arrival)
        for asked in self._live.values():
            self.report.add(asked)
        self._live.clear()

    async def _beside(self, reads: Reads) -> list[Arrival]:
        """Return the runs that count and are not of the period's events, the latest first."""
        if self._runs is None:
            return []
        found = await reads.runs_beside(
            self._name,
            since=self._since,
            accepted_since=self._since - _memory_of(self._flow),
            until=self._until,
        )
        return sorted(found, key=_place, reverse=True)

    async def _arrivals(self, reads: Reads) -> AsyncIterator[Arrival]:
        triggers = [trigger.name for trigger in self._flow.triggers]
        after = 0
        while True:
            page = await reads.arrivals(
                self._name, triggers, since=self._since, until=self._until, after_seq=after
            )
            for arrival in page:
                yield arrival
            if not page:
                return
            after = page[-1].stored.seq

    def _keep(self, arrival: Arrival) -> None:
        """Take a run of before the period, or a replay, as it really went."""
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

    def _arrive(self, arrival: Arrival) -> None:
        """Ask the flow about an event."""
        stored, past = arrival.stored, next(iter(arrival.runs), None)
        event = stored.event
        would, why, run = self._asked(arrival)
        did = _did(self._name, past, stored.decisions)
        if did == would == NOT_ASKED:
            return
        asked = _Asked(
            event.id,
            _trigger_of(self._flow, event),
            stored.accepted_at,
            did=did,
            would=would,
            why=why,
        )
        if run is None or self._runs is None:
            self.report.add(asked)
            return
        if past is not None and did in (Reason.REPLACED, Reason.LATEST):
            past = past._replace(refused=did)
        elif past is not None and past.refused is not None and did != STARTED:
            past = None  # it was refused: how it would have gone is not known
        refused = self._runs.arrive(run, stored.accepted_at, past)
        if refused is None:
            self._live[run.id] = asked
            return
        asked.would, asked.why = refused.reason, refused.detail
        self.report.add(asked)

    def _asked(self, arrival: Arrival) -> tuple[str, str, NewRun | None]:
        """Return what an event comes to by the router, why, and the run to decide about."""
        event = arrival.stored.event
        if event.type == CALLED and arrival.runs:
            run = self._new_run(arrival)
            if run is None:
                return FAILED, "its keys cannot be told", None
            asked = run.conditions
            run.conditions = None if asked is None else asked.of_child()
            return STARTED, "", run
        listening = (flow.name for flow in self._project.started_by(event))
        if self._flow.name not in listening:
            return NOT_ASKED, "the flow does not listen to it", None
        routed = route(event, [self._flow])
        if not routed.entry.runs:
            decision = routed.entry.decisions[0]
            return decision.reason, decision.detail, None
        run = routed.entry.runs[0]
        if run.error is not None:
            return FAILED, f"{run.error.type}: {run.error.message}", None
        return STARTED, "", run

    def _ended(self, run_id: str, reason: Reason | None) -> None:
        """Note that a run would have ended, and why if for a newer one."""
        asked = self._live.pop(run_id, None)
        if asked is None:
            return
        if reason is not None:
            asked.would, asked.why = reason, "a newer run of its key took its place"
        self.report.add(asked)


def _place(arrival: Arrival) -> tuple[datetime, float]:
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


def _did(flow: str, past: PastRun | None, decisions: Sequence[Mapping[str, Any]]) -> str:
    """Return what an event really came to at a flow."""
    of_flow = [made for made in decisions if made["flow"] == flow]
    if past is None:
        return str(of_flow[0]["reason"]) if of_flow else NOT_ASKED
    if past.refused is not None and past.refused not in _NOT_JUDGED:
        return past.refused
    if past.state is RunState.FAILED and past.started_at is None:
        return FAILED
    replaced = (made for made in of_flow if made["reason"] == Reason.REPLACED)
    is_replaced = any(made["facts"].get("run") == past.id for made in replaced)
    return str(Reason.REPLACED) if is_replaced else STARTED


def _memory_of(flow: AnyFlow) -> timedelta:
    """Return for how long an accepted run counts for later ones after it has ended."""
    asked = flow.conditions
    if asked is None:
        return timedelta(0)
    spans = [rule.period for rule in asked.rate_limits]
    if isinstance(asked.unique, timedelta):
        spans.append(asked.unique)
    return max(spans, default=timedelta(0))


# ---------------------------------------------------------------- what cannot be seen


def _tell_what_is_not_seen(report: Report, flow: AnyFlow, kept: Kept) -> None:
    """Add to each trigger what the journal does not keep of its events."""
    samples = {trigger.name: parts_of(trigger).unmatched_sample for trigger in flow.triggers}
    for name in samples:
        report.triggers.setdefault(name, Seen())
    age = report.until - report.since
    for name, seen in report.triggers.items():
        seen.notes += _notes(samples.get(name), age, kept, seen)


def _notes(sample: int | None, age: timedelta, kept: Kept, seen: Seen) -> Iterator[str]:
    if not seen.events:
        yield "no events of it are stored"
    if sample is not None:
        yield f"of the events that started nothing, one in {sample:,} is kept"
    if kept.unmatched < age:
        span = format_duration(kept.unmatched)
        yield f"events that started nothing are kept for {span}"
    if kept.finished < age:
        span = format_duration(kept.finished)
        yield f"events whose runs have ended are kept for {span}"

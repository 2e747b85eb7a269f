"""The service as runs see it: starts a child, emits an event, links to an approval.

The calling step and what it starts are written in one transaction (`submit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial

from turnout.service.dispatch.deadlock import WaitGraph
from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event
from turnout.service.domain.run import Fail, Refused, Run, RunState
from turnout.service.flowcontrol.keys import keys_of, with_order
from turnout.service.flowcontrol.priority import class_of
from turnout.service.governance.links import Links
from turnout.service.journal.contract import Steps
from turnout.service.journal.records import (
    Appended,
    Claim,
    Entry,
    NewRun,
    Opening,
    StepRecord,
    run_topic,
)
from turnout.service.project import Project

from .awaited import Awaited
from .cancels import CancellingEvents
from .router import Routed, route
from .submit import Submit


class ServiceHost:
    """Implements `context.RunHost`."""

    def __init__(
        self,
        journal: Steps,
        dispatcher: Dispatcher,
        submit: Submit,
        awaited: Awaited,
        cancelling: CancellingEvents,
        *,
        project: Callable[[], Project],
        links: Callable[[], Links],
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._submitter = submit
        self._awaited = awaited
        self._cancelling = cancelling
        self._project = project
        self._links = links
        self._now = now
        self._wait_graph = WaitGraph(journal, dispatcher)

    async def start(
        self, claim: Claim, step: StepRecord, flow: str, event: Event, race: str | None = None
    ) -> None:
        """Start the child run `step.origin` of a flow for `event`; see `context.RunHost`."""
        child = self._project().flows.get(flow)
        if child is None or step.origin is None:
            raise Fail(
                f"flow {flow!r} is not served here: import it in a flow file that is, so that its "
                "runs can start"
            )
        if child.shadow:
            raise Refused(Reason.SHADOW, None)
        asked = event.own() if child.asks else event
        order_key, priority = child.order_key(asked), class_of(child, asked)
        run = NewRun(
            id=step.origin,
            flow=flow,
            state=RunState.QUEUED,
            order_key=order_key,
            keys=with_order(keys_of(child, asked), order_key, priority),
            priority=priority,
            conditions=None if child.conditions is None else child.conditions.of_child(),
            code_version=child.code_version,
        )
        routed = Routed(
            Entry(event=event, runs=[run]), [(run, child, event, child.bind(event))], {}
        )
        opening = Opening(topic=run_topic(run.id), race=race)
        if order_key is None and not self._dispatcher.keeps_slots(flow):
            await self._submit(claim, step, routed, opening)
            return
        with self._wait_graph.pending_call(claim.run_id, run) as earlier:
            await self._wait_graph.refuse_deadlock(claim, run, earlier)
            await self._submit(claim, step, routed, opening)

    async def emit(self, claim: Claim, step: StepRecord, again: StepRecord, event: Event) -> None:
        """Store an event and start the flows that listen for its type; see `context.RunHost`."""
        routed = route(event, self._project().by_type.of(event.type))
        self._cancelling.add_to(routed.entry)
        self._awaited.add_topics(routed.entry)
        await self._submit(claim, step, routed, again=again)

    async def end_children(self, claim: Claim) -> list[str]:
        """Cancel the children that an ending run waits for; see `context.RunHost`."""
        cancelled, left = await self._journal.end_children(claim, now=self._now())
        self.tell_cancelled(cancelled)
        return left

    def tell_cancelled(self, runs: Iterable[Run]) -> None:
        """Stop child runs that were cancelled in the journal."""
        for run in runs:
            self._dispatcher.cancel(run)

    def watch(self, shape: tuple[str, ...]) -> None:
        """Compare these fields of a trigger's events from now on: (trigger, field…)."""
        self._awaited.watch(shape)

    def link(self, run_id: str, key: str, until: datetime, asked_at: datetime) -> str:
        """Return the signed address where a person answers an approval."""
        return self._links().address(run_id, key, until, asked_at)

    async def _submit(
        self,
        claim: Claim,
        step: StepRecord,
        routed: Routed,
        opening: Opening | None = None,
        again: StepRecord | None = None,
    ) -> None:
        """Write the step together with what it starts; raises `Fail` if the event's id is taken."""
        entry = routed.entry
        write = partial(
            self._journal.record_with,
            claim,
            step,
            entries=[entry],
            opening=opening,
            again=again,
        )
        (has_conflict,) = await self._submitter([routed], write, _has_conflict)
        if has_conflict:
            event = entry.event
            raise Fail(
                f"emit({event.type!r}, id={event.id!r}): this id was used before for an event of "
                "another type, subject or data"
            )


def _has_conflict(_routed: Routed, stored: Appended, _at: datetime) -> bool:
    return stored.conflict

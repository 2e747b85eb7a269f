"""What an operator may do to runs, events, flows and triggers: one method per verb.

Works in a running service (with dispatcher and emitters) and on the journal of a stopped one
(without). `fire` and `emit` need the running service; the other verbs write to the journal.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.errors import InvalidData, NotFound, Refused, words_of
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.domain.trigger import Receipt, Seek, Seekable, SeekPlan
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.intake.router import route
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Filter, NewRun, StoredEvent, UsedLink
from turnout.service.project import Project
from turnout.service.steps.approval import find_fields, read_fields
from turnout.service.telemetry.logs import get_logger

log = get_logger("turnout.operator")

BULK = 500


def _nothing_to_stop(_trigger: str) -> AbstractAsyncContextManager[None]:
    """Stop no trigger, where none is running."""
    return nullcontext()


class Operator:
    """The operator's verbs; each is durable on return."""

    def __init__(
        self,
        journal: Journal,
        *,
        now: Callable[[], datetime],
        dispatcher: Dispatcher | None = None,
        project: Callable[[], Project] = Project,
        emitters: Callable[[], Mapping[str, TriggerEmitter]] = dict,
        api: TriggerEmitter | None = None,
        connection: Callable[[str], Mapping[str, Any]] | None = None,
        stopped: Callable[[str], AbstractAsyncContextManager[None]] = _nothing_to_stop,
    ) -> None:
        self._journal = journal
        self._now = now
        self._dispatcher = dispatcher
        self._project = project
        self._emitters = emitters
        self._api = api
        self._connection = connection
        self._stopped = stopped

    async def cancel(self, run_id: str, *, reason: str = "", by: str = "") -> Run:
        """Cancel an unfinished run; a running one stops at its next await.

        It ends as `cancelled` at once, or after its undo (`undo` is `running` until then). Children
        it waits for are cancelled too and end first.
        Raises `NotFound`, `Refused` (it has ended, or is already being undone).
        """
        runs = await self._journal.cancel(run_id, now=self._now(), reason=reason, by=by)
        if self._dispatcher is not None:
            for run in runs:
                self._dispatcher.cancel(run)
        return runs[0]

    async def cancel_children(self, run_seq: int, run_id: str) -> None:
        """Cancel the children that a finished run was waiting for."""
        for step in await self._journal.steps(run_seq):
            if step.state == "waiting" and step.origin:
                with suppress(Refused, NotFound):
                    await self.cancel(step.origin, reason=f"run {run_id}, its parent, has ended")

    async def answer(
        self,
        run_id: str,
        *,
        approved: bool,
        fields: Any = None,
        reason: str = "",
        by: str = "",
        step: str | None = None,
        link: UsedLink | None = None,
    ) -> Run:
        """Answer the approval a run waits for; `step` is its key if there are several.

        Raises `NotFound`, `Refused` (none is open, or it was answered), `Expired` for a used
        `link`, `InvalidData` for fields other than those the flow asks for.
        """
        run = await self._journal.run(run_id)
        if run is None:
            raise NotFound(f"no run {run_id!r}")
        if approved:
            await self._check_fields(run, step, fields)
        answer = {"approved": approved, "fields": fields, "reason": reason, "by": by}
        # Not orjson: it refuses integers past 64 bits.
        text = json.dumps(answer).encode()
        await self._journal.answer(run.id, step, text, link=link, now=self._now())
        if self._dispatcher is not None:
            self._dispatcher.recheck_due()
        return run

    async def _check_fields(self, run: Run, step: str | None, fields: Any) -> None:
        waits = [wait.key for wait in await self._journal.waits(run.seq, step)]
        for record in await self._journal.steps(run.seq):
            if record.key in waits and record.task == "approval" and record.state == "waiting":
                declared = orjson.loads(record.result or b"{}").get("fields")
                read_fields(find_fields(declared), fields)

    async def retry(self, run_id: str, from_step: str | None = None) -> Run:
        """Queue a finished run again; it resumes after its last recorded step or at `from_step`.

        If its undo failed, only the remaining steps of the undo run. A run that waits for its next
        try, or for that of a step, is tried now.
        """
        run = await self._journal.retry(run_id, from_step, now=self._now())
        if run.state in (RunState.RETRYING, RunState.WAITING):
            if self._dispatcher is not None:
                self._dispatcher.recheck_due()
            return run
        name = self._current_name(run.flow)
        if name != run.flow:
            await self._journal.rename_flow(run.flow, name)
        self._reread_queue(name)
        return run

    async def drop(self, run_id: str) -> Run:
        """Remove a dead letter from the list; it stays in the journal as a failed run."""
        run = await self._journal.drop(run_id, now=self._now())
        if self._dispatcher is not None:
            self._dispatcher.release_key(run)
        return run

    async def replay_dead(self, run_id: str, *, not_undone: bool = False) -> list[str]:
        """Run a dead letter's flow again, as a new run of its event, and drop the dead letter.

        A run that is not undone stays a dead letter; it is replayed only with `not_undone`, else
        raises `Refused`.
        """
        run = await self._journal.run(run_id)
        if run is None:
            raise NotFound(f"no run {run_id!r}")
        if not run.dead:
            raise Refused(f"run {run.id} is not a dead letter; it is {run.state}")
        if not not_undone:
            _refuse_not_undone([run])
        stored = await self._event_of(run)
        runs = await self._replay(stored, {run.flow: run})
        if not is_not_undone(run):
            await self.drop(run.id)
        return runs

    async def replay(
        self, event_id: str, source: str | None = None, *, not_undone: bool = False
    ) -> list[str]:
        """Run every flow of a stored event again, as new runs; raises `NotFound`, `Refused`.

        While a run of the event is not undone, `not_undone` is required. The flows are those that
        the event started and, with a project, those it would start now.
        """
        found = await self._journal.event(event_id, source=source)
        if not found:
            raise NotFound(f"no event {event_id!r}")
        if len(found) > 1:
            sources = ", ".join(sorted({stored.event.source for stored in found}))
            raise Refused(f"event id {event_id!r} has several sources; name one of: {sources}")
        stored = found[0]
        found_runs = [await self._journal.run(run_id) for run_id in stored.runs]
        runs = [run for run in found_runs if run is not None]
        if not not_undone:
            _refuse_not_undone(runs)
        flows: dict[str, Run | None] = {run.flow: run for run in runs}
        project = self._project()
        for flow in (
            *project.feeds.get(stored.event.trigger, ()),
            *project.by_type.get(stored.event.type, ()),
        ):
            flows.setdefault(flow.name, None)
        if not flows:
            raise Refused(f"event {event_id!r} starts no flow")
        return await self._replay(stored, flows)

    def _current_name(self, flow: str) -> str:
        """Return the current name of a flow, which may have been renamed (`was=`)."""
        names = (other.name for other in self._project().flows.values() if other.was == flow)
        return next(names, flow)

    async def _replay(self, stored: StoredEvent, flows: Mapping[str, Run | None]) -> list[str]:
        """Add a run for each flow; a flow that is not loaded keeps the keys of its last run."""
        project = self._project()
        now: dict[str, Run | None] = {}
        for name, last in flows.items():
            now.setdefault(self._current_name(name), last)
        runs = []
        for name, last in now.items():
            run = NewRun(id=mint_id(), flow=name, state=RunState.QUEUED)
            if last is not None:
                run.order_key, run.limit_key = last.order_key, last.limit_key
            flow = project.flows.get(name)
            if flow is not None:
                run.code_version = flow.code_version
                try:
                    run.order_key = flow.order_key(stored.event)
                    run.limit_key = flow.limit_key(stored.event)
                except Exception as error:
                    raise Refused(
                        f"flow {name!r} cannot take the event: {words_of(error)} "
                        f"(in ordered_by= or per=, {flow.file}:{flow.line})"
                    ) from error
            runs.append(run)
        ids = await self._journal.replay(stored.seq, runs, now=self._now())
        for name in now:
            self._reread_queue(name)
        return ids

    async def _event_of(self, run: Run) -> StoredEvent:
        stored = await self._journal.event_of(run.seq)
        if stored is None:
            raise NotFound(f"the event of run {run.id} has been deleted")
        return stored

    def _reread_queue(self, flow: str) -> None:
        if self._dispatcher is not None:
            self._dispatcher.reread_queue(flow)

    async def clear_cache(self, task: str | None = None) -> int:
        """Clear the cached results of one task, or of all with `cache=`; returns how many."""
        return await self._journal.clear_cache(task=task)

    async def pause(self, name: str) -> str:
        """Pause a flow or a trigger until `resume`; returns `flow:NAME` or `trigger:NAME`.

        A paused flow's events are accepted and its runs wait; a paused trigger accepts no events.
        """
        full = self._full_name(name)
        await self._journal.pause(full, now=self._now())
        self._set_paused(full, True)
        return full

    async def resume(self, name: str) -> str:
        """Undo `pause`, also for a flow or trigger that is no longer loaded."""
        full = self._full_name(name, await self._journal.paused())
        await self._journal.resume(full)
        self._set_paused(full, False)
        return full

    def _set_paused(self, full: str, paused: bool) -> None:
        """Pause or resume it in the running service, if it is loaded there."""
        kind, _, short = full.partition(":")
        if kind == "flow" and short in self._project().flows and self._dispatcher is not None:
            (self._dispatcher.pause if paused else self._dispatcher.resume)(short)
        elif kind == "trigger" and short in self._emitters():
            self._emitters()[short].paused = paused

    def _full_name(self, name: str, paused: Collection[str] = ()) -> str:
        """Return `flow:NAME` or `trigger:NAME`; raises `NotFound` unless it is served or paused."""
        project = self._project()
        if self._dispatcher is None:  # without a service neither flows nor triggers are known
            return name if name.startswith(("flow:", "trigger:")) else f"flow:{name}"
        known = [f"flow:{flow}" for flow in project.flows]
        known += [f"trigger:{trigger}" for trigger in project.triggers]
        for full in (name, f"flow:{name}", f"trigger:{name}"):
            if full in known or full in paused:
                return full
        raise NotFound(
            f"no flow or trigger {name!r}; flows: {', '.join(sorted(project.flows)) or 'none'}; "
            f"triggers: {', '.join(sorted(project.triggers)) or 'none'}"
        )

    async def fire(self, trigger: str, data: bytes = b"{}") -> Receipt:
        """Start a trigger's flows now, with an event of its kind that carries `data` (JSON).

        Raises `InvalidData`, with nothing stored, if no flow accepts it.
        """
        emitter = self._emitters().get(trigger)
        if emitter is None:
            known = ", ".join(sorted(self._emitters())) or "none"
            raise NotFound(f"no trigger {trigger!r}; triggers: {known}")
        event = Event(
            id=mint_id(),
            source="turnout:operator",
            type=f"turnout.{emitter.trigger.kind}.fired",
            time=self._now(),
            body=data,
            datacontenttype="application/json",
            trigger=trigger,
            minted=True,
        )
        _refuse_unless_taken(event, emitter)
        return (await emitter([event]))[0]

    async def seek(self, name: str, seek: Seek, *, dry_run: bool = False) -> SeekPlan:
        """Move a trigger's position; `dry_run` only returns what would happen.

        The trigger is stopped meanwhile. Raises `NotFound`, and `Refused` for what is impossible.
        """
        trigger = self._project().triggers.get(name)
        if trigger is None:
            known = ", ".join(sorted(self._project().triggers)) or "none"
            raise NotFound(f"no trigger {name!r}; triggers: {known}")
        if not isinstance(trigger, Seekable) or self._connection is None:
            raise Refused(f"trigger {name!r} has no position to move; timers and kafka have")
        now = self._now()
        seek = replace(seek, to=now.isoformat() if seek.to == "now" else seek.to, asked_at=now)
        connection = self._connection(trigger.kind)
        plan = await trigger.plan(seek, await self._journal.positions(name), connection)
        if dry_run:
            return plan
        async with self._stopped(name):
            # Wait for what the trigger was still writing when it stopped.
            await self._journal.append([], trigger=name, now=self._now())
            plan = await trigger.plan(seek, await self._journal.positions(name), connection)
            await self._journal.append([], trigger=name, positions=plan.positions, now=self._now())
        log.warning("trigger.sought", trigger=name, to=seek.to, done=list(plan.sentences))
        return plan

    async def emit(self, event: Event) -> Receipt:
        """Store an event from outside and start the flows with `on=event(TYPE)`."""
        if self._api is None:
            raise Refused("emitting needs a running service: start `turnout serve`")
        return (await self._api([event]))[0]

    async def matching(self, which: Filter) -> list[Run]:
        """Return every run that matches `which`, for a bulk action; `which.limit` is ignored."""
        found: list[Run] = []
        cursor: int | None = None
        while True:
            page = await self._journal.runs(
                Filter(
                    flow=which.flow,
                    state=which.state,
                    trigger=which.trigger,
                    event=which.event,
                    since=which.since,
                    until=which.until,
                    dead=which.dead,
                    cursor=cursor,
                    limit=BULK,
                )
            )
            found += page
            if len(page) < BULK:
                return found
            cursor = page[-1].seq

    async def cancel_all(self, which: Filter, *, reason: str = "", by: str = "") -> list[Run]:
        """Cancel every matching unfinished run; skips those that end meanwhile."""
        chosen = [run for run in await self.matching(which) if run.state not in FINISHED]
        return await _each(partial(self.cancel, reason=reason, by=by), chosen)

    async def retry_all(self, which: Filter) -> list[Run]:
        """Queue every matching failed or cancelled run again."""
        states = (RunState.FAILED, RunState.CANCELLED)
        chosen = [run for run in await self.matching(which) if run.state in states]
        return await _each(self.retry, chosen)


def _refuse_unless_taken(event: Event, emitter: TriggerEmitter) -> None:
    """Raise `InvalidData` if every flow would refuse the event.

    An operator made the event, so a dead letter of it would help no one.
    """
    runs = route(event, emitter.flows(event)).entry.runs
    reasons = [f"flow {run.flow}: {run.error.message}" for run in runs if run.error is not None]
    if not runs or len(reasons) < len(runs):
        return
    raise InvalidData(
        f"nothing was fired, because no flow accepts the event: {'; '.join(reasons)}; give the "
        "data with --input, or replay an earlier event of the trigger: turnout events "
        f"--trigger {emitter.trigger.name!r}, then turnout replay EVENT"
    )


def is_not_undone(run: Run) -> bool:
    """Whether effects of a finished run may remain, because its undo is not done."""
    return run.undo in ("running", "failed")


def _refuse_not_undone(runs: Sequence[Run]) -> None:
    """Raise `Refused` if effects of a run may remain, which a replay would repeat."""
    for run in runs:
        if is_not_undone(run):
            raise Refused(
                f"run {run.id} of flow {run.flow} is not undone (undo: {run.undo}), and a replay "
                f"would repeat its effects with new idempotency keys: finish the undo first with "
                f"turnout retry {run.id}, or confirm with --yes, over HTTP with the field "
                f'{{"not_undone": true}}'
            )


async def _each(act: Callable[[str], Awaitable[Run]], runs: Sequence[Run]) -> list[Run]:
    """Act on every run; skips those whose state changes meanwhile."""
    done = []
    for run in runs:
        with suppress(Refused, NotFound):
            done.append(await act(run.id))
    return done

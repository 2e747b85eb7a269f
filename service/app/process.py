"""The parts of one process: wiring, start and stop.

Start: triggers and HTTP come last, so that no event is accepted before everything works. Stop:
runs end within the grace time, the rest is queued again, and events are accepted until the end.
Not here: HTTP, signals and settings (`serve`), new versions of the project (`reload`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from turnout.service.alerts.outbox import Deliver, Outbox, deliver
from turnout.service.alerts.watch import Alerts
from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.dispatch.executor import Executor
from turnout.service.dispatch.waiters import Waiters
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.event import Event
from turnout.service.domain.resource import Resource, Resources
from turnout.service.domain.run import FINISHED, Outcome, Run, RunState
from turnout.service.domain.trigger import CalledTrigger, Trigger
from turnout.service.domain.units import format_duration, utc_now
from turnout.service.domain.waiting import Cause, Waiting
from turnout.service.flowcontrol.use import Use
from turnout.service.governance.links import Links
from turnout.service.intake.absence import Absence
from turnout.service.intake.after_run_actions import AfterRunActions
from turnout.service.intake.awaited import Awaited
from turnout.service.intake.cancels import CancellingEvents
from turnout.service.intake.emitter import EmitterParts, TriggerEmitter, fed_by
from turnout.service.intake.overrides import Overrides
from turnout.service.intake.pauses import Pauses
from turnout.service.intake.run_counts import RunCounts
from turnout.service.intake.run_host import ServiceHost
from turnout.service.intake.submit import Submit
from turnout.service.intake.supervisor import Supervisor
from turnout.service.intake.windows import WindowDeadlines
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import ClaimedRun, FlowAbout
from turnout.service.operate.operator import Operator
from turnout.service.operate.waits import paused
from turnout.service.pools import Pools
from turnout.service.project import AnyFlow, Project
from turnout.service.settings import Settings
from turnout.service.steps.attempt_state import AttemptState
from turnout.service.steps.author_code import location_in
from turnout.service.steps.dry_run import DryRun
from turnout.service.steps.services import Sleep
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .scrape import Scrape
from .spans import SpanSender
from .wanted import DEFAULT_SOON, Wanted

log = get_logger("turnout")

STOPPING = "the service is stopping"

_NONE = timedelta(0)


@dataclass(frozen=True)
class ManualTrigger:
    """A trigger without a source, for events made by turnout itself, such as by `turnout run`."""

    name: str
    kind: str

    def check(self) -> None:
        """Accept it: it has no options."""


@dataclass(frozen=True)
class ApiTrigger(ManualTrigger):
    """The trigger behind `POST /api/events`, which starts flows by event type."""

    name: str = "api"
    kind: str = "api"


class Process:
    """The parts of one process, wired together."""

    def __init__(
        self,
        settings: Settings,
        project: Project,
        journal: Journal,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        *,
        now: Callable[[], datetime] = utc_now,
        wall: Callable[[], datetime] | None = None,
        sleep: Sleep = asyncio.sleep,
        dry_run: DryRun | None = None,
        deliver: Deliver = deliver,
        spans: SpanSender | None = None,
    ) -> None:
        self.settings = settings
        self.project = project
        self.journal = journal
        self.metrics = metrics
        self.now = now
        self.wall = wall = wall or now
        self.emitters: dict[str, TriggerEmitter] = {}
        self.stopping = False
        self.not_reloaded: str | None = None
        self._tasks = tasks
        self.resources = Resources()
        self.pools = Pools(
            settings.threads,
            settings.processes,
            process_memory=settings.process_memory,
            process_calls=settings.process_calls,
        )
        self.after_run_actions = AfterRunActions(journal, lambda: self.emitters)
        self.awaited = Awaited()
        self.cancelling = CancellingEvents()
        self.links = Links(secrets.token_bytes(32), settings.address)  # `serve` sets the stored key
        executor = Executor(
            journal, self.pools, self.resources, settings, metrics,
            now=now, wall=wall, sleep=sleep, dry_run=dry_run,
            tracer=None if spans is None else spans.tracer,
        )  # fmt: skip
        self._spans = spans
        self.dispatcher = Dispatcher(
            journal,
            executor,
            settings.concurrency,
            metrics,
            now=now,
            ended=self._run_ended,
            ended_early=self._run_ended_early,
        )
        self.overrides = Overrides(journal, self.dispatcher, tasks, now=now)
        self.pauses = Pauses(journal, self.dispatcher, self, self.emitters, tasks, now=now)
        self.waiters = Waiters(journal, settings.max_waiters)
        self.absence = Absence(
            journal, lambda: self.emitters, tasks, now=now, recheck=lambda: self.windows.recheck()
        )
        self.windows = WindowDeadlines(
            journal,
            self.dispatcher,
            tasks,
            project=lambda: self.project,
            now=now,
            told=self.absence.told,
            held=self.absence.held,
        )
        self.alerts = Alerts(
            journal,
            tasks,
            Outbox(journal, tasks, metrics, now=now, wall=wall, deliver=deliver),
            metrics,
            now=now,
            wall=wall,
            is_paused=lambda flow: self.pauses.of_flow(flow) is not None,
            service=lambda: self.links.base_url,
        )
        metrics.start_timestamp_seconds.set(wall().timestamp())
        self.run_counts = RunCounts(metrics)
        submit = Submit(self.dispatcher, self.windows, metrics, self.run_counts, now=now)
        executor.set_host(
            ServiceHost(
                journal,
                self.dispatcher,
                submit,
                self.awaited,
                self.cancelling,
                project=lambda: self.project,
                links=lambda: self.links,
                now=now,
            )
        )
        self.supervisor = Supervisor(tasks)
        self.emitter_parts = EmitterParts(
            journal=journal,
            dispatcher=self.dispatcher,
            submit=submit,
            awaited=self.awaited,
            cancelling=self.cancelling,
            waiters=self.waiters,
            metrics=metrics,
            now=now,
            wall=wall,
            event_ended=self._event_ended,
            connection=settings.connection,
            grace=settings.grace,
        )
        self.api = self.emitter(ApiTrigger(), lambda event: self.project.by_type.of(event.type))
        self.operator = Operator(
            journal=journal,
            now=now,
            wall=wall,
            owner=self.dispatcher,
            project=lambda: self.project,
            emitters=lambda: self.emitters,
            refresh_pauses=self.pauses.refresh,
            refresh_limits=self.overrides.refresh,
            api=self.api,
            connection=self.settings.connection,
            stopped=self._trigger_stopped,
            closed=self.windows.begin,
        )
        self.wanted = Wanted(
            journal,
            self.dispatcher,
            project=lambda: self.project,
            emitters=lambda: self.emitters,
            now=now,
            soon=settings.idle_exit or DEFAULT_SOON,
            other_instants=self._other_instants,
        )
        self.scrape = Scrape(
            journal,
            self.dispatcher,
            self.pools,
            metrics,
            project=lambda: self.project,
            wanted=self.wanted,
            statuses=lambda: [each.status for each in (self.api, *self.emitters.values())],
            now=now,
        )

    def emitter(
        self, trigger: Trigger, flows: Callable[[Event], Sequence[AnyFlow]]
    ) -> TriggerEmitter:
        """Build the emitter of a trigger."""
        return TriggerEmitter(
            trigger,
            flows,
            self.emitter_parts,
            tells_sender=isinstance(trigger, CalledTrigger | ApiTrigger),
        )

    async def _run_ended(self, run: ClaimedRun, outcome: Outcome, state: AttemptState) -> None:
        if outcome.state not in FINISHED:
            if outcome.state is RunState.RETRYING and outcome.counts:
                self._tell_retried(run, outcome)
            return
        self.run_counts.count(run.flow, outcome.state, run.event)
        if run.dead and outcome.undo == "done":  # an operator resumed the undo
            log.info("run.undone", flow=run.flow, run=run.claim.run_id)
        elif outcome.state is RunState.FAILED and outcome.error is not None:
            log.error(
                "run.failed",
                flow=run.flow,
                run=run.claim.run_id,
                attempt=run.attempt,
                trigger=run.event.trigger,
                event=run.event.id,
                error=f"{outcome.error.type}: {outcome.error.message}",
                step=outcome.error.step,
                location=location_in(outcome.error.traceback),
                **({} if outcome.undo is None else {"undo": outcome.undo}),
            )
        self.waiters.finished(run.claim.run_id, outcome)
        for child in state.cancelled:
            self.dispatcher.cancel(child)
        if run.members is not None:
            await self._members_ended(run.claim.run_seq)
            return
        emitter = self.emitters.get(run.event.trigger)
        if emitter is not None and emitter.acts_after_runs:
            await self.after_run_actions.event_ended(run.event_seq)

    async def _members_ended(self, run_seq: int) -> None:
        """Carry out what is due after the events of the window of a run."""
        if any(emitter.acts_after_runs for emitter in self.emitters.values()):
            await self.after_run_actions.sweep(of_run=run_seq)

    def _tell_retried(self, run: ClaimedRun, outcome: Outcome) -> None:
        """Log an attempt that failed and is not the last; a step tells of its own tries."""
        error, due_at = outcome.error, outcome.due_at
        if error is None or due_at is None:
            return
        log.warning(
            "run.retried",
            flow=run.flow,
            run=run.claim.run_id,
            attempt=run.attempt,
            error=f"{error.type}: {error.message}",
            step=error.step,
            location=location_in(error.traceback),
            again_in=format_duration(max(due_at - self.now(), _NONE)),
        )

    def _run_ended_early(self, run: Run) -> None:
        """Tell those who wait for a run that has ended on disk while it was not running."""
        self.run_counts.count_unstarted(run.flow, run.state, None, run.error)
        outcome = Outcome(state=run.state, error=run.error, reason=run.reason)
        self.waiters.finished(run.id, outcome)
        if run.events > 1:
            self._tasks.create_task(self._members_ended(run.seq))
            return
        emitter = self.emitters.get(run.trigger)
        if emitter is not None and emitter.acts_after_runs:
            self._tasks.create_task(self._act_after(run))

    async def _act_after(self, run: Run) -> None:
        stored = await self.journal.event_of(run.seq)
        if stored is not None:
            await self.after_run_actions.event_ended(stored.seq)

    def _event_ended(self, event_seq: int) -> None:
        self._tasks.create_task(self.after_run_actions.event_ended(event_seq))

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Start everything but triggers and HTTP; the caller stops `resources` at the end."""
        rescued = await self.journal.rescue(now=self.now())
        if rescued.requeued or rescued.failed:
            log.warning("runs.rescued", requeued=rescued.requeued, failed=list(rescued.failed))
        if self.project.renamed:
            await self.journal.rename_flows(self.project.renamed)
        for name, count in (await self.journal.orphans(list(self.project.flows))).items():
            failed = await self.journal.fail_orphaned_runs(name, now=self.now())
            for run_id in failed:
                log.error("orphan.failed", flow=name, run=run_id)
            if count > len(failed):
                log.warning("runs.orphaned", flow=name, count=count - len(failed))
        for shape in await self.journal.shapes():
            self.awaited.watch(shape)
        await self.resources.start(resources_of(self.project))
        self.dispatcher.breakers.restore(await self.journal.breakers(), self.now())
        await self.pauses.open()
        await self.overrides.open()
        self.apply(self.project)
        await self.describe()
        ready = asyncio.Event()
        self._tasks.create_task(self.dispatcher.run(ready.set))
        await ready.wait()
        self.windows.recheck()
        self.alerts.recheck()
        if self._spans is not None:
            self._tasks.create_task(self._spans.run())

    def apply(self, project: Project) -> None:
        """Serve a project; triggers that it changes or adds get new emitters."""
        self.project = project
        self.awaited.serve(project.flows.values())
        self.cancelling.serve(project.flows.values())
        self.run_counts.serve(project.flows.values())
        self.dispatcher.serve(project.flows.values(), self.pauses.stopped(project.flows))
        for name, trigger in project.triggers.items():
            known = self.emitters.get(name)
            if known is None or known.trigger != trigger:
                self.emitters[name] = self.emitter(trigger, fed_by(name, self))
        self.pauses.apply_to_triggers()
        self.absence.serve(project.flows.values())
        self.alerts.serve(project.flows.values())

    async def describe(self) -> None:
        """Note what the flows say of themselves, for filters and lists without the service.

        On a full disk they keep what they have said before.
        """
        about = {
            flow.name: FlowAbout(flow.owner, flow.tags, flow.description)
            for flow in self.project.flows.values()
        }
        with suppress(JournalFull):
            await self.journal.describe_flows(about)

    async def start_triggers(self) -> None:
        """Start the triggers."""
        for emitter in self.emitters.values():
            self.supervisor.start(emitter)

    @asynccontextmanager
    async def _trigger_stopped(self, name: str) -> AsyncIterator[None]:
        """Stop one trigger while its positions are moved."""
        emitter = self.emitters.get(name)
        if emitter is not None:
            emitter.status.stays = True
        await self.supervisor.stop(name)
        try:
            yield
        finally:
            if emitter is not None:
                emitter.status.stays = False
            if not self.stopping and name in self.emitters:
                self.supervisor.start(self.emitters[name])

    def routes(self) -> list[tuple[CalledTrigger, TriggerEmitter]]:
        """Return the called triggers with their emitters, for `Ingest`."""
        return [
            (emitter.trigger, emitter)
            for emitter in self.emitters.values()
            if isinstance(emitter.trigger, CalledTrigger)
        ]

    def waits_for(self, run: Run) -> Waiting | None:
        """Return what keeps a run from starting, or a running one from going on; None if nothing.

        What a run has asked for itself, such as an event, is in the journal.
        """
        if run.state is RunState.RUNNING:
            pool = self.pools.waits_for(run.id)
            return None if pool is None else Waiting(Cause.POOL, pool)
        pause = self.pauses.of_flow(run.flow)
        if run.flow not in self.project.flows:
            return Waiting(Cause.SERVICE, f"for a service that serves flow {run.flow!r}")
        waiting = self.dispatcher.waits_for(run)
        if waiting is not None and pause is not None:
            return paused(run.flow, pause)
        return waiting

    def _other_instants(self) -> list[datetime]:
        instants = (self.alerts.next_due_at, self.pauses.next_end)
        return [each for each in instants if each is not None]

    def problems(self) -> list[str]:
        """Return why the service is not ready; empty if it is."""
        found = [STOPPING] if self.stopping else []
        if self.journal.writable is not None:
            found.append(f"the journal cannot be written: {self.journal.writable}")
        elif self.journal.short_of_space is not None:
            found.append(f"no new events are accepted: {self.journal.short_of_space}")
        found += [
            f"trigger {name}: {emitter.status.problem}"
            for name, emitter in self.emitters.items()
            if emitter.status.problem is not None and not emitter.status.paused
        ]
        return found

    def warnings(self) -> list[str]:
        """Return what does not go as it should although events are accepted."""
        found = list(self.pools.warnings().values())
        if self.not_reloaded is not None:
            found.append(f"the flow files of before are served: {self.not_reloaded}")
        if self.pauses.of_everything is not None:
            found.append("everything is paused: no run starts until `turnout resume --all`")
        return found

    def suspended(self) -> Mapping[str, str]:
        """Return for each flow with `absent(…)` why its windows do not close now, if so."""
        return self.absence.suspended()

    def uses(self) -> Sequence[Use]:
        """Return how much of each limit, rate and breaker is in use."""
        return self.dispatcher.uses()

    def clock_set(self) -> None:
        """Look again at what waits for an instant: the clock was set."""
        self.dispatcher.clock_set()
        self.windows.recheck()
        self.pauses.recheck()
        self.overrides.recheck()
        self.alerts.clock_set()

    async def stop(self) -> int:
        """Drain, then close; returns the number of stuck threads' runs."""
        stuck = await self.drain()
        await self.close()
        return stuck

    async def drain(self) -> int:
        """Let runs end and queue the rest again; returns the number of stuck threads' runs.

        Events that come meanwhile, and until `close`, are queued for the next process, so that
        senders do not wait for the last run, which may take all of `grace`.
        """
        self.stopping = True
        self.windows.close()
        self.absence.close()
        return await self.dispatcher.stop(self.settings.grace)

    async def close(self) -> None:
        """Stop intake and everything else."""
        await self.alerts.stop()
        await self.supervisor.stop()
        for emitter in self.emitters.values():
            emitter.status.close(STOPPING)
        self.api.status.close(STOPPING)
        self.pauses.close()
        self.overrides.close()
        self.waiters.close()
        self.pools.close()
        if self._spans is not None:
            self._spans.stop()


def resources_of(project: Project) -> list[Resource[Any]]:
    """Return the resources that the flows of a project use."""
    return [
        resource for flow in project.flows.values() for resource in flow.binding.resources.values()
    ]

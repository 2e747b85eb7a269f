"""The composition root: puts the parts together, starts them in order, stops them in order.

Start: journal, resources, dispatcher, HTTP, triggers: nothing is accepted before everything
behind it works. Stop is the reverse: no new events, runs end within the grace time, the rest is
handed back. What nobody expected ends the process; the journal makes that safe.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .admission import Admission
from .api.ingest import Ingest, check_exposure
from .api.server import Server, listen
from .dispatcher import Dispatcher
from .effects import Effects
from .emitter import TriggerEmitter
from .errors import JournalBroken, NotFound, SetupError
from .event import Event, mint_id
from .executor import Executor
from .governance.access import load_or_make_token
from .journal.contract import Claim
from .journal.sqlite import SqliteJournal, open_journal
from .loader import load
from .logs import get_logger
from .maintenance import Maintenance, watch_loop
from .metrics import Metrics
from .operator import Operator
from .pools import Pools
from .project import AnyFlow, Project
from .resource import Resources
from .run import Outcome, Run, RunState
from .settings import Settings
from .supervisor import Supervisor
from .trigger import CalledTrigger, Trigger
from .units import utc_now
from .waiters import Waiters

log = get_logger("turnout")

EXIT_OK = 0
EXIT_UNEXPECTED = 70
EXIT_IO = 74


@dataclass(frozen=True)
class ApiTrigger:
    """The trigger behind `POST /api/events`: events somebody hands in by type."""

    name: str = "api"
    kind: str = "api"

    def check(self) -> None:
        """Nothing can be wrong with it."""


class Service:
    """One process's parts, wired; `serve` and `run_once` bring it to life."""

    def __init__(
        self,
        settings: Settings,
        project: Project,
        journal: SqliteJournal,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = settings
        self.project = project
        self.journal = journal
        self.metrics = metrics
        self.now = now
        self.emitters: dict[str, TriggerEmitter] = {}
        self.stopping = False
        self._tasks = tasks
        self.waiters = Waiters(journal, settings.max_waiters)
        self.resources = Resources()
        self.pools = Pools(settings.threads, settings.processes)
        self.effects = Effects(journal, lambda: self.emitters)
        self.dispatcher = Dispatcher(
            journal,
            Executor(journal, self.pools, self.resources, settings, metrics, now=now),
            Admission(settings.concurrency),
            metrics,
            now=now,
            ended=self._run_ended,
        )
        self.supervisor = Supervisor(tasks)
        self.api = self.emitter(
            ApiTrigger(), lambda event: self.project.by_type.get(event.type, ())
        )
        self.operator = Operator(
            journal,
            now=now,
            dispatcher=self.dispatcher,
            project=lambda: self.project,
            emitters=lambda: self.emitters,
            api=self.api,
        )
        metrics.observe_counts(journal.counts)

    def emitter(
        self, trigger: Trigger, flows: Callable[[Event], Sequence[AnyFlow]]
    ) -> TriggerEmitter:
        """Build the way in for a trigger."""
        return TriggerEmitter(
            trigger,
            flows,
            journal=self.journal,
            dispatcher=self.dispatcher,
            metrics=self.metrics,
            waiters=self.waiters,
            tasks=self._tasks,
            now=self.now,
            settled=self._event_settled,
        )

    async def _run_ended(self, claim: Claim, outcome: Outcome) -> None:
        if outcome.state in (RunState.RETRYING, RunState.WAITING, RunState.QUEUED):
            return
        self.metrics.runs_ended.labels(claim.flow, outcome.state).inc()
        if outcome.state is RunState.FAILED and outcome.error is not None:
            log.error(
                "run.failed",
                flow=claim.flow,
                run=claim.run_id,
                attempt=claim.attempt,
                trigger=claim.event.trigger,
                event=claim.event.id,
                error=f"{outcome.error.type}: {outcome.error.message}",
                step=outcome.error.step,
            )
        self.waiters.finished(claim.run_id)
        emitter = self.emitters.get(claim.event.trigger)
        if emitter is not None and emitter.has_effect:
            await self.effects.event_ended(claim.event_seq)

    def _event_settled(self, event_seq: int, _trigger: Trigger) -> None:
        self._tasks.create_task(self.effects.event_ended(event_seq))

    # ------------------------------------------------------------ life

    async def start(self, stack: AsyncExitStack) -> None:
        """Bring up everything behind the way in."""
        rescued = await self.journal.rescue(now=self.now())
        if rescued.requeued or rescued.blamed:
            log.warning("runs.rescued", requeued=rescued.requeued, blamed=list(rescued.blamed))
        for flow in self.project.flows.values():
            if flow.was is not None:
                await self.journal.rename_flow(flow.was, flow.name)
        for name, count in (await self.journal.orphans(list(self.project.flows))).items():
            log.warning("runs.orphaned", flow=name, count=count)
        await self.resources.start(_resources(self.project))
        stack.push_async_callback(self.resources.stop)
        await self._apply(self.project)
        ready = asyncio.Event()
        self._tasks.create_task(self.dispatcher.run(ready.set))
        await ready.wait()

    async def _apply(self, project: Project) -> None:
        paused = await self.journal.paused()
        self.project = project
        self.dispatcher.serve(
            project.flows.values(),
            [name.removeprefix("flow:") for name in paused if name.startswith("flow:")],
        )
        for name, trigger in project.triggers.items():
            known = self.emitters.get(name)
            if known is None or known.trigger != trigger:
                self.emitters[name] = self.emitter(
                    trigger, lambda _event, name=name: self._fed(name)
                )
            self.emitters[name].paused = f"trigger:{name}" in paused

    def _fed(self, trigger: str) -> Sequence[AnyFlow]:
        return self.project.feeds.get(trigger, ())

    async def start_triggers(self) -> None:
        """Open the way in."""
        for emitter in self.emitters.values():
            self.supervisor.start(emitter)

    async def reload(self, project: Project) -> None:
        """Serve a new version of the project: unchanged triggers never stop."""
        gone = [
            name
            for name, emitter in self.emitters.items()
            if project.triggers.get(name) != emitter.trigger
        ]
        await self.supervisor.stop(*gone) if gone else None
        for name in gone:
            del self.emitters[name]
        known = set(self.emitters)
        await self.resources.start(_resources(project))
        await self._apply(project)
        for name in set(self.emitters) - known:
            self.supervisor.start(self.emitters[name])

    def routes(self) -> list[tuple[CalledTrigger, TriggerEmitter]]:
        """Return the called triggers with their way in, for the HTTP adapter."""
        return [
            (emitter.trigger, emitter)
            for emitter in self.emitters.values()
            if isinstance(emitter.trigger, CalledTrigger)
        ]

    def problems(self) -> list[str]:
        """Return why the service is not ready; nothing when it is."""
        found = ["the service is stopping"] if self.stopping else []
        if self.journal.writable is not None:
            found.append(f"the journal cannot be written: {self.journal.writable}")
        found += [
            f"trigger {name}: {emitter.problem}"
            for name, emitter in self.emitters.items()
            if emitter.problem is not None and not emitter.paused
        ]
        return found

    async def stop(self) -> int:
        """Stop intake, drain, hand back; returns runs stuck in threads that cannot be ended."""
        self.stopping = True
        await self.supervisor.stop()
        for emitter in self.emitters.values():
            emitter.close("the service is stopping")
        self.api.close("the service is stopping")
        return await self.dispatcher.stop(self.settings.grace)


def _resources(project: Project) -> list[Any]:
    return [
        resource for flow in project.flows.values() for resource in flow.binding.resources.values()
    ]


async def serve(settings: Settings, flow_paths: Sequence[Path], *, reload: bool = False) -> int:
    """Serve a project until a signal; returns the exit code.

    0 after a clean stop, 74 when the journal's disk failed for good. Raises `SetupError` when
    starting would be unsafe.
    """
    project = load(flow_paths)
    check_exposure(project.triggers.values(), settings.host)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        journal = await open_journal(
            settings.data,
            metrics=metrics,
            synchronous=settings.synchronous,
            max_unfinished_runs=settings.max_unfinished_runs,
            min_free_bytes=settings.min_free_bytes,
        )
        stack.push_async_callback(journal.close)
        sock = listen(settings)
        stack.callback(sock.close)
        try:
            async with asyncio.TaskGroup() as tasks:
                service = Service(settings, project, journal, metrics, tasks)
                await _live(service, sock, flow_paths, tasks, stack, reload=reload)
        except* JournalBroken as broken:
            log.critical("journal.broken", error=str(broken.exceptions[0]))
            os._exit(EXIT_IO)
    return EXIT_OK


async def _live(
    service: Service,
    sock: Any,
    flow_paths: Sequence[Path],
    tasks: asyncio.TaskGroup,
    stack: AsyncExitStack,
    *,
    reload: bool,
) -> None:
    settings = service.settings
    background = [tasks.create_task(watch_loop(settings))]
    await service.start(stack)
    ingest = Ingest(
        service.routes(),
        settings=settings,
        metrics=service.metrics,
        problems=service.problems,
        rest=lambda: _load_rest(service),
        now=service.now,
    )
    stop = _on_signals()
    server = Server(ingest, sock, settings)
    serving = tasks.create_task(server.run())
    url = _url(settings, sock)
    service.journal.lock.announce(url)
    load_or_make_token(settings)
    await service.start_triggers()
    maintenance = Maintenance(
        service.journal, service.effects, settings, service.metrics, now=service.now
    )
    background.append(tasks.create_task(maintenance.run()))
    background.append(tasks.create_task(_end_when_broken(service.journal)))
    if reload:
        background.append(tasks.create_task(_reload(service, ingest, flow_paths)))
    log.info(
        "service.started",
        url=url,
        flows=len(service.project.flows),
        triggers=len(service.emitters),
        data=str(settings.data),
    )
    await stop.wait()
    log.info("service.stopping", grace_seconds=settings.grace.total_seconds())
    stuck = await service.stop()
    server.stop()
    await serving
    for task in background:
        task.cancel()
    if stuck:
        # A thread cannot be killed (decision 21): its run is handed back, the process ends.
        log.warning("service.stopped", stuck=stuck)
        await service.journal.close()
        sys.stderr.flush()
        os._exit(EXIT_OK)
    log.info("service.stopped")


def _on_signals() -> asyncio.Event:
    """Return an event the first SIGTERM or SIGINT sets; the second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    return stop


async def _end_when_broken(journal: SqliteJournal) -> None:
    await journal.broken.wait()
    raise JournalBroken(journal.writable or "the journal's disk failed")


async def _load_rest(service: Service) -> Any:
    from .api.rest import create_rest  # FastAPI takes most of a second to import

    return create_rest(service)


async def _reload(service: Service, ingest: Ingest, flow_paths: Sequence[Path]) -> None:
    from .loader import reload
    from .reload import changes

    async for changed in changes(flow_paths):
        try:
            project = reload(flow_paths)
            check_exposure(project.triggers.values(), service.settings.host)
            await service.reload(project)
        except SetupError as error:
            log.error("reload.failed", error=str(error))  # noqa: TRY400  the message names file and line
        else:
            ingest.replace(service.routes())
            log.info("reload.done", changed=[str(path) for path in changed])


def _url(settings: Settings, sock: Any) -> str:
    scheme = "https" if settings.tls_certificate is not None else "http"
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"


async def run_once(settings: Settings, flow_path: Path, flow_name: str, data: bytes) -> Run:
    """Run one flow once in the foreground, in a temporary journal, with `data` as JSON.

    Raises `NotFound` when the file has no such flow.
    """
    project = load([flow_path])
    if flow_name not in project.flows:
        raise NotFound(
            f"{flow_path} has no flow {flow_name!r}; it has: {', '.join(project.flows) or 'none'}"
        )
    flow = project.flows[flow_name]
    metrics = Metrics()
    with TemporaryDirectory(prefix="turnout-run-") as folder:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            journal = await open_journal(
                Path(folder),
                metrics=metrics,
                synchronous="normal",
                max_unfinished_runs=settings.max_unfinished_runs,
                min_free_bytes=0,
            )
            stack.push_async_callback(journal.close)
            service = Service(settings, project, journal, metrics, tasks)
            await service.start(stack)
            emit = service.emitter(ApiTrigger("cli", "cli"), lambda _event: (flow,))
            event = Event(
                id=mint_id(),
                source="turnout:cli",
                type="turnout.cli.run",
                time=service.now(),
                body=data,
                datacontenttype="application/json",
                trigger="cli",
                minted=True,
            )
            run_id = (await emit([event]))[0].runs[0]
            run: Run | None = None
            while run is None:
                run = await service.waiters.result(run_id, 3600)
            await service.stop()
            return run

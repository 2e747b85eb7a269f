"""`turnout serve` and `turnout run`: from settings to exit code.

The composition root. An unexpected error ends the process; a supervisor restarts it, and the
journal makes that safe.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import anyio

from turnout.service.domain.clock import WallClock
from turnout.service.domain.errors import JournalBroken, NotFound, SetupError
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import Run
from turnout.service.governance.links import Links, load_or_make_key
from turnout.service.governance.tokens import load_or_make_token
from turnout.service.http.ingest import Ingest, check_exposure, unlock
from turnout.service.http.server.server import Server, listen
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.operate.maintenance import Maintenance
from turnout.service.project.loader import load, loading
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .process import ManualTrigger, Process
from .watchdogs import watch_clock, watch_disk, watch_files, watch_loop

log = get_logger("turnout")

EXIT_OK = 0
EXIT_IO = 74
EXIT_CUT_OFF = 75
"""A stop that cut off steps which did not end; they run again at the next start."""
EXIT_INTERRUPTED = 130
UNWIND_SECONDS = 2.0
"""How long a foreground run may take after Ctrl-C; a second one ends it at once."""


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
                process = Process(settings, project, journal, metrics, tasks)
                stack.push_async_callback(process.resources.stop)
                await _live(process, journal, sock, flow_paths, tasks, reload=reload)
        except* JournalBroken as broken:
            _end_broken(str(broken.exceptions[0]))
    return EXIT_OK


async def _live(
    process: Process,
    journal: OpenJournal,
    sock: socket.socket,
    flow_paths: Sequence[Path],
    tasks: asyncio.TaskGroup,
    *,
    reload: bool,
) -> None:
    requests = _on_signals()
    asyncio.get_running_loop().set_exception_handler(partial(_end_by_callback, process, tasks))
    settings = process.settings
    background = _watch(process, journal, tasks)
    with requests.cancelling() as starting:
        await process.start()
    if starting.cancelled_caught:  # a resource may never start
        await process.stop()
        _cancel(background)
        log.info("service.stopped")
        return
    ingest = Ingest(
        process.routes(),
        settings=settings,
        metrics=process.metrics,
        problems=process.problems,
        warnings=process.warnings,
        rest=lambda: _load_rest(process),
        now=process.now,
    )
    server = Server(ingest, sock, settings)
    serving = tasks.create_task(server.run())
    url = _url(settings, sock)
    load_or_make_token(settings)
    process.links = Links(load_or_make_key(settings.data), settings.public_url or url)
    journal.write_url(url)  # last: a client that finds the address also finds the token
    await process.start_triggers()
    maintenance = Maintenance(
        journal,
        process.after_run_actions,
        settings,
        process.metrics,
        now=process.now,
        clock=WallClock(process.now, known=journal.last_written_at),
    )
    background.append(tasks.create_task(maintenance.run()))
    tune_garbage_collector()
    if reload:
        background.append(tasks.create_task(_ask_for_changes(requests, flow_paths)))
    log.info(
        "service.started",
        url=url,
        flows=len(process.project.flows),
        triggers=len(process.emitters),
        data=str(settings.data),
    )
    while not await requests.to_stop():
        with requests.cancelling():
            await _reload(process, ingest, flow_paths, requests.changes())
    log.info("service.stopping", grace_seconds=settings.grace.total_seconds())
    stuck = await process.stop()
    server.stop()
    await serving
    _cancel(background)
    await _end_if_lost(journal)
    if stuck:
        # Threads cannot be killed: the run is queued again and the process ends.
        log.warning("service.stopped", stuck=stuck)
        await journal.close()
        sys.stderr.flush()
        os._exit(EXIT_CUT_OFF)
    log.info("service.stopped")


def _watch(
    process: Process, journal: OpenJournal, tasks: asyncio.TaskGroup
) -> list[asyncio.Task[None]]:
    clock = WallClock(process.now)
    return [
        tasks.create_task(watch_loop(process.settings)),
        tasks.create_task(_end_when_broken(journal)),
        tasks.create_task(watch_disk(journal)),
        tasks.create_task(watch_files(journal)),
        tasks.create_task(watch_clock(clock, process.dispatcher.recheck_due)),
        tasks.create_task(process.watch_pools()),
    ]


def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


@dataclass
class _Requests:
    """What a running service is requests to do: reload flow files, or stop."""

    _any: asyncio.Event = field(default_factory=asyncio.Event)
    _scope: anyio.CancelScope | None = None
    _stop: bool = False
    _changed: list[str] = field(default_factory=list)

    def stop(self, number: int) -> None:
        """Ask to stop; the second time the process ends at once."""
        if self._stop:
            os._exit(128 + number)
        self._stop = True
        self._any.set()
        if self._scope is not None:
            self._scope.cancel()

    @contextmanager
    def cancelling(self) -> Iterator[anyio.CancelScope]:
        """Cancel the body when the service is requests to stop."""
        with anyio.CancelScope() as self._scope:
            yield self._scope
        self._scope = None

    def reload(self, *changed: str) -> None:
        """Ask to reload the flow files, with what changed."""
        self._changed += changed
        self._any.set()

    async def to_stop(self) -> bool:
        """Wait for a request; returns whether it is to stop."""
        await self._any.wait()
        self._any.clear()
        return self._stop

    def changes(self) -> list[str]:
        """Return the changes since the last call."""
        changed, self._changed = self._changed, []
        return changed


def _on_signals() -> _Requests:
    """Stop at SIGTERM and SIGINT; reload at SIGHUP, or stop when a terminal closes."""
    requests = _Requests()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, requests.stop, number)
    if sys.stderr.isatty():
        loop.add_signal_handler(signal.SIGHUP, requests.stop, signal.SIGHUP)
    else:
        loop.add_signal_handler(signal.SIGHUP, requests.reload, "SIGHUP")
    return requests


async def _ask_for_changes(requests: _Requests, flow_paths: Sequence[Path]) -> None:
    from turnout.service.project.reload import changes

    def warn(reason: str) -> None:
        log.warning("reload.polled", reason=reason, limits="fs.inotify.max_user_*")

    async for changed in changes(flow_paths, warn=warn):
        requests.reload(*sorted(map(str, changed)))


def _end_by_callback(
    process: Process,
    tasks: asyncio.TaskGroup,
    loop: asyncio.AbstractEventLoop,
    context: dict[str, Any],
) -> None:
    """End the service when a loop callback fails, as when a task fails."""
    error = context.get("exception")
    if error is None or "handle" not in context:  # an error of a connection, not of turnout
        loop.default_exception_handler(context)
        return

    async def fail() -> NoReturn:
        raise error

    process.dispatcher.stop_starting()
    tasks.create_task(fail())


async def _end_when_broken(journal: OpenJournal) -> None:
    # At once: an exception would wait for runs, and a thread may never return.
    await journal.broken.wait()
    _end_broken(journal.writable or "the journal's disk failed")


async def _end_if_lost(journal: OpenJournal) -> None:
    """Check once more at the end that no journal file was lost."""
    lost = await journal.look_at_files()
    if lost is not None:
        _end_broken(lost)


def _end_broken(reason: str) -> NoReturn:
    log.error("journal.broken", error=reason)
    sys.stderr.flush()
    os._exit(EXIT_IO)


def tune_garbage_collector() -> None:
    """Freeze long-lived objects and collect garbage less often.

    Events and runs leave no reference cycles. At Python's default (a collection every 700 new
    objects) collecting took a quarter of the cost of a Kafka record; a full one pauses everything.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _load_rest(process: Process) -> Any:
    def create() -> Any:
        from turnout.service.http.rest.application import create_rest

        rest = create_rest(process)
        tune_garbage_collector()
        return rest

    return await asyncio.to_thread(create)


async def _reload(
    process: Process, ingest: Ingest, flow_paths: Sequence[Path], changed: Sequence[str]
) -> None:
    """Load the flow files again; on an error log it and keep what is loaded.

    Runs in the task that opens resources, because the same task must close them.
    """
    try:
        with loading(flow_paths) as project:
            check_exposure(project.triggers.values(), process.settings.host)
            unlock(project.triggers.values())
            await process.reload(project)
    except SetupError as error:
        log.error("reload.failed", error=str(error))  # noqa: TRY400  it names file and line
    else:
        ingest.replace(process.routes())
        log.info("reload.done", flows=len(project.flows), changed=list(changed))


def _url(settings: Settings, sock: socket.socket) -> str:
    scheme = "https" if settings.tls_certificate is not None else "http"
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"


def _cancel_on_signals(folder: str) -> None:
    """Cancel this task at SIGINT or SIGTERM; end the process soon if a thread blocks that."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def end() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.write("\nstopped\n")
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)

    def signalled() -> None:
        if task.cancelling():
            end()
        task.cancel()
        loop.call_later(UNWIND_SECONDS, end)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)


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
        _cancel_on_signals(folder)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            journal = await open_journal(
                Path(folder),
                metrics=metrics,
                synchronous="normal",
                max_unfinished_runs=settings.max_unfinished_runs,
                min_free_bytes=0,
            )
            stack.push_async_callback(journal.close)
            process = Process(settings, project, journal, metrics, tasks)
            stack.push_async_callback(process.resources.stop)
            await process.start()
            emit = process.emitter(ManualTrigger("cli", "cli"), lambda _event: (flow,))
            event = Event(
                id=mint_id(),
                source="turnout:cli",
                type="turnout.cli.run",
                time=process.now(),
                body=data,
                datacontenttype="application/json",
                trigger="cli",
                minted=True,
            )
            run_id = (await emit([event]))[0].runs[0]
            while await process.waiters.result(run_id, 3600) is None:
                continue
            run = await journal.run(run_id)
            await process.stop()
            assert run is not None  # it has just finished
            return run

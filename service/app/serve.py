"""`turnout serve`: from settings to exit code.

The composition root. An unexpected error ends the process; a supervisor restarts it, and the
journal makes that safe.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from turnout.service.domain.clock import STEP, EngineClock, WallClock, wall_clock
from turnout.service.domain.errors import JournalBroken
from turnout.service.domain.units import format_duration
from turnout.service.governance.links import Links, load_or_make_key
from turnout.service.governance.tokens import load_or_make_token
from turnout.service.http.ingest import Ingest, address_of, check_exposure
from turnout.service.http.server.listening import inherit, listen
from turnout.service.http.server.server import Server
from turnout.service.journal.contract import Lifecycle, Retention
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.operate.maintenance import Maintenance
from turnout.service.project.loader import load
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .blocked_loop import watch_loop
from .idle import check_idle_exit, stop_when_idle
from .process import Process
from .reload import reload_files, warn_of
from .requests import Requests, on_signals, reload_on_change
from .spans import SpanSender, open_tracing
from .starting import answered_meanwhile
from .watchdogs import watch_clock, watch_disk, watch_files, watch_pools

log = get_logger("turnout")

EXIT_OK = 0
EXIT_IO = 74
EXIT_CUT_OFF = 75
"""A stop that cut off steps which did not end; they run again at the next start."""

_LOOK_SECONDS = 1.0


async def serve(settings: Settings, flow_paths: Sequence[Path], *, reload: bool = False) -> int:
    """Serve a project until a signal; returns the exit code.

    0 after a clean stop, 74 when the journal's disk failed for good. Raises `SetupError` when
    starting would be unsafe.
    """
    inherited = inherit()
    if inherited is not None:
        host, port = inherited.getsockname()[:2]
        settings = settings.model_copy(update={"host": host, "port": port})
    project = load(flow_paths)
    warn_of(project)
    if settings.idle_exit is not None:
        check_idle_exit(project, inherited=inherited is not None)
    check_exposure(project.triggers.values(), settings.host)
    tracing = open_tracing(os.environ)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        sock = listen(settings) if inherited is None else inherited
        stack.callback(sock.close)
        async with answered_meanwhile(settings, sock) as progress:
            journal = await open_journal(
                settings.data,
                metrics=metrics,
                synchronous=settings.synchronous,
                max_unfinished_runs=settings.max_unfinished_runs,
                min_free_bytes=settings.min_free_bytes,
                progress=progress,
            )
        stack.push_async_callback(journal.close)
        clock = await _start_clock(journal)
        try:
            async with asyncio.TaskGroup() as tasks:
                process = Process(
                    settings, project, journal, metrics, tasks, now=clock.now, wall=clock.wall,
                    spans=None if tracing is None else SpanSender(journal, *tracing),
                )  # fmt: skip
                stack.push_async_callback(process.resources.stop)
                await _live(process, journal, clock, sock, flow_paths, tasks, reload=reload)
        except* JournalBroken as broken:
            await _end_broken(journal, str(_first_of(broken)))
    return EXIT_OK


async def _start_clock(journal: Retention) -> EngineClock:
    """Return the engine's time; report a wall clock that shows less than the journal holds."""
    recorded = await journal.last_recorded_at()
    clock = EngineClock(wall_clock(), recorded=recorded)
    behind = clock.behind()
    if recorded is not None and behind > STEP:
        log.error(
            "clock.behind",
            by=format_duration(behind),
            recorded=recorded.isoformat(),
            error="the clock shows an earlier time than the journal; it is believed, and what is "
            "due, paused or limited until a later instant waits for that instant",
        )
    return clock


async def _live(
    process: Process,
    journal: OpenJournal,
    clock: EngineClock,
    sock: socket.socket,
    flow_paths: Sequence[Path],
    tasks: asyncio.TaskGroup,
    *,
    reload: bool,
) -> None:
    requests = on_signals()
    asyncio.get_running_loop().set_exception_handler(partial(_end_by_callback, process, tasks))
    settings = process.settings
    background = _watch(process, journal, clock, tasks)
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
        count=process.scrape.measure,
        now=process.wall,
    )
    server = Server(ingest, sock, settings)
    serving = tasks.create_task(server.run())
    url = _url(settings, sock)
    load_or_make_token(settings)
    process.links = Links(load_or_make_key(settings.data), settings.public_url or url)
    journal.write_url(url)  # last: a client that finds the address also finds the token
    journal.write_next_wake(None)
    await process.start_triggers()
    maintenance = Maintenance(
        journal,
        process.after_run_actions,
        settings,
        process.metrics,
        now=process.wall,
        clock=WallClock(process.wall, known=journal.last_written_at),
    )
    background.append(tasks.create_task(maintenance.run()))
    tune_garbage_collector()
    background.append(tasks.create_task(stop_when_idle(process, server, requests)))
    if reload:
        background.append(tasks.create_task(reload_on_change(requests, flow_paths)))
    log.info(
        "service.started",
        url=url,
        flows=len(process.project.flows),
        triggers=len(process.emitters),
        data=str(settings.data),
    )
    _log_addresses(process)
    while not await requests.to_stop():
        with requests.cancelling():
            await reload_files(process, ingest, flow_paths, requests.changes())
    log.info("service.stopping", grace_seconds=settings.grace.total_seconds())
    stuck = await _stop(process, journal, server, serving, requests, url)
    _cancel(background)
    await _end_if_lost(journal)
    if stuck:
        # Threads cannot be killed: the run is queued again and the process ends.
        log.warning("service.stopped", stuck=stuck)
        await journal.close()
        sys.stderr.flush()
        os._exit(EXIT_CUT_OFF)
    log.info("service.stopped")


async def _stop(
    process: Process,
    journal: OpenJournal,
    server: Server,
    serving: asyncio.Task[None],
    requests: Requests,
    url: str,
) -> int:
    """Stop runs, HTTP and triggers; returns the number of runs stuck in threads.

    Whoever has connected before HTTP stops is answered, and their events are taken.
    """
    if requests.is_signalled:
        server.close_connections()
    else:  # idle: what has connected just now may still run
        server.stop()
        await serving
    stuck = await process.drain()
    server.stop()
    await serving
    await process.close()
    if not requests.is_signalled:
        wake = await process.wanted.next_wake(url)
        await asyncio.to_thread(journal.write_next_wake, wake)
        log.info("service.idle", next=None if wake.at is None else wake.at.isoformat())
    return stuck


def _log_addresses(process: Process) -> None:
    """Say where senders call each trigger, once."""
    for trigger, _emitter in process.routes():
        flows = process.project.feeds.get(trigger.name, ())
        log.info(
            "webhook.ready",
            url=address_of(process.links.base_url, trigger),
            trigger=trigger.name,
            flows=[flow.name for flow in flows],
        )


def _watch(
    process: Process, journal: OpenJournal, clock: EngineClock, tasks: asyncio.TaskGroup
) -> list[asyncio.Task[None]]:
    return [
        tasks.create_task(watch_loop(process.settings, process.metrics)),
        tasks.create_task(_end_when_broken(journal)),
        tasks.create_task(watch_disk(journal)),
        tasks.create_task(watch_files(journal)),
        tasks.create_task(watch_clock(clock, process.metrics, process.clock_set)),
        tasks.create_task(watch_pools(process.pools)),
    ]


def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


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
    await _end_broken(journal, journal.writable or "the journal's disk failed")


async def _end_broken(journal: Lifecycle, symptom: str) -> NoReturn:
    """End the program, and say rather what happened to the files than how it was noticed."""
    reason = symptom
    with suppress(TimeoutError):  # a disk that hangs
        async with asyncio.timeout(_LOOK_SECONDS):
            reason = await journal.look_at_files() or symptom
    _end(reason)


async def _end_if_lost(journal: Lifecycle) -> None:
    """Check once more at the end that no journal file was lost."""
    lost = await journal.look_at_files()
    if lost is not None:
        _end(lost)


def _first_of(error: BaseException) -> BaseException:
    """Return the first error inside a group, whose own words say nothing: task groups nest."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end(reason: str) -> NoReturn:
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


def _url(settings: Settings, sock: socket.socket) -> str:
    scheme = "https" if settings.tls_certificate is not None else "http"
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"

"""`turnout run`: one flow once, in the foreground and in a temporary journal."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from turnout.service.domain.clock import EngineClock
from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.run import Run
from turnout.service.domain.units import LONGEST
from turnout.service.journal.open import open_journal
from turnout.service.project import AnyFlow, Project
from turnout.service.project.loader import load
from turnout.service.settings import Settings
from turnout.service.steps.dry_run import DryRun
from turnout.service.telemetry.metrics import Metrics

from .blocked_loop import watch_loop
from .foreground_waits import MovableClock, Person, Waits
from .process import ManualTrigger, Process
from .run_input import RunInput, put

EXIT_INTERRUPTED = 130
UNWIND_SECONDS = 2.0
"""How long the run may take to end after Ctrl-C; a second one ends it at once."""


Prepare = Callable[[AnyFlow], AnyFlow]
"""Changes a flow before it runs, as a debugger does."""


async def run_once(
    settings: Settings,
    flow_path: Path,
    flow_name: str,
    given: Callable[[], Awaitable[RunInput]],
    person: Person,
    *,
    skip_waits: bool = False,
    prepare: Prepare | None = None,
    dry_run: DryRun | None = None,
) -> Run:
    """Run one flow once in the foreground, in a temporary journal, with what `given` returns.

    With `dry_run` only what reads is done, and what would change something is noted there.
    `person` is told what the run waits for, and answers approvals. Raises `NotFound` when the file
    has no such flow, `Refused` when the run waits for what never comes.
    """
    project = load([flow_path])
    if flow_name not in project.flows:
        raise NotFound(
            f"{flow_path} has no flow {flow_name!r}; it has: {', '.join(project.flows) or 'none'}"
        )
    flow = replace(project.flows[flow_name], shadow=False)  # it is asked to run, for once
    if dry_run is not None:
        prepare = dry_run.prepared
    if prepare is not None:
        flow = prepare(flow)
        project = Project.of({**project.flows, flow_name: flow}.values())
    asked = await given()
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
            wall = MovableClock()
            clock = EngineClock(wall)
            process = Process(
                settings, project, journal, metrics, tasks,
                now=clock.now, wall=clock.wall, dry_run=dry_run,
            )  # fmt: skip
            stack.push_async_callback(process.resources.stop)
            watching = None if prepare else tasks.create_task(_watched(settings, metrics))
            run_id = await _started(process, flow, asked)
            waits = Waits(process, wall, person, skips=skip_waits)
            run = await waits.until_ended(run_id)
            await process.stop()
            if watching is not None:
                watching.cancel()
            return run


async def _watched(settings: Settings, metrics: Metrics) -> None:
    """Warn of code that blocks the loop, as the service does, but let it: nothing else waits."""
    await watch_loop(settings.model_copy(update={"blocked_loop": LONGEST}), metrics)


async def _started(process: Process, flow: AnyFlow, asked: RunInput) -> str:
    """Start the process and the run; returns its id."""
    if asked.earlier is not None:
        run_id = await put(process.journal, asked.event, asked.earlier)
        await process.start()
        return run_id
    await process.start()
    name = asked.event.trigger or "cli"
    emit = process.emitter(ManualTrigger(name, "cli"), lambda _event: (flow,))
    (receipt,) = await emit([asked.event])
    window = receipt.windows.get(flow.name)
    if window is not None:  # nothing else comes here: it fires with this event
        closed = await process.journal.fire_window(window, flow.firing, now=process.now())
        process.windows.begin(closed)
        return closed.runs[0]
    if flow.window is not None and not receipt.runs:
        raise Refused(
            f"flow {flow.name!r} starts when several events have come ({flow.window.kind}), and "
            "one that is made by hand is none of them: try it with turnout.testing"
        )
    return receipt.runs[0]


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

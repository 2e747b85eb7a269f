"""`turnout run`: one flow once, in the foreground and in a temporary journal."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from turnout.service.domain.clock import EngineClock, wall_clock
from turnout.service.domain.errors import NotFound
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import Run
from turnout.service.journal.open import open_journal
from turnout.service.project.loader import load
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

from .process import ManualTrigger, Process

EXIT_INTERRUPTED = 130
UNWIND_SECONDS = 2.0
"""How long the run may take to end after Ctrl-C; a second one ends it at once."""


async def run_once(settings: Settings, flow_path: Path, flow_name: str, data: bytes) -> Run:
    """Run one flow once in the foreground, in a temporary journal, with `data` as JSON.

    Raises `NotFound` when the file has no such flow.
    """
    project = load([flow_path])
    if flow_name not in project.flows:
        raise NotFound(
            f"{flow_path} has no flow {flow_name!r}; it has: {', '.join(project.flows) or 'none'}"
        )
    flow = replace(project.flows[flow_name], shadow=False)  # it is asked to run, for once
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
            clock = EngineClock(wall_clock())
            process = Process(
                settings, project, journal, metrics, tasks, now=clock.now, wall=clock.wall
            )
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

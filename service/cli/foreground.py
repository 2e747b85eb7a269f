"""Preparing the process of a command that runs flows in the foreground."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from turnout.service.domain.errors import SetupError

if TYPE_CHECKING:
    from turnout.service.settings import Settings


def prepare_process(settings: Settings) -> None:
    """Set up streams, logs and secrets of a process that runs flows."""
    if sys.platform == "win32":
        raise SetupError("Windows is not supported; run turnout in WSL 2 or a container")
    from turnout.service.governance import secrets
    from turnout.service.telemetry import logs, streams

    streams.protect()
    logs.configure(settings.log_format, settings.log_level)
    secrets.configure(settings.secrets_folder)


def run_on_uvloop(work: Any) -> Any:
    """Run a coroutine to its end on uvloop.

    A `SystemExit` in an asyncio task that an author's code has made ends that task, and is raised
    where the task is awaited; asyncio alone would end the whole loop.
    """
    import asyncio

    import uvloop

    async def finish() -> Any:
        return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        main = runner.get_loop().create_task(work)
        while True:
            try:
                return runner.run(finish())
            except SystemExit:
                if main.done():
                    raise

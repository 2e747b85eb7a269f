"""An idle service exits, and is started again by a connection or in time for what is due.

It exits once nothing has been connected, run or due for `idle_exit`. That needs a socket that
somebody else holds, so that no connection is refused, and triggers that need no process to watch.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from turnout.service.domain.errors import JournalError, SetupError
from turnout.service.domain.trigger import ReadTrigger, parts_of
from turnout.service.http.server.server import Server
from turnout.service.project import Project
from turnout.service.telemetry.logs import get_logger

from .process import Process
from .requests import Requests

log = get_logger("turnout")

_LOOK_SECONDS = 1.0


def check_idle_exit(project: Project, *, inherited: bool) -> None:
    """Raise `SetupError` where a service that has exited would miss events."""
    if not inherited:
        raise SetupError(
            "--idle-exit needs a socket that stays while the service is gone: start it by a socket "
            "unit (deploy/turnout.socket), or leave the option out"
        )
    watching = _watching(project)
    if watching:
        raise SetupError(
            f"--idle-exit: {watching[0]} has to be watched, and nobody does while the service is "
            "gone; serve its flows without --idle-exit"
        )


async def stop_when_idle(process: Process, server: Server, requests: Requests) -> None:
    """Request a stop once the service is idle, if the settings say so."""
    if process.settings.idle_exit is not None:
        await _until_idle(process, server, process.settings.idle_exit)
        requests.stop_idle()


async def _until_idle(process: Process, server: Server, after: timedelta) -> None:
    """Return once nobody has been connected, and nothing was to do, for so long."""
    reported: str | None = None
    busy_at = time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if process.dispatcher.running or process.alerts.at_work or process.windows.at_work:
            busy_at = time.monotonic()
        if time.monotonic() - max(busy_at, server.peers.empty_since) < after.total_seconds():
            continue
        what = await kept_by(process)
        if what is not None:
            busy_at = time.monotonic()
            if what != reported:
                log.info("service.kept", by=what)
                reported = what
        elif not len(server.peers):
            return


async def kept_by(process: Process) -> str | None:
    """Return what keeps the service, None if it may go and can write when it must be back."""
    watching = _watching(process.project)  # of flow files that were loaded meanwhile
    troubles = [*process.problems(), *watching]
    if troubles:
        return troubles[0]
    try:
        return await process.wanted.kept_by()
    except JournalError as error:
        return str(error)


def _watching(project: Project) -> list[str]:
    """Return the triggers that need a process to see what is new: all that read but timers."""
    return [
        name
        for name, trigger in project.triggers.items()
        if isinstance(trigger, ReadTrigger) and parts_of(trigger).scheduled is None
    ]

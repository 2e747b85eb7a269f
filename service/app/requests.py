"""Requests to a running service, from signals and from changed flow files: reload, or stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from turnout.service.telemetry.logs import get_logger

log = get_logger("turnout")


@dataclass
class Requests:
    """The requests to a running service: to reload its flow files, or to stop."""

    _any: asyncio.Event = field(default_factory=asyncio.Event)
    _scope: anyio.CancelScope | None = None
    _stop: bool = False
    is_signalled: bool = False
    """Whether a signal has requested the stop."""

    _changed: list[str] = field(default_factory=list)

    def stop(self, number: int) -> None:
        """Request a stop by a signal; the second one ends the process at once."""
        if self.is_signalled:
            os._exit(128 + number)
        self.is_signalled = True
        self.stop_idle()

    def stop_idle(self) -> None:
        """Request a stop because nothing is to do."""
        self._stop = True
        self._any.set()
        if self._scope is not None:
            self._scope.cancel()

    @contextmanager
    def cancelling(self) -> Iterator[anyio.CancelScope]:
        """Cancel the block when a stop is requested."""
        with anyio.CancelScope() as self._scope:
            yield self._scope
        self._scope = None

    def reload(self, *changed: str) -> None:
        """Request a reload of the flow files, of which these changed."""
        self._changed += changed
        self._any.set()

    async def to_stop(self) -> bool:
        """Wait for a request; returns whether it is a stop."""
        await self._any.wait()
        self._any.clear()
        return self._stop

    def changes(self) -> list[str]:
        """Return the changes since the last call."""
        changed, self._changed = self._changed, []
        return changed


def on_signals() -> Requests:
    """Stop at SIGTERM and SIGINT; reload at SIGHUP, or stop when a terminal closes."""
    requests = Requests()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, requests.stop, number)
    if sys.stderr.isatty():
        loop.add_signal_handler(signal.SIGHUP, requests.stop, signal.SIGHUP)
    else:
        loop.add_signal_handler(signal.SIGHUP, requests.reload, "SIGHUP")
    return requests


async def reload_on_change(requests: Requests, flow_paths: Sequence[Path]) -> None:
    """Request a reload whenever a flow file changes, until cancelled."""
    from turnout.service.project.reload import changes

    def warn(reason: str) -> None:
        log.warning("reload.polled", reason=reason, limits="fs.inotify.max_user_*")

    async for changed in changes(flow_paths, warn=warn):
        requests.reload(*sorted(map(str, changed)))

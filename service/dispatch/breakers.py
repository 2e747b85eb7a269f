"""Writes each change of a breaker to the journal, and to the log.

The write is submitted when the breaker changes, so it is on disk no later than the outcome that
changed it, and the claim that follows from it. On a full disk it is written once there is space.
"""

from __future__ import annotations

import asyncio
from functools import partial

from turnout.service.domain.breaker import BreakerState, StoredBreaker
from turnout.service.domain.errors import JournalError, JournalFull
from turnout.service.flowcontrol.dependency import Breakers
from turnout.service.journal.contract import Work
from turnout.service.telemetry.logs import get_logger

from .attempts import until_writable

log = get_logger("turnout.breakers")


class WrittenBreakers:
    """Keeps the journal's copy of the breakers up to date."""

    def __init__(self, journal: Work, breakers: Breakers) -> None:
        self._journal = journal
        self._unwritten: dict[str, StoredBreaker] = {}
        self._waiting: asyncio.Task[None] | None = None
        breakers.changed = self._changed

    def _changed(self, breaker: StoredBreaker) -> None:
        _tell(breaker)
        self._write(breaker)

    def _write(self, breaker: StoredBreaker) -> None:
        writing = self._journal.record_breaker(breaker)
        writing.add_done_callback(partial(self._written, breaker))

    def _written(self, breaker: StoredBreaker, writing: asyncio.Future[None]) -> None:
        error = None if writing.cancelled() else writing.exception()
        if not isinstance(error, JournalFull):
            return  # done, or the journal is lost or closed: the process ends
        self._unwritten[breaker.name] = breaker
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_task(self._write_when_possible())

    async def _write_when_possible(self) -> None:
        try:
            await until_writable(self._journal)
        except JournalError:
            return
        finally:
            self._waiting = None
        left, self._unwritten = self._unwritten, {}
        for breaker in left.values():
            self._write(breaker)


def _tell(breaker: StoredBreaker) -> None:
    if breaker.state is BreakerState.OPEN:
        until = None if breaker.until is None else breaker.until.isoformat()
        log.warning("breaker.opened", dependency=breaker.name, until=until, reason=breaker.reason)
    elif breaker.state is BreakerState.CLOSED:
        log.info("breaker.closed", dependency=breaker.name)
    else:
        log.info("breaker.probing", dependency=breaker.name)

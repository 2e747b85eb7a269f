"""Who waits for a run to finish: requests with `?wait=`, and `turnout run`. Bounded."""

from __future__ import annotations

import asyncio

from turnout.service.errors import Overloaded
from turnout.service.journal.contract import Journal
from turnout.service.run import FINISHED, Run


class Waiters:
    """Hands a finished run to whoever waits for it; at most `limit` wait at once."""

    def __init__(self, journal: Journal, limit: int) -> None:
        self._journal = journal
        self._limit = limit
        self._waiting: dict[str, asyncio.Event] = {}
        self._count = 0

    async def result(self, run_id: str, timeout_seconds: float) -> Run | None:
        """Return the run once it has finished, or None at the timeout; raises `Overloaded`."""
        if self._count >= self._limit:
            raise Overloaded(f"{self._limit} requests already wait for a result")
        done = self._waiting.setdefault(run_id, asyncio.Event())
        self._count += 1
        try:
            run = await self._journal.run(run_id)  # it may have finished before we asked
            if run is not None and run.state in FINISHED:
                return run
            async with asyncio.timeout(timeout_seconds):
                await done.wait()
            return await self._journal.run(run_id)
        except TimeoutError:
            return None
        finally:
            self._count -= 1
            self._waiting.pop(run_id, None)

    def finished(self, run_id: str) -> None:
        """Tell whoever waits that the run has finished."""
        waiting = self._waiting.get(run_id)
        if waiting is not None:
            waiting.set()

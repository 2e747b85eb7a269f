"""Those who wait for a run to finish: requests with `?wait=`, and `turnout run`. Bounded."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from turnout.service.domain.errors import Overloaded
from turnout.service.domain.run import FINISHED, Outcome
from turnout.service.journal.contract import RunReads

_Finished: TypeAlias = "asyncio.Future[Outcome | None]"

_TICK_SECONDS = 0.1
"""Timeouts end at the next multiple of this, so that thousands of requests share one timer."""


class Waiters:
    """Gives the outcome of a finished run to those who wait for it; at most `limit` wait at once.

    The outcome comes from memory; the journal is read only for a run that may have finished before
    the wait began.
    """

    def __init__(self, journal: RunReads, limit: int) -> None:
        self._journal = journal
        self._limit = limit
        self._waiting: dict[str, list[_Finished]] = {}
        self._expiring: dict[int, set[_Finished]] = {}
        self._count = 0
        self._closed = False

    async def result(
        self, run_id: str, timeout_seconds: float, *, is_new: bool = False
    ) -> Outcome | None:
        """Return a run's outcome once it has finished; None at the timeout. Raises `Overloaded`.

        `is_new`: the run was inserted in this turn of the loop, and not as a dead letter.
        """
        if self._closed:
            return None
        if self._count >= self._limit:
            raise Overloaded(f"{self._limit} requests already wait for a result")
        loop = asyncio.get_running_loop()
        finished: _Finished = loop.create_future()
        expiring = self._expire_at(loop, loop.time() + timeout_seconds)
        expiring.add(finished)
        self._waiting.setdefault(run_id, []).append(finished)
        self._count += 1
        try:
            if not is_new:
                run = await self._journal.run(run_id)
                if run is not None and run.state in FINISHED:
                    return Outcome(
                        state=run.state, result=run.result, error=run.error, reason=run.reason
                    )
            return await finished
        finally:
            expiring.discard(finished)
            self._count -= 1
            self._forget(run_id, finished)

    def finished(self, run_id: str, outcome: Outcome) -> None:
        """Give the outcome of a finished run to those who wait for it."""
        for waiting in self._waiting.get(run_id, ()):
            _tell(waiting, outcome)

    def close(self) -> None:
        """End every wait, also later ones, as at its timeout: no run finishes here any more."""
        self._closed = True
        for waiting in self._waiting.values():
            for each in waiting:
                _tell(each, None)

    def _forget(self, run_id: str, finished: _Finished) -> None:
        waiting = self._waiting[run_id]
        waiting.remove(finished)
        if not waiting:
            del self._waiting[run_id]

    def _expire_at(self, loop: asyncio.AbstractEventLoop, instant: float) -> set[_Finished]:
        """Return the set of waits that time out together with one at this time of the loop."""
        tick = int(instant / _TICK_SECONDS) + 1
        expiring = self._expiring.get(tick)
        if expiring is None:
            expiring = self._expiring[tick] = set()
            loop.call_at(tick * _TICK_SECONDS, self._expire, tick)
        return expiring

    def _expire(self, tick: int) -> None:
        for finished in self._expiring.pop(tick):
            _tell(finished, None)


def _tell(finished: _Finished, outcome: Outcome | None) -> None:
    if not finished.done():
        finished.set_result(outcome)

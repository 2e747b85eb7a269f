"""A clock for tests: it stands still until it is told to go on, so that a day takes no time.

`now` and `sleep` take the place of the real ones. Not here: when it may go on (`service`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count

from turnout import current

START = datetime(2026, 1, 1, tzinfo=UTC)
"""What a clock shows at first, and the time of events that name no other."""


class Clock:
    """The virtual clock of a service under test, `service.clock`; time passes in `advance` only.

    * `start`: what it shows at first, `START` unless `serve(start=…)` says otherwise

    Raises nothing.

    ```python
    from datetime import timedelta

    from turnout import flow, sleep
    from turnout.testing import START, serve


    @flow
    async def nap() -> None:
        await sleep("1h")


    async def test_an_hour_passes_at_once() -> None:
        async with serve(nap) as service:
            await service.run(nap)
            assert service.clock.now() == START + timedelta(hours=1)
    ```
    """

    def __init__(self, start: datetime = START) -> None:
        self._now = start
        self._numbers = count()
        self._sleepers: list[tuple[datetime, int, str, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """Return the virtual instant, in UTC."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been set past that many seconds from now."""
        done = asyncio.get_running_loop().create_future()
        due = self._now + timedelta(seconds=seconds)
        heapq.heappush(self._sleepers, (due, next(self._numbers), current().run.id, done))
        await done

    def sleeping(self) -> Iterable[str]:
        """Return the ids of the runs that sleep, each once."""
        return {run for _, _, run, done in self._sleepers if not done.done()}

    def next_due(self) -> datetime | None:
        """Return when the next sleeper is due."""
        while self._sleepers and self._sleepers[0][3].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def set(self, instant: datetime) -> None:
        """Go on to `instant`, never back, and wake who is due by then."""
        self._now = max(self._now, instant)
        while (due := self.next_due()) is not None and due <= self._now:
            heapq.heappop(self._sleepers)[3].set_result(None)

"""Steps that wait for their next try, beside branches of the same run that may be at work.

A long rest ends the attempt as soon as nothing of it works: the run goes on when the try is due,
and holds no slot until then. While another branch works the slot is held anyway, and the try
begins on time. Not here: when a try is due (`step`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

LONGEST_HELD_SECONDS = 5.0
"""The longest rest that holds the run's slot."""


class Backoffs:
    """How many branches of an attempt work, and which of them rest; without branches it is one."""

    __slots__ = ("_waiting", "_working")

    def __init__(self) -> None:
        self._working = 1
        self._waiting: set[asyncio.Future[None]] = set()

    def branches_started(self, branches: int) -> None:
        """Note that a branch waits for so many new ones."""
        self._working += branches - 1

    def branch_ended(self) -> None:
        """Note that one of the new branches has ended, or waits for something else; not the last.

        After that one goes on what waited for them.
        """
        self._working -= 1
        self._wake_if_idle()

    async def wait(
        self, seconds: float, sleep: Callable[[float], Coroutine[Any, Any, None]]
    ) -> bool:
        """Rest so long and return True; or return False as soon as no branch works."""
        alone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(alone)
        self._working -= 1
        self._wake_if_idle()
        try:
            async with asyncio.TaskGroup() as tasks:
                sleeping = tasks.create_task(sleep(seconds))
                await asyncio.wait((alone, sleeping), return_when=asyncio.FIRST_COMPLETED)
                is_over = not alone.done()
                sleeping.cancel()
            return is_over
        finally:
            self._waiting.discard(alone)
            self._working += 1

    def _wake_if_idle(self) -> None:
        if self._working > 0:
            return
        for each in self._waiting:
            if not each.done():
                each.set_result(None)

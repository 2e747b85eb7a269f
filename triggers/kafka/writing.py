"""Batches on their way into the journal: one is made ready while the one before it is written.

Decoding and routing keep the loop's thread busy and writing keeps the journal's, so both work at
once. A batch is stored only when the one before it was: a refusal takes along what came after it,
and nothing is skipped. The ledger's lock is held until the journal has answered, also when nobody
waits for the answer any more, so that whoever reads next knows what was stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

Write = Callable[["asyncio.Task[None] | None"], Coroutine[Any, Any, None]]
"""Makes a batch ready, waits for the task it is given, and then stores."""

CANCEL_SECONDS = 0.5


class Writing:
    """A turn at writing, at most two batches at a time; its end waits for them."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._before: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._lock.acquire()
        return self

    async def add(self, write: Write) -> None:
        """Begin with a batch; returns when the one before it is stored, or raises what it did."""
        before = self._before = self._last
        self._last = asyncio.get_running_loop().create_task(write(before))
        if before is not None:
            await asyncio.wait([before])
            before.result()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise what storing raised; a cancel waits for a moment only."""
        last = self._last
        if last is None:
            self._lock.release()
            return
        try:
            if not isinstance(error, asyncio.CancelledError):
                await asyncio.wait([last])
                last.result()
        finally:
            await self._let_go(last)

    async def _let_go(self, last: asyncio.Task[None]) -> None:
        """Release the lock when the journal has answered; a cancelled turn waits for a moment.

        A batch that still waits for the one before it is dropped then: it would be stored behind
        what others do meanwhile, such as a seek.
        """
        try:
            if not last.done():
                await asyncio.wait([last], timeout=CANCEL_SECONDS)
        finally:
            before = self._before
            if before is not None and not before.done():
                last.cancel()
                last = before
            if last.done():
                self._answered(last)
            else:
                last.add_done_callback(self._answered)

    def _answered(self, last: asyncio.Task[None]) -> None:
        self._lock.release()
        if not last.cancelled():
            last.exception()  # seen: nobody else looks

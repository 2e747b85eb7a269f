"""Writes batches to the journal: one is prepared while the one before it is stored.

Decoding and routing keep the event loop busy, storing keeps the journal's thread busy, so both
overlap. A batch is stored only if the one before it was: a refusal drops the batches behind it too,
and nothing is skipped. The lock of the positions is held until the journal has answered, even after
a cancel, so that the next reader knows what was stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

Write = Callable[["asyncio.Task[None] | None"], Coroutine[Any, Any, None]]
"""Prepares a batch, waits for the task it is given, and then stores the batch."""

CANCEL_SECONDS = 0.5


class Writing:
    """Writes at most two batches at a time; leaving it waits for them."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._before: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._lock.acquire()
        return self

    async def add(self, write: Write) -> None:
        """Start a batch; returns when the one before it is stored, or raises its error."""
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
        """Raise the error of the last batch; a cancel waits only a moment."""
        last = self._last
        if last is None:
            self._lock.release()
            return
        try:
            if not isinstance(error, asyncio.CancelledError):
                await asyncio.wait([last])
                last.result()
        finally:
            await self._release(last)

    async def _release(self, last: asyncio.Task[None]) -> None:
        """Release the lock when the journal has answered; after a cancel, wait only a moment.

        A batch that still waits for the one before it is then dropped: it would be stored after
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
            last.exception()  # mark it as retrieved

"""Timeouts of calls, and the calls that wait for a pool or outlast their timeout.

A timeout counts from the call on the loop, and in a pool from the start of the function there, so
waiting for a thread or a worker process spends none of it. A result after the timeout is not used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from turnout.service.telemetry import logs

T = TypeVar("T")

PATIENCE_SECONDS = 5.0
"""How long a call may outlast its timeout before it is logged."""

log = logs.get_logger("turnout.pools")


class PoolCalls:
    """The calls of one pool of `size` slots: which have one, and which wait for one since when.

    Any thread may begin and leave.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: dict[object, tuple[Context, float]] = {}
        self._working: set[object] = set()

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return len(self._waiting)

    @property
    def working(self) -> int:
        """How many calls have a slot."""
        return len(self._working)

    def enter(self, call: object, context: Context) -> None:
        """Note a call that is handed to the pool."""
        self._waiting[call] = context, time.monotonic()

    def begin(self, call: object) -> None:
        """Note that a call has its slot."""
        self._working.add(call)
        self._waiting.pop(call, None)

    def leave(self, call: object) -> None:
        """Note that a call has ended, or is called off."""
        self._waiting.pop(call, None)
        self._working.discard(call)

    @property
    def longest_seconds(self) -> float:
        """How long the call has waited that waits longest."""
        now = time.monotonic()
        return max((now - since for _, since in list(self._waiting.values())), default=0.0)

    def has_waiting(self, run_id: str) -> bool:
        """Whether a call of a run waits here."""
        return any(_run_of(context) == run_id for context, _ in list(self._waiting.values()))


def _run_of(context: Context) -> object:
    running = context.get(logs.running)
    return None if running is None else running.fields().get("run")


class TimeLimit:
    """The timeout of one call; while the call outlasts it, it is among those `late`."""

    def __init__(self, seconds: float, name: str, late: set[TimeLimit]) -> None:
        self.name = name
        self._seconds = seconds
        self._late = late
        self._loop: asyncio.AbstractEventLoop
        self._context: Context
        self._timeout = asyncio.timeout(None)
        self._telling: asyncio.TimerHandle | None = None
        self._ends_at = 0.0

    async def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work on the loop; raises `TimeoutError` for what is not done in time."""
        value = await self._within(work, at_once=True)
        if self.late_seconds > 0:  # it blocked the loop
            raise TimeoutError(str(self))
        return value

    async def in_pool(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work in a pool, whose time counts from `begun`."""
        return await self._within(work, at_once=False)

    def begun(self) -> None:
        """Note, in any thread, that the function starts now."""
        self._loop.call_soon_threadsafe(self._begin, time.monotonic())

    def __str__(self) -> str:
        return f"{self.name} did not end within its timeout of {self._seconds:g}s"

    @property
    def late_seconds(self) -> float:
        """How long the time has been over."""
        return time.monotonic() - self._ends_at

    async def _within(self, work: Coroutine[Any, Any, T], *, at_once: bool) -> T:
        self._loop, self._context = asyncio.get_running_loop(), copy_context()
        try:
            async with self._timeout:
                if at_once:
                    self._begin(time.monotonic())
                value = await work
        except TimeoutError as error:
            if not self._timeout.expired():
                raise  # the function's own
            raise TimeoutError(str(self)) from error
        finally:
            if self._telling is not None:
                self._telling.cancel()
            self._late.discard(self)
        if self._timeout.expired():  # it caught the cancel
            raise TimeoutError(str(self))
        return value

    def _begin(self, at: float) -> None:
        self._ends_at = at + self._seconds
        ends = self._loop.time() + self._ends_at - time.monotonic()
        self._timeout.reschedule(ends)
        self._telling = self._loop.call_at(
            ends + PATIENCE_SECONDS, self._tell, context=self._context
        )

    def _tell(self) -> None:
        self._late.add(self)
        log.warning(
            "timeout.ignored",
            call=self.name,
            timeout_seconds=self._seconds,
            why="it catches the cancel, or is in a thread, which cannot be ended; "
            "it keeps its slot until it returns",
        )

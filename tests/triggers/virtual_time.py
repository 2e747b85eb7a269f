"""Timers on a virtual clock: an hour passes at once, and the wall clock is what a test says."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.service.domain.event import Event
from turnout.service.domain.zones import load_zone
from turnout.triggers.timers import Timer

load_zone("UTC")  # as a service does before its loop runs: it reads a file

START = datetime(2026, 3, 2, 9, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEAR = 365 * DAY


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.elapsed_seconds = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.elapsed_seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing would ever happen again"
        self._loop.elapsed_seconds += max(timeout, 0)
        return super().select(0)


class Wall:
    """A wall clock that runs with the loop's and can be set."""

    def __init__(self) -> None:
        self.set_by = timedelta(0)
        self.looks = 0

    def __call__(self) -> datetime:
        self.looks += 1
        return START + self.set_by + timedelta(seconds=asyncio.get_running_loop().time())


def virtually(story: Callable[[Wall, RecordingEmitter], Coroutine[Any, Any, None]]) -> None:
    wall = Wall()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story(wall, RecordingEmitter(wall)))


async def passes(time: timedelta) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(time.total_seconds())


@asynccontextmanager
async def running(timer: Timer, emit: RecordingEmitter) -> AsyncIterator[None]:
    async with watch(timer, emit):
        yield


def dues(emit: RecordingEmitter) -> list[datetime]:
    return [event.time for event in emit.deliveries]


def missed(event: Event) -> int:
    return int(event.extensions.get("missed", "0"))


def clock(hour: int, minute: int = 0) -> datetime:
    return START.replace(hour=hour, minute=minute)

"""What a thread makes for a wait that was cancelled is disposed of, whenever the cancel comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from turnout.service.domain.handover import handed_over


async def test_what_is_waited_for_is_returned_and_kept() -> None:
    disposed: list[str] = []
    assert await handed_over(asyncio.to_thread, lambda: "file", disposed.append) == "file"
    assert disposed == []


async def test_the_thread_disposes_of_what_it_makes_after_the_cancel() -> None:
    begun, goes_on, disposed = threading.Event(), threading.Event(), asyncio.Event()
    loop, found = asyncio.get_running_loop(), []

    def make() -> str:
        begun.set()
        goes_on.wait(30)
        return "file"

    def dispose(made: str) -> None:
        found.append(made)
        loop.call_soon_threadsafe(disposed.set)

    making = asyncio.get_running_loop().create_task(handed_over(asyncio.to_thread, make, dispose))
    await asyncio.to_thread(begun.wait, 30)
    making.cancel()
    await asyncio.wait([making])
    assert found == []
    goes_on.set()
    await asyncio.wait_for(disposed.wait(), 30)
    assert found == ["file"]


async def test_what_was_made_before_the_cancel_is_disposed_of_at_once() -> None:
    disposed: list[str] = []

    async def and_no_answer(work: Callable[[], None]) -> None:
        work()
        await asyncio.Event().wait()

    making = asyncio.get_running_loop().create_task(
        handed_over(and_no_answer, lambda: "file", disposed.append)
    )
    await asyncio.sleep(0)
    making.cancel()
    await asyncio.wait([making])
    assert making.cancelled()
    assert disposed == ["file"]


async def test_an_error_is_raised_and_nothing_is_disposed_of() -> None:
    disposed: list[str] = []

    def make() -> str:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        await handed_over(asyncio.to_thread, make, disposed.append)
    assert disposed == []

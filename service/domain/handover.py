"""Hands what a thread opens to whoever waits for it, and closes it if nobody does any more.

A cancelled wait abandons the call, not the thread: a file, a lock or a connection that the thread
opens meanwhile has no owner, and must not be left to the garbage collector.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def handed_over(
    in_thread: Callable[[Callable[[], None]], Awaitable[object]],
    make: Callable[[], T],
    dispose: Callable[[T], object],
) -> T:
    """Return what `make` returns, called by `in_thread`; if the wait is cancelled, `dispose` of it.

    `dispose` is called in the thread, or here when the thread is done already.
    """
    made: list[T] = []
    is_abandoned = False
    deciding = threading.Lock()

    def work() -> None:
        result = make()
        with deciding:
            if not is_abandoned:
                made.append(result)
                return
        dispose(result)

    try:
        await in_thread(work)
    except BaseException:
        with deciding:
            is_abandoned = True
        for result in made:
            dispose(result)
        raise
    return made[0]

"""Backoff: a step waits for its next try while other branches of the run may work.

A long backoff suspends the run once no branch works: the run holds no slot, and resumes when the
try is due. While another branch works, the run holds its slot anyway, and the try starts on time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from turnout.service.domain.error_groups import asked_pause, is_final
from turnout.service.domain.retry import delay_after
from turnout.service.domain.run import RunError

from .suspension import may_suspend, suspend

if TYPE_CHECKING:
    from .step import StepCall

LONGEST_HELD_SECONDS = 5.0
"""The longest backoff during which the run holds its slot."""

_UNKNOWN = RunError("Exception", "a try of a step failed")


def next_try(call: StepCall, error: Exception) -> float | None:
    """Return in how many seconds a failed step is tried again, None if it is not.

    One that fails for a dependency may end the attempt instead, which is then not spent.
    """
    if is_final(error) or ends_attempt(call, error):
        return None
    delay = delay_after(call.task.retry, call.tries, error, now=call.services.wall())
    return None if delay is None else delay.total_seconds()


def ends_attempt(call: StepCall, error: BaseException) -> bool:
    """Whether a step that fails is not tried again now, since its run waits for a dependency.

    The undo of a run follows its own policy.
    """
    flow = call.context.flow
    if flow is None or call.key.startswith("~"):
        return False
    pause = asked_pause(error)
    is_unknown = pause is not None and all(need.name != pause for need in flow.needs)
    return is_unknown or call.context.unspent_for(error) is not None


async def back_off(call: StepCall) -> None:
    """Wait until the next try is due, also after a restart.

    A long wait during which no branch works suspends the run, which gives its slot back.
    """
    if call.not_before is None:
        return
    left = (call.not_before - call.services.now()).total_seconds()
    if left > LONGEST_HELD_SECONDS and may_suspend():
        if not await call.context.backoffs.wait(left, call.services.sleep):
            suspend(
                {},
                call.not_before,
                after=call.last_error or _UNKNOWN,
                failed_dependencies=call.failed_dependencies,
            )
    elif left > 0:
        await call.services.sleep(left)


class Backoffs:
    """Counts the working branches of an attempt, and wakes those in backoff when none works.

    A flow without branches counts as one.
    """

    __slots__ = ("_waiting", "_working")

    def __init__(self) -> None:
        self._working = 1
        self._waiting: set[asyncio.Future[None]] = set()

    def branches_started(self, branches: int) -> None:
        """Note that a branch waits for this many new ones."""
        self._working += branches - 1

    def branch_ended(self) -> None:
        """Note that a new branch has ended or waits for something else.

        Not called for the last one: the branch that waited for them works again.
        """
        self._working -= 1
        self._wake_if_idle()

    async def wait(
        self, seconds: float, sleep: Callable[[float], Coroutine[Any, Any, None]]
    ) -> bool:
        """Wait this long and return True, or return False as soon as no branch works."""
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

"""Suspending a run: an attempt ends at a wait, and the run resumes in another one.

In a `gather` or `map` the branch that waits ends first; the attempt ends when no branch works any
more. Not here: the waits (`wait`, `children`, `approval`) and who wakes the run (the journal).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.run import RunError

from . import asyncio_timeouts
from .scope import Scope, current_scope

if TYPE_CHECKING:
    from .context import RunContext


class Suspend(BaseException):
    """Ends an attempt whose run resumes later; no `except Exception` of a flow catches it.

    `waits` maps the keys of the open waits to the last event each has looked at; `due_at` is when
    the first of them ends. `after` is the error of the last try if the run waits only for the next
    try of a step, and `failed_dependencies` the dependencies that failed that try.
    """

    def __init__(
        self,
        waits: Mapping[str, int],
        due_at: datetime | None = None,
        *,
        after: RunError | None = None,
        failed_dependencies: Sequence[str] = (),
    ) -> None:
        super().__init__("the run waits and resumes later")
        self.waits = waits
        self.due_at = due_at
        self.after = after
        self.failed_dependencies = failed_dependencies


def suspend(
    waits: Mapping[str, int],
    due_at: datetime | None = None,
    *,
    after: RunError | None = None,
    failed_dependencies: Sequence[str] = (),
) -> NoReturn:
    """End the attempt, or first this branch of it; the run resumes when a wait is over."""
    scope = current_scope.get()
    assert scope is not None  # only steps suspend, and they have a scope
    stop_if_over(scope.context)
    flow = scope.context.flow
    if flow is not None and flow.is_async and not scope.is_owned:  # a thread waits elsewhere
        raise MisplacedTask(
            "a wait, or a child run, is awaited in an asyncio task turnout did not open, where it "
            "would end the attempt under the others; use turnout's own `await gather(…)`"
        )
    timeout = asyncio_timeouts.around()
    if timeout is not None:
        raise MisplacedTask(
            f"a wait, or a child run, is inside a timeout ({timeout}), which ends with the attempt "
            "while the wait goes on; use the wait's own `timeout=`, or the timeout around tasks"
        )
    scope.suspended = Suspend(waits, due_at, after=after, failed_dependencies=failed_dependencies)
    raise scope.suspended


def may_suspend() -> bool:
    """Whether the attempt can be suspended here."""
    scope = current_scope.get()
    if scope is None or scope.step is not None:
        return False
    flow = scope.context.flow
    if not scope.is_owned and (flow is None or flow.is_async):
        return False
    return asyncio_timeouts.around() is None


def stop_if_over(context: RunContext) -> None:
    """Raise `CancelledError` in a branch that an earlier attempt ended by another one's error."""
    scope = current_scope.get()
    if context.over and scope is not None and scope.path.startswith(context.over):
        raise asyncio.CancelledError("another branch has failed")


def suspend_with(branches: Iterable[Scope], waits: Mapping[str, int] | None = None) -> None:
    """Suspend if one of these ended branches was suspended, or there are other `waits`.

    The earliest due time counts.
    """
    suspended = [each.suspended for each in branches if each.suspended is not None]
    if suspended or waits:
        due = [each.due_at for each in suspended if each.due_at is not None]
        all_waits = dict(waits or {})
        for each in suspended:
            all_waits |= each.waits
        reasons = [each.after for each in suspended]
        after = None if waits or None in reasons else reasons[0]
        failed_dependencies = tuple(
            dict.fromkeys(name for each in suspended for name in each.failed_dependencies)
        )
        suspend(
            all_waits, min(due, default=None), after=after, failed_dependencies=failed_dependencies
        )

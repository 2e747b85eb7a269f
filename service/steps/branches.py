"""The branches of a `gather` or `map`: a scope for each, and the error that ended them.

The first error ends all branches and is raised in the flow. If it escapes the flow, the next
attempt runs its step again, and the steps whose errors were not delivered; if the flow catches it,
it stays recorded. Not here: running the branches (`gather`, `mapping`, `children`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any

from turnout.service.domain.run import RunError
from turnout.service.journal.records import CUT_OFF, SKIPPED, StepRecord

from . import failures
from .context import RunContext
from .scope import Scope, enter

_PATIENCE_SECONDS = 1.0

_MOST_LEFT_OUT = 100
"""How many items of a `map` that were not begun are shown."""


class Branches:
    """The indexed scopes of one `gather` or `map` call, and the error that ended them all.

    Once the flow has caught the error and continued, it stays recorded like a step's: in later
    attempts no branch gets further than before.
    """

    __slots__ = (
        "_context", "_cut_off_before", "_in_error_handler", "_name", "_started_at", "key",
        "scope",
    )  # fmt: skip

    def __init__(self, scope: Scope, name: str) -> None:
        services = scope.context.services
        assert services is not None  # `here` gives a scope only where steps can be recorded
        self.key = scope.next_key(name)
        self.scope = scope
        self._name = name
        self._context = scope.context
        self._started_at = services.now()
        self._in_error_handler = sys.exc_info()[0] is not None
        self._cut_off_before = len(scope.context.cut_off)
        if scope.context.sequence is not None:
            scope.context.sequence.visit(self.key)

    @property
    def context(self) -> RunContext:
        """The attempt whose branches they are."""
        return self._context

    def enter(self, index: int) -> Scope:
        """Make branch `index` the scope of the calling asyncio task, until it ends."""
        return enter(Scope(self._context, f"{self.key}[{index}]/"))

    def split(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Note the tasks that run the branches; after the last one the flow continues."""
        if not tasks:
            return
        backoffs, left = self._context.backoffs, len(tasks)
        backoffs.branches_started(left)

        def ended(_: object) -> None:
            nonlocal left
            left -= 1
            if left:
                backoffs.branch_ended()

        for each in tasks:
            each.add_done_callback(ended)

    def recall(self) -> BaseException | None:
        """Return the recorded error that ended the branches and that the flow caught, or None."""
        known = self._context.claimed.recorded.get(self.key)
        if known is None or known.superseded:
            return None
        error = failures.restore(known)
        self._context.ended_by.append((self.key, error))
        self._context.over += (f"{self.key}[",)
        return error

    def raise_again(self) -> None:
        """Raise what `recall` returns; for branches that do nothing between their steps."""
        error = self.recall()
        if error is not None:
            raise error

    def failed(
        self, errors: Sequence[BaseException], *, task: str = "", left: Iterable[int] = ()
    ) -> BaseException:
        """Return the error to raise in the flow; the steps of the other errors run again.

        `left` are the branches that have not begun, each of which is a step of `task`.
        """
        context, first = self._context, errors[0]
        services = context.services
        if services is None or not isinstance(first, Exception):
            return first
        context.undelivered.update(filter(None, map(failures.step_of, errors[1:])))
        upstream, now = failures.step_of(first), services.now()
        for key, name, has_begun in context.cut_off[self._cut_off_before :]:
            context.leave_mark(_left_out(key, name, upstream, now, has_begun=has_begun))
        for index in islice(left, _MOST_LEFT_OUT):
            context.leave_mark(_left_out(f"{self.key}[{index}]", task, upstream, now))
        described = failures.describe(first)
        result, first = failures.pack(first, services.settings.max_result_bytes)
        context.ended_by.append((self.key, first))
        context.leave_mark(
            StepRecord(
                key=self.key,
                task=self._name,
                state="failed",
                tries=1,
                started_at=self._started_at,
                finished_at=services.now(),
                encoding="pickle",
                result=result,
                error=described,
                in_error_handler=self._in_error_handler,
            )
        )
        return first


def _left_out(
    key: str, task: str, upstream: str | None, now: datetime, *, has_begun: bool = False
) -> StepRecord:
    """Return the record of a step that a failure `upstream` ended or kept from running.

    It tells people what became of it, and is no fact: a later attempt runs the step.
    """
    why = "another branch failed" if upstream is None else f"step {upstream!r} failed"
    return StepRecord(
        key=key,
        task=task,
        state="failed",
        tries=int(has_begun),
        started_at=now,
        finished_at=now,
        error=RunError(CUT_OFF if has_begun else SKIPPED, f"upstream failed: {why}"),
        superseded=True,
    )


async def rerun_branches(branches: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run branches with a recorded error again, for what they do between their steps.

    Each one ends at its first step that is not recorded. One that waits for something else is
    cancelled after a second.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            for each in branches:
                group.create_task(_to_its_end(each))


async def _to_its_end(branch: Coroutine[Any, Any, Any]) -> None:
    # The error that is raised in the flow is recorded already.
    with suppress(Exception, SystemExit, KeyboardInterrupt):
        await branch


def to_run_again(context: RunContext, error: BaseException) -> tuple[str, ...]:
    """Return what runs again after an `error` escaped the flow, besides the step it names."""
    raised = {id(each) for each in failures.chain(error)}
    return (*context.undelivered, *(key for key, each in context.ended_by if id(each) in raised))

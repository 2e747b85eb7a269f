"""The branches of a `gather` or `map`: a place in the run for each, and how they ended together.

The first error ends them all and is what the flow hears. If the flow escapes with it, the step it
came from and those whose errors nobody heard run again; if the flow goes on, it is a fact. Not
here: running the branches (`gather`, `mapping`, `calling`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

from turnout.service.journal.records import StepRecord

from . import failures
from .context import RunContext, Scope, enter

_PATIENCE_SECONDS = 1.0


class Branches:
    """The indexed scopes of one `gather` or `map` call, and the error that ended them all.

    Once the flow has gone on after it, that error is a fact like a step's: in later attempts no
    branch gets further than it had come.
    """

    __slots__ = ("_context", "_in_error_handler", "_name", "_started_at", "key", "scope")

    def __init__(self, scope: Scope, name: str) -> None:
        services = scope.context.services
        assert services is not None  # `here` gives a scope only where steps can be recorded
        self.key = scope.next_key(name)
        self.scope = scope
        self._name = name
        self._context = scope.context
        self._started_at = services.now()
        self._in_error_handler = sys.exc_info()[0] is not None
        if scope.context.sequence is not None:
            scope.context.sequence.visit(self.key)

    def enter(self, index: int) -> Scope:
        """Make branch `index` the scope of the calling asyncio task, to its end."""
        return enter(Scope(self._context, f"{self.key}[{index}]/"))

    def split(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Note the tasks that run the branches; after the last the flow itself goes on."""
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
        """Return the error that ended the branches in an earlier attempt, if the flow caught it."""
        known = self._context.claim.recorded.get(self.key)
        if known is None or known.superseded:
            return None
        error = failures.restore(known)
        self._context.ended_by.append((self.key, error))
        self._context.over += (f"{self.key}[",)
        return error

    def raise_again(self) -> None:
        """Raise what `recall` returns, where the branches do nothing between their steps."""
        error = self.recall()
        if error is not None:
            raise error

    def failed(self, errors: Sequence[BaseException]) -> BaseException:
        """Return the error the flow hears of; it never hears of the others, which run again."""
        context, first = self._context, errors[0]
        services = context.services
        if services is None or not isinstance(first, Exception):
            return first
        context.undelivered.update(filter(None, map(failures.step_of, errors[1:])))
        described = failures.describe(first)
        result, first = failures.keep(first, services.settings.max_result_bytes)
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


async def rerun_branches(branches: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Let branches whose common end is a fact do again what they do between their steps.

    Each of them ends where nothing more of it is recorded, or, waiting for something else, a
    little later.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            for each in branches:
                group.create_task(_to_its_end(each))


async def _to_its_end(branch: Coroutine[Any, Any, Any]) -> None:
    # What the flow heard of it is a fact.
    with suppress(Exception, SystemExit, KeyboardInterrupt):
        await branch


def not_facts(context: RunContext, error: BaseException) -> tuple[str, ...]:
    """Return what is to run again after an `error` of the flow, beside the step it names."""
    raised = {id(each) for each in failures.chain(error)}
    return (*context.undelivered, *(key for key, each in context.ended_by if id(each) in raised))

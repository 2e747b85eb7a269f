"""The branches of a `gather` or `map`: a place in the run for each, and how they ended together.

The first error ends them all and is what the flow hears. If the flow escapes with it, the step it
came from and those whose errors nobody heard run again; if the flow goes on, it is a fact. Not
here: running the branches (`gather`, `mapping`, `calling`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from turnout.service.journal.records import StepRecord

from . import failures
from .context import RunContext, Scope, enter


class Branches:
    """The indexed scopes of one `gather` or `map` call, and the error that ended them all.

    Once the flow has gone on after it, that error is a fact like a step's, and no branch is
    entered again.
    """

    __slots__ = ("_aside", "_context", "_name", "_started_at", "key", "scope")

    def __init__(self, scope: Scope, name: str) -> None:
        services = scope.context.services
        assert services is not None  # `here` gives a scope only where steps can be recorded
        self.key = scope.take(name)
        self.scope = scope
        self._name = name
        self._context = scope.context
        self._started_at = services.now()
        self._aside = sys.exc_info()[0] is not None
        if scope.context.trail is not None:
            scope.context.trail.visit(self.key)

    def enter(self, index: int) -> Scope:
        """Make branch `index` the scope of the calling asyncio task, to its end."""
        return enter(Scope(self._context, f"{self.key}[{index}]/"))

    def recall(self) -> None:
        """Raise the error that ended the branches in an earlier attempt, if the flow caught it."""
        known = self._context.claim.recorded.get(self.key)
        if known is not None and not known.superseded:
            error = failures.restore(known)
            self._context.ended_by.append((self.key, error))
            raise error

    def failed(self, errors: Sequence[BaseException]) -> BaseException:
        """Return the error the flow hears of; it never hears of the others, which run again."""
        context, first = self._context, errors[0]
        services = context.services
        if services is None or not isinstance(first, Exception):
            return first
        context.unheard.update(filter(None, map(failures.step_of, errors[1:])))
        context.ended_by.append((self.key, first))
        context.leave(
            StepRecord(
                key=self.key,
                task=self._name,
                state="failed",
                tries=1,
                started_at=self._started_at,
                finished_at=services.now(),
                encoding="pickle",
                result=failures.keep(first, services.settings.max_result_bytes),
                error=failures.describe(first),
                aside=self._aside,
            )
        )
        return first


def not_facts(context: RunContext, error: BaseException) -> tuple[str, ...]:
    """Return what is to run again after an `error` of the flow, beside the step it names."""
    raised = {id(each) for each in failures.chain(error)}
    return (*context.unheard, *(key for key, each in context.ended_by if id(each) in raised))

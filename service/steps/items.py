"""Single items of a windowed run: tried again (`Retry`), or made dead letters (`Fail`).

An attempt that tries some items again is called with these alone. It is another round of the run:
the keys of its steps begin with the round (`scope.root_path`), so no recorded step of other items
stands for them, and what the rounds before have done is not undone.
"""

from __future__ import annotations

from typing import Any

from turnout.service.domain.error_groups import deciding
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Fail, Outcome, Retry, RunError, RunState
from turnout.service.journal.records import ClaimedRun

from .failures import describe

INVALID_ITEMS = "invalid_items"
"""The type of error of a run that asks for items it does not have."""


def asked_items(error: BaseException) -> tuple[int, ...] | None:
    """Return the indexes that an error names which decides the outcome of an attempt."""
    decides = deciding(error)
    if not isinstance(decides, Retry | Fail):
        return None
    # The constructor of an author's subclass may not call ours.
    items: tuple[int, ...] | None = getattr(decides, "items", None)
    return items


def with_items(
    run: ClaimedRun, flow: Flow[..., Any], error: BaseException, outcome: Outcome
) -> Outcome:
    """Return the outcome of an attempt that ended by an error for some of its items alone."""
    asked = asked_items(error)
    if asked is None:
        return outcome
    count = 0 if not flow.takes_list else 1 if run.members is None else len(run.members.seqs)
    is_retry = isinstance(deciding(error), Retry)
    if asked[-1] >= count:
        return _refused(asked, count, is_retry=is_retry)
    if run.members is None or (not is_retry and len(asked) == count):
        return outcome  # all of them: the run itself
    if is_retry:
        outcome.left = [run.members.indexes[index] for index in asked]
        return outcome
    failed = describe(error)
    return Outcome(
        state=RunState.SUCCEEDED,
        reason=f"{len(asked)} of {count} items failed: {failed.message}",
        failed_items=[(run.members.seqs[index], failed) for index in asked],
    )


def _refused(asked: tuple[int, ...], count: int, *, is_retry: bool) -> Outcome:
    name = "Retry" if is_retry else "Fail"
    words = f"it was called with {count}, and indexes count from 0"
    if not count:
        words = "it is not called with a list; a window calls a flow with one that takes list[…]"
    message = f"{name}(items={list(asked)}): the run has no such items: {words}"
    return Outcome(state=RunState.FAILED, error=RunError(INVALID_ITEMS, message))

"""`map`: a task run for each of many items, a bounded number at once, a recorded step each.

Not here: child runs for each item (`children`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from turnout.service.domain.task import Task

from .branches import Branches
from .scope import Scope, here
from .step import StepCall, run
from .suspension import Suspend, suspend_with

MAX_BRANCHES = 10_000
"""Items of one `map`, each of which is a recorded step."""

S = TypeVar("S")


class Results(list[S]):
    """The results of the `map` of a `def` task: a list, which `async def` code awaits.

    In a run they are a plain list in a `def` flow, and a coroutine in an `async def` one.
    """

    def __await__(self) -> Generator[Any, None, list[S]]:
        """Return the list, outside a run."""
        return self._listed().__await__()

    async def _listed(self) -> list[S]:
        return list(self)


async def map_items(
    task: Task[Any], branches: Branches | None, items: list[Any], limit: int
) -> list[Any]:
    """Run the task once per item, at most `limit` at a time; results in the items' order.

    The first error ends the others and is raised.
    """
    if branches is not None:
        branches.raise_again()
    results: list[Any] = [None] * len(items)
    waiting: list[Scope] = []
    left = iter(enumerate(items))

    async def work() -> None:
        for index, item in left:
            if branches is None:
                value = task.function(item)
                results[index] = await value if asyncio.iscoroutine(value) else value
                continue
            scope = branches.enter(index)
            try:
                results[index] = await run(StepCall(task, scope, scope.path[:-1], (item,), {}))
            except Suspend:  # it waits for its next try; the others continue
                waiting.append(scope)

    try:
        async with asyncio.TaskGroup() as workers:
            working = [workers.create_task(work()) for _ in range(min(limit, len(items)))]
            if branches is not None:
                branches.split(working)
    except BaseExceptionGroup as failed:
        errors = failed.exceptions
    else:
        suspend_with(waiting)
        return results
    if branches is None:
        raise errors[0]
    raise branches.failed(errors, task=task.name, left=(index for index, _ in left))


def place_map(task: Task[Any], items: Iterable[Any], limit: int) -> tuple[Branches | None, Any]:
    """Assign the key of a `map` when it is called; returns (its branches, the items)."""
    listed = list(items)
    if limit < 1 or len(listed) > MAX_BRANCHES:
        raise ValueError(
            f"{task.name}.map: limit is 1 or more and items at most {MAX_BRANCHES:,}, "
            f"got limit={limit} and {len(listed):,} items; map over chunks of them"
        )
    scope = here(task.name)
    if scope is None:
        return None, listed
    branches = Branches(scope, f"{task.name}.map")
    return branches, listed

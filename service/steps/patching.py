"""`patched("name")`: new runs take the new code, runs that are past this line take the old.

True is recorded before the next step, so a run always gets the same answer. Not here: changes
without `patched` (`code_change`).
"""

from __future__ import annotations

from turnout.service.domain.errors import MisplacedTask

from .code_change import PATCHED
from .context import current
from .durable_marks import mark_record
from .scope import here


def patched(name: str) -> bool:
    """Return whether this run takes the new code at this line.

    False for a run that passed the line before the change, True for every other one; recorded, so a
    run keeps its answer. Remove it, with the old code, when no older run is left. Outside a run it
    is True.

    * `name`: the change's name, once in a flow

    Raises `MisplacedTask` in a task: it is for the flow itself.

    ```python
    from turnout import event, flow, patched, task


    @task
    async def invoice(order: str) -> str:
        return f"invoice-{order}"


    @flow(on=event("order.placed"))
    async def place(order: dict[str, str]) -> str:
        if patched("send-invoice"):
            return await invoice(order["id"])
        return "no invoice"
    ```
    """
    scope = here(PATCHED)
    if scope is None:
        if current().services is None:
            return True
        raise MisplacedTask("patched() is for the flow itself, not for its tasks")
    context = scope.context
    key = scope.next_key(f"{PATCHED}:{name}")
    if key in context.claimed.recorded:
        return True
    if context.sequence is not None and context.sequence.missed(scope.path) is not None:
        return False
    assert context.services is not None  # `here` gives a scope only where steps can be recorded
    context.leave_mark(mark_record(key, PATCHED, b"true", context.services.now()))
    return True

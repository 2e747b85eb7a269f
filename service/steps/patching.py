"""`patched("name")`: new code for new runs, the old for those that are past the place already.

True is a fact, recorded before the next step is, so that a run never changes its mind. Not here:
noticing changes nobody provided for (`changed`).
"""

from __future__ import annotations

from turnout.service.domain.errors import MisplacedTask

from .code_change import PATCHED
from .context import current, here
from .durable_marks import mark_record


def patched(name: str) -> bool:
    """Return whether this run takes the new way at this place.

    `if patched("send-invoice"): await invoice(order)`. False for a run that was past the place
    before the change was there, True for every other one. Take it out again, with the old way,
    when no older run is left. Outside a run it is True.
    """
    scope = here(PATCHED)
    if scope is None:
        if current().services is None:
            return True
        raise MisplacedTask("patched() is for the flow itself, not for its tasks")
    context = scope.context
    key = scope.next_key(f"{PATCHED}:{name}")
    if key in context.claim.recorded:
        return True
    if context.sequence is not None and context.sequence.missed(scope.path) is not None:
        return False
    assert context.services is not None  # `here` gives a scope only where steps can be recorded
    context.leave_mark(mark_record(key, PATCHED, b"true", context.services.now()))
    return True

"""The bound on a flow's queue: `max_queued=10_000`.

A delivery is refused as a whole while the queue of one of its flows is full, so that nothing of it
is stored and what its sender sends again is complete. A paused flow is not full: it keeps what
comes. Not here: counting the queue (the journal does it, where runs are stored).
"""

from __future__ import annotations

from turnout.service.domain.errors import SetupError

MOST = 1_000_000_000
"""The highest bound; `max_unfinished_runs` bounds all flows together."""


def checked_max_queued(max_queued: object) -> int | None:
    """Return the bound on a flow's queue; raises `SetupError` for what is no count."""
    if max_queued is None:
        return None
    if not isinstance(max_queued, int) or isinstance(max_queued, bool):
        raise SetupError(f"max_queued={max_queued!r}: write how many runs may wait, such as 10_000")
    if max_queued < 1:
        raise SetupError(
            f"max_queued={max_queued}: a flow that takes nothing is a paused trigger, "
            "`turnout pause`; write at least 1"
        )
    if max_queued > MOST:
        raise SetupError(
            f"max_queued={max_queued}: {MOST:,} are the most; leave it out for no bound"
        )
    return max_queued

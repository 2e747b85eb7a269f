"""The verb on the cached results of tasks."""

from __future__ import annotations

from .parts import Parts, handles
from .verbs import ClearCache


@handles(ClearCache)
async def clear_cache(parts: Parts, verb: ClearCache) -> int:
    """Clear the results of one task, or of all."""
    return await parts.journal.clear_cache(task=verb.task)

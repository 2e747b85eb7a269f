"""The verb on the cached results of tasks."""

from __future__ import annotations

from .parts import Parts, handles, plans
from .verbs import ClearCache


@handles(ClearCache)
async def clear_cache(parts: Parts, verb: ClearCache) -> int:
    """Clear the results of one task, or of all."""
    return await parts.journal.clear_cache(task=verb.task)


@plans(ClearCache)
async def plan_clear_cache(parts: Parts, verb: ClearCache) -> list[str]:
    """Count the results."""
    count = await parts.journal.count_cached(verb.task)
    of = "" if verb.task is None else f" of task {verb.task}"
    return [f"clear {count:,} cached result{'s' * (count != 1)}{of}"]

"""What a flow needs, inside an attempt: which errors are failures of it, and which spend nothing.

An attempt that asks to leave a dependency alone (`Retry(pause=…)`), and one that went alone to find
out whether it is back and failed by it, is not spent, and neither are tries of its steps. How often
a run has paused one is recorded with its steps, so that a restart does not forget it. Not here: the
breaker (`flowcontrol.dependency`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from turnout.service.domain.error_groups import asked_pause, is_final
from turnout.service.domain.flow import Need
from turnout.service.journal.records import PAUSED, StepRecord

MOST_PAUSES = 20
"""How often a run may pause a dependency without spending an attempt."""


def failed_dependencies(needs: Sequence[Need], error: BaseException) -> Sequence[str]:
    """Return the names of the dependencies that have failed, by an error that ends a try."""
    return [need.name for need in needs if need.is_failed_by(error)] if needs else ()


def pause_count(recorded: Mapping[str, StepRecord]) -> int:
    """Return how often a run has paused a dependency, by its recorded steps."""
    return sum(step.task == PAUSED for step in recorded.values())


def unspent_for(
    needs: Sequence[Need],
    recorded: Mapping[str, StepRecord],
    probes: Collection[str],
    error: BaseException,
) -> Need | None:
    """Return the dependency for which an attempt that ends by an error is not spent, if any.

    `probes` are the dependencies for which it went alone.
    """
    pause = asked_pause(error)
    if pause is not None:
        is_free = pause_count(recorded) < MOST_PAUSES
        return next((need for need in needs if need.name == pause and is_free), None)
    if not probes or is_final(error):
        return None
    return next((need for need in needs if need.name in probes and need.is_failed_by(error)), None)

"""What an attempt notes while it runs, for its end and for the run's next attempt.

The owner of the attempt makes it and sets `handed_back` and `cancelled`; the steps write the rest.
Not here: what the run was claimed with (`ClaimedRun`), which stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from turnout.service.domain.run import Run
from turnout.service.journal.records import ClaimedRun

if TYPE_CHECKING:
    from turnout.service.telemetry.traces import RunTrace


class AttemptState:
    """The notes of one attempt.

    `has_waits`: the run may have open waits. `changed` are the keys of the steps this attempt
    records, noted where an attempt may follow that keeps the others. `progress` is for the next
    attempt, which may not get it. `handed_back`: the attempt starts no more steps. `probes` are the
    dependencies for which the attempt goes alone, to find out whether they are back: if they are
    not, it is not spent. `trace` is there from the start if it is sampled, else from its
    first use; in a worker process `called_trace` is what the step there hands on. `cancelled` are
    the children that ended with the run.
    """

    __slots__ = (
        "called_trace", "cancelled", "changed", "handed_back", "has_waits", "probes", "progress",
        "trace",
    )  # fmt: skip

    def __init__(self, run: ClaimedRun) -> None:
        self.has_waits = run.has_waits
        self.changed: set[str] = set()
        self.progress: dict[str, Any] = dict(run.progress)
        self.handed_back = False
        self.cancelled: Sequence[Run] = ()
        self.probes: Collection[str] = ()
        self.trace: RunTrace | None = None
        self.called_trace: Mapping[str, str] | None = None

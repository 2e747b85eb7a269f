"""What a run needs to start that other runs hold until they end.

That is its ordering key, and slots of limits with `hold="run"`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from turnout.service.domain.run import Run
from turnout.service.journal.records import NewRun

from .queue import Queue


@dataclass(frozen=True, slots=True)
class Conflict:
    """What a run waits for, in words, the runs that hold it now, and how to do without.

    An ordering key must be left by every holder; of a limit that is full by one.
    """

    words: str
    holders: Collection[str]
    advice: str
    is_limit: bool = False


def conflicts(queue: Queue, run: NewRun | Run) -> list[Conflict]:
    """Return what a run of this queue needs and others hold until they end."""
    found: list[Conflict] = []
    if run.order_key is not None:
        found.append(
            Conflict(
                f"key {run.order_key!r}",
                tuple(queue.gates.order.holders(run.order_key)),
                "give the child another key (ordered_by), or make it a task",
            )
        )
    for gate in queue.gates.held:
        if isinstance(run, NewRun) and not gate.queues_new:
            continue  # the journal refuses the run, or ends the holders, where it is stored
        holders = tuple(gate.holders_for(run.keys))
        if len(holders) < gate.count:
            continue
        key = gate.key_of(run.keys)
        words = "every slot" if gate.count > 1 else "the slot"
        of = "" if key is None else f" for {key!r}"
        found.append(
            Conflict(
                f"{words} of {gate.words}{of}",
                holders,
                "give the child another key (per=), a limit of its own, or make it a task",
                is_limit=True,
            )
        )
    return found

"""The inside of a dispatcher, which has no public name: tests reach into it here only."""

from __future__ import annotations

from collections.abc import Iterable

from turnout.service.app.process import Process
from turnout.service.dispatch.queue import Memory, Queue
from turnout.service.dispatch.scheduling import Scheduler


def scheduler(process: Process) -> Scheduler:
    """Return what decides whose turn it is."""
    return process.dispatcher._scheduler


def queues(process: Process) -> Iterable[Queue]:
    """Return each queue once; a renamed flow's queue has two names."""
    return {id(queue): queue for queue in scheduler(process)._queues.values()}.values()


def memory(process: Process) -> Memory:
    """Return the memory that queued runs share."""
    return scheduler(process)._memory


def has_orphans(process: Process) -> bool:
    """Whether due runs of flows that are not served were looked at."""
    return bool(process.dispatcher._due.orphans)


def waits_for_previous_attempt(process: Process, run_id: str) -> bool:
    """Whether a run has an attempt that begins when the one before has ended."""
    return process.dispatcher._attempts._running[run_id].previous is not None

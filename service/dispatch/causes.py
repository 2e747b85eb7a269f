"""What keeps a run from starting: the cause it is counted under, and the words for people."""

from __future__ import annotations

from datetime import datetime

from turnout.service.domain.run import Run, RunState
from turnout.service.domain.waiting import Cause, Waiting
from turnout.service.flowcontrol.reasons import waiting_at
from turnout.service.journal.records import Queued

from .queue import Queue


def first_cause(run: Queued, queue: Queue) -> Cause:
    """Return what first kept a run from starting that has not started on insert."""
    ready_at = run.due_at if run.is_due and run.due_at is not None else run.queued_at
    if queue.was_paused_at(ready_at):
        return Cause.PAUSE
    return run.cause or queue.refused_by or Cause.TURN


def waits_for(run: Run, queue: Queue, now: datetime) -> Waiting:
    """Return what keeps a run from starting that could start now."""
    if queue.paused:
        return Waiting(Cause.PAUSE, f"for flow {queue.flow!r} to be resumed")
    asking = asks_as(run)  # not the row in memory: there may be thousands to look through
    refusal = queue.gates.refusal(asking, now)
    return Waiting(Cause.TURN, "for its turn") if refusal is None else waiting_at(refusal, asking)


def asks_as(run: Run) -> Queued:
    """Return a run as it asks, as far as the journal tells."""
    return Queued(
        seq=run.seq,
        arrival=run.arrival,
        id=run.id,
        flow=run.flow,
        order_key=run.order_key,
        keys=run.keys,
        due_at=run.due_at,
        isolated=run.crashes > 1,  # in a row, if it is isolated: that is not read of a run
        queued_at=run.queued_at,
        is_due=run.state is not RunState.QUEUED,
        resumes=run.state is RunState.WAITING,
    )

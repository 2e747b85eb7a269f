"""What comes next: the ticks of timers, and the runs that are due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from turnout.service.domain.run import RunState
from turnout.service.domain.trigger import parts_of
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import OpenApproval, Tick
from turnout.service.project import Project

from .documents import instant
from .waits import waits_of


async def next_ticks(
    project: Project, emitters: Mapping[str, TriggerEmitter], now: datetime
) -> list[Tick]:
    """Return the next tick of each timer that is not paused."""
    found = []
    for name, trigger in project.triggers.items():
        scheduled, emitter = parts_of(trigger).scheduled, emitters.get(name)
        if scheduled is None or emitter is None or emitter.status.paused:
            continue
        at = scheduled.next_at(now, await emitter.positions())
        if at is not None:
            flows = project.feeds.get(name, ())
            found.append(Tick(name, at, tuple(flow.name for flow in flows)))
    return found


async def upcoming(reads: Reads, ticks: Iterable[Tick], *, limit: int) -> list[dict[str, Any]]:
    """Return what fires or is due next, the first first.

    A run that waits for a person or an event until an instant comes with that instant.
    """
    runs = await reads.due_runs(limit)
    waits = await waits_of(reads, runs, None)
    rows: list[tuple[datetime, dict[str, Any]]] = [
        (
            tick.at,
            {"kind": "tick", "trigger": tick.trigger, "flows": list(tick.flows), "run": None,
             "state": None, "detail": None},
        )
        for tick in ticks
    ]  # fmt: skip
    for run in runs:
        assert run.due_at is not None  # they were read by it
        row = {"kind": _KINDS[run.state], "trigger": run.trigger, "flows": [run.flow],
               "run": run.id, "state": str(run.state),
               "detail": waits[run.id].detail if run.id in waits else None}  # fmt: skip
        rows.append((run.due_at, row))
    rows.sort(key=lambda row: row[0])
    return [{"at": instant(at), **row} for at, row in rows[:limit]]


_KINDS: Mapping[RunState, str] = {
    RunState.SCHEDULED: "start",
    RunState.RETRYING: "retry",
    RunState.WAITING: "wait",
}


def approval_of(approval: OpenApproval, link: str | None) -> dict[str, Any]:
    """Return an approval that nobody has answered yet; `link` is its page."""
    return {
        "run": approval.run_id,
        "flow": approval.flow,
        "step": approval.key,
        "approval": approval.note.get("approval"),
        "text": approval.note.get("text"),
        "fields": approval.note.get("fields"),
        "asked_at": instant(approval.asked_at),
        "until": approval.note.get("until"),
        "link": link,
    }

"""A run as it ran: its steps in order, what overlapped, in which branches, and its children."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.service.domain.run import Run
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import StepRecord

from .documents import instant, step_state
from .names import no_run

MOST_RUNS = 50
"""How many runs a graph shows: the run, and those that it has started, and so on."""

_PREDECESSORS = 4


async def graph_of(reads: Reads, name: str) -> dict[str, Any]:
    """Return the graph of a run and its children; raises `NotFound`.

    `after` of a step are the last steps that had ended when it began, of the same run: what
    neither comes after the other overlapped. `branch` is the path of `gather` or `map` around it.
    """
    run = await reads.run(name)
    if run is None:
        raise no_run(name)
    left = [MOST_RUNS - 1]
    return await _graph(reads, run, left)


async def _graph(reads: Reads, run: Run, left: list[int]) -> dict[str, Any]:
    records = sorted(await reads.steps(run.seq, at_most_bytes=0), key=lambda step: step.started_at)
    steps = []
    for record in records:
        child = None
        if record.origin is not None and record.tries and left[0] > 0:
            started = await reads.run(record.origin)
            if started is not None:
                left[0] -= 1
                child = await _graph(reads, started, left)
        steps.append(_step(run, record, records, child))
    return {
        "run": run.id,
        "flow": run.flow,
        "state": str(run.state),
        "started_at": instant(run.started_at),
        "finished_at": instant(run.finished_at),
        "steps": steps,
    }


def _step(
    run: Run, step: StepRecord, among: Sequence[StepRecord], child: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "key": step.key,
        "task": step.task,
        "branch": step.key.rpartition("/")[0] or None,
        "state": step_state(step),
        "runs_again": step.superseded and run.finished_at is None,
        "tries": step.tries,
        "started_at": instant(step.started_at),
        "finished_at": instant(step.finished_at),
        "after": _after(step, among),
        "origin": step.origin,
        "child": child,
    }


def _after(step: StepRecord, among: Sequence[StepRecord]) -> list[str]:
    """Return the keys of the steps after which a step began, and no other step came between."""
    ended = [
        each
        for each in among
        if each is not step and each.finished_at is not None
        and each.finished_at <= step.started_at
    ]  # fmt: skip
    if not ended:
        return []
    last_began = max(each.started_at for each in ended)
    direct = [each for each in ended if each.finished_at and each.finished_at > last_began]
    return [each.key for each in (direct or ended[-1:])[-_PREDECESSORS:]]

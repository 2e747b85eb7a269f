"""`current().history()`: the earlier runs of a flow, so that a run can learn from how they ended.

Read once at each call and recorded, so that a resumed run sees what it saw before. Like the state
of a flow it is read on the loop: a few rows of an index. Not here: the read (`journal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask
from turnout.service.domain.payload import read_json, write_json
from turnout.service.domain.run import RunError, RunState
from turnout.service.journal.records import HISTORY, EndedRun

from .author_code import where
from .durable_marks import mark_record
from .scope import here

if TYPE_CHECKING:
    from .context import RunContext

MOST_RUNS = 100
MOST_RESULT_BYTES = 64 * 1024
"""The most bytes of results that one call returns, of all runs together."""


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """An earlier run of the flow, as it ended.

    `result` is what it returned, as JSON gives it; None where it returned nothing or where it is
    `left_out`, since the results before it come to 64 KiB. `reason` is why it was skipped or
    cancelled.
    """

    id: str
    state: RunState
    result: Any
    left_out: bool
    error: RunError | None
    reason: str | None
    queued_at: datetime
    finished_at: datetime


def history(context: RunContext, limit: int) -> list[EarlierRun]:
    """Return the last ended runs of the flow, recorded at the first call."""
    given: object = limit
    if type(given) is not int or not 1 <= limit <= MOST_RUNS:
        raise ValueError(f"current().history({limit!r}): write a number from 1 to {MOST_RUNS}")
    scope = here("history")
    if scope is None:
        if context.services is not None:
            raise MisplacedTask(
                f"current().history(), called at {where()}, is for the flow itself: a recorded "
                "task is not run again; read it in the flow and pass it to the task"
            )
        return []
    key = scope.next_key("history")
    known = context.claimed.recorded.get(key)
    if known is None:
        seen = pools.on_loop(_find(context, limit)) if pools.in_thread() else _read(context, limit)
        data = write_json(seen)
        assert context.services is not None
        context.leave_mark(mark_record(key, HISTORY, data, context.services.now()))
    else:
        data = known.result or b"[]"
    return [_earlier(each) for each in orjson.loads(data)]


async def _find(context: RunContext, limit: int) -> list[dict[str, Any]]:
    return _read(context, limit)


def _read(context: RunContext, limit: int) -> list[dict[str, Any]]:
    """Return the runs as plain data, the results of the newest that fit together."""
    services = context.services
    assert services is not None
    left = MOST_RESULT_BYTES
    found = []
    for run in services.journal.history(context.claimed.flow, limit, at_most_bytes=left):
        left -= len(run.result or b"")
        found.append(_plain(run, left_out=run.left_out or left < 0))
    return found


def _plain(run: EndedRun, *, left_out: bool) -> dict[str, Any]:
    error = run.error
    return {
        "id": run.id,
        "state": run.state,
        "result": run.result.decode() if run.result and not left_out else None,
        "left_out": left_out,
        "error": None if error is None else [error.type, error.message, error.step],
        "reason": run.reason,
        "queued_at": run.queued_at.isoformat(),
        "finished_at": run.finished_at.isoformat(),
    }


def _earlier(row: dict[str, Any]) -> EarlierRun:
    error = row["error"]
    return EarlierRun(
        row["id"],
        RunState(row["state"]),
        None if row["result"] is None else read_json(row["result"].encode()),
        row["left_out"],
        None if error is None else RunError(*error),
        row["reason"],
        datetime.fromisoformat(row["queued_at"]),
        datetime.fromisoformat(row["finished_at"]),
    )

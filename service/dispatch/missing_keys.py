"""Keys of rules that were declared while runs waited: computed from the stored event.

A queued run, or one that is due, gets what it lacks before it asks to start. A key that raises
makes it a dead letter, as when an event arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from turnout.service.domain.errors import JournalFull, words_of
from turnout.service.domain.event import Event
from turnout.service.domain.run import FILTER_ERROR, Keys, Run, RunError
from turnout.service.flowcontrol.keys import keys_of
from turnout.service.governance import secrets
from turnout.service.journal.contract import Work
from turnout.service.journal.records import Queued
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger

from .attempts import until_writable

log = get_logger("turnout")

Failed = Callable[[AnyFlow, Sequence[Run]], None]
"""Called when a run of a flow has failed on disk, with it and the runs cancelled with it."""


async def add_missing_keys(
    journal: Work,
    flow: AnyFlow,
    runs: Sequence[Queued],
    now: Callable[[], datetime],
    failed: Failed,
) -> list[Queued]:
    """Give runs the keys they lack, on disk too; return those that have them now.

    Waits while the disk is full.
    """
    while True:
        try:
            return await _add(journal, flow, runs, now, failed)
        except JournalFull:
            await until_writable(journal)


async def _add(
    journal: Work,
    flow: AnyFlow,
    runs: Sequence[Queued],
    now: Callable[[], datetime],
    failed: Failed,
) -> list[Queued]:
    events = await journal.events_of_runs([run.seq for run in runs])
    found: dict[int, Keys] = {}
    for run in runs:
        event = events.get(run.seq)
        if event is None:  # it was handed back to its source meanwhile
            continue
        try:
            keys = keys_of(flow, event.own())
        except Exception as error:  # noqa: BLE001  the author's code
            ended = await _fail(journal, flow, run, event, error, now)
            if ended:
                failed(flow, ended)
        else:
            assert keys is not None  # the flow has keyed rules
            found[run.seq] = {**keys, **(run.keys or {})}
    if found:
        await journal.set_keys(found)
    complete = [run for run in runs if run.seq in found]
    for run in complete:
        run.keys = found[run.seq]
    return complete


async def _fail(
    journal: Work,
    flow: AnyFlow,
    run: Queued,
    event: Event,
    error: Exception,
    now: Callable[[], datetime],
) -> list[Run]:
    location = f"in per= or another key, {flow.file}:{flow.line}"
    message = secrets.mask(f"{words_of(error)} ({location})")
    ended = await journal.fail_queued(run.seq, RunError(FILTER_ERROR, message), now=now())
    if ended:
        log.error(
            "filter.failed",
            flow=run.flow,
            run=run.id,
            trigger=event.trigger,
            event=event.id,
            error=message,
        )
    return ended

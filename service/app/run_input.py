"""What `turnout run` runs a flow with: data, a file, an event, or an earlier run with its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from turnout.service.domain.errors import NotFound, Refused, SetupError
from turnout.service.domain.event import Event, file_url, mint_id
from turnout.service.domain.run import Outcome, Run, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.contract import Journal, Reads
from turnout.service.journal.records import STATE, Entry, NewRun, StepRecord
from turnout.service.operate.names import no_run
from turnout.service.steps.flow_state import as_first_read

SOURCE = "turnout:cli"
FILE_CREATED = "turnout.file.created"
"""The type of the events of files, as triggers of files make them."""


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """A run of another journal, with the steps that it need not run again."""

    run: Run
    steps: Sequence[StepRecord]


@dataclass(frozen=True, slots=True)
class RunInput:
    """The event to run a flow with; `earlier` is the run that it goes on from."""

    event: Event
    earlier: EarlierRun | None = None


def of_data(data: bytes) -> RunInput:
    """Return an event with `data`, which is JSON."""
    return RunInput(
        Event(
            id=mint_id(),
            source=SOURCE,
            type="turnout.cli.run",
            time=utc_now(),
            body=data,
            datacontenttype="application/json",
            trigger="cli",
            minted=True,
        )
    )


def of_file(path: Path) -> RunInput:
    """Return the event that a trigger of files would make of a file; raises `SetupError`."""
    absolute = path.absolute()
    try:
        found = absolute.stat()
    except OSError as error:
        raise SetupError(f"--file {path}: {error.strerror}") from None
    url = file_url(absolute)
    body = {
        "path": str(absolute),
        "name": absolute.name,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "inode": found.st_ino,
        "url": url,
    }
    event = replace(
        of_data(orjson.dumps(body)).event,
        source=file_url(absolute.parent),
        type=FILE_CREATED,
        subject=absolute.name,
        extensions={"fileurl": url},
    )
    return RunInput(event)


async def of_run(reads: Reads, name: str, flow: str) -> RunInput:
    """Return the event and the recorded steps of an earlier run; raises `NotFound`, `Refused`.

    Left out are steps that wait, the failed one that ended the run, and what would be undone.
    """
    run = await reads.run(name)
    if run is None:
        raise no_run(name)
    if run.flow != flow:
        raise Refused(f"run {run.id} is one of flow {run.flow!r}, not of {flow!r}")
    stored = await reads.event_of(run.seq)
    if stored is None:
        raise NotFound(f"the event of run {run.id} has been deleted")
    ends_run = None if run.error is None else run.error.step
    steps = []
    for step in await reads.steps(run.seq):
        is_over = step.state == "succeeded" or (step.state == "failed" and step.key != ends_run)
        if not is_over or step.superseded or step.key.startswith("~"):
            continue
        if step.task == STATE:
            step = as_first_read(step)
        if step.blob is not None:
            step = replace(step, result=await reads.read_blob(step.blob), blob=None)
        steps.append(step)
    return RunInput(stored.event, EarlierRun(run, steps))


async def put(journal: Journal, event: Event, earlier: EarlierRun) -> str:
    """Store a copy of an earlier run that goes on behind its recorded steps; returns its id."""
    old, now = earlier.run, utc_now()
    run = NewRun(
        id=old.id, flow=old.flow, state=RunState.QUEUED, order_key=old.order_key, keys=old.keys,
        replay=old.replay, code_version=old.code_version,
    )  # fmt: skip
    await journal.append([Entry(event=event, runs=[run])], now=now)
    [claimed] = await journal.claim([run.seq], now=now)
    for step in earlier.steps:
        await journal.record_step(claimed.claim, step)
    handed_back = Outcome(state=RunState.QUEUED, counts=False)
    await journal.record(claimed, handed_back, started_at=now, now=now)
    return run.id

"""Verbs on runs: cancel, retry, and the answer to an approval."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import orjson

from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.journal.records import Filter, StepRecord
from turnout.service.steps.approval import find_fields, read_fields

from .filters import all_runs
from .names import no_run
from .parts import Parts, handles, whole_id
from .verbs import Answer, Cancel, CancelAll, Retry, RetryAll


@handles(Cancel)
async def cancel(parts: Parts, verb: Cancel) -> Run:
    """Cancel the run and the children it waits for; only the owner can stop one that runs."""
    run_id = await whole_id(parts, verb.run_id)
    runs = await parts.journal.cancel(run_id, now=parts.now(), reason=verb.reason, by=verb.by)
    for run in runs:
        parts.owner.cancel(run)
    return runs[0]


@handles(Retry)
async def retry(parts: Parts, verb: Retry) -> Run:
    """Queue the run again, under the current name of its flow."""
    before = await parts.journal.run(verb.run_id)
    if before is None:
        raise no_run(verb.run_id)
    flows = [parts.current_name(before.flow)]
    with parts.owner.changing(flows):
        retried = await parts.journal.retry(
            before.id,
            verb.from_step,
            mode=parts.mode_of(*flows),
            flow=flows[0],
            force=verb.force,
            now=parts.now(),
        )
        run = retried.run
        parts.owner.ended_for(retried)
        name = parts.current_name(run.flow)
        if name != run.flow and run.state is RunState.QUEUED:
            await parts.journal.rename_flow(run.flow, name)
    if run.state in (RunState.RETRYING, RunState.WAITING):
        parts.owner.recheck_due()
    return run


@handles(CancelAll)
async def cancel_all(parts: Parts, verb: CancelAll) -> list[Run]:
    """Cancel one run after the other."""
    done = []
    for run in await _matching(parts, verb.which):
        if run.state not in FINISHED:
            with suppress(Refused, NotFound):  # its state changed meanwhile
                done.append(await cancel(parts, Cancel(run.id, verb.reason, verb.by)))
    return done


@handles(RetryAll)
async def retry_all(parts: Parts, verb: RetryAll) -> list[Run]:
    """Retry one run after the other."""
    done = []
    for run in await _matching(parts, verb.which):
        if run.state in (RunState.FAILED, RunState.CANCELLED):
            with suppress(Refused, NotFound):
                done.append(await retry(parts, Retry(run.id)))
    return done


async def _matching(parts: Parts, which: Filter) -> list[Run]:
    """Return every matching run, read before the first of them is acted on."""
    return [run async for run in all_runs(parts.journal, which)]


@handles(Answer)
async def answer(parts: Parts, verb: Answer) -> Run:
    """Store the answer; the run resumes with it."""
    run = await parts.journal.run(verb.run_id)
    if run is None:
        raise no_run(verb.run_id)
    if verb.approved:
        await _check_fields(parts, run, verb.step, verb.fields)
    via = verb.via if verb.link is None else f"link {verb.link.digest.hex()[:8]}"
    given = {
        "approved": verb.approved, "fields": verb.fields, "reason": verb.reason, "by": verb.by,
        "via": via,
    }  # fmt: skip
    # Not orjson: it refuses integers past 64 bits.
    text = json.dumps(given).encode()
    await parts.journal.answer(run.id, verb.step, text, link=verb.link, now=parts.now())
    parts.owner.recheck_due()
    return run


async def _check_fields(parts: Parts, run: Run, step: str | None, fields: Any) -> None:
    waits = [wait.key for wait in await parts.journal.waits(run.seq, step)]
    for record in await parts.journal.steps(run.seq):
        if record.key in waits and record.task == "approval" and record.state == "waiting":
            declared = orjson.loads(record.result or b"{}").get("fields")
            read_fields(find_fields(declared), fields)


def _is_shared(step: StepRecord) -> bool:
    """Whether a step waits for a run that is the work of somebody else."""
    return bool(orjson.loads(step.result or b"{}").get("shared"))


async def cancel_children(parts: Parts, run_seq: int, run_id: str) -> None:
    """Cancel the children that a finished run was waiting for."""
    for step in await parts.journal.steps(run_seq):
        if step.state == "waiting" and step.origin and not _is_shared(step):
            with suppress(Refused, NotFound):
                await cancel(parts, Cancel(step.origin, f"run {run_id}, its parent, has ended"))

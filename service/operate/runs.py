"""Verbs on runs: cancel, retry, and the answer to an approval."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import orjson

from turnout.service.domain.errors import NotFound, Refused
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.journal.records import APPROVAL, Filter
from turnout.service.steps.approval import find_fields, read_fields

from .filters import all_runs
from .names import no_run
from .parts import Parts, handles, plans, whole_id
from .replays import to_queue_again
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
    before = await _run(parts, verb.run_id)
    flows = [parts.current_name(before.flow)]
    with parts.owner.changing(flows):
        retried = await parts.journal.retry(
            before.id,
            verb.from_step,
            mode=parts.mode_of(*flows),
            flow=flows[0],
            force=verb.force,
            blocks=parts.may_block(flows[0]),
            now=parts.now(),
        )
        run = retried.run
        parts.owner.ended_for(retried)
        name = parts.current_name(run.flow)
        if name != run.flow and run.state is RunState.QUEUED:
            await parts.journal.rename_flows({run.flow: name})
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
    for run in to_queue_again(await _matching(parts, verb.which)):
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
    run = await _run(parts, verb.run_id)
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


async def _run(parts: Parts, name: str) -> Run:
    """Return a run by its id or a short form; raises `NotFound`."""
    run = await parts.journal.run(name)
    if run is None:
        raise no_run(name)
    return run


# ---------------------------------------------------------------- what would be done


@plans(Cancel)
async def plan_cancel(parts: Parts, verb: Cancel) -> list[str]:
    """Say which run it is; what ends meanwhile is refused then."""
    run = await _run(parts, verb.run_id)
    if run.state in FINISHED:
        raise Refused(f"run {run.id} already {run.state}; only an unfinished run can be cancelled")
    return [f"cancel run {run.id} of flow {run.flow}, which is {run.state}"]


@plans(Retry)
async def plan_retry(parts: Parts, verb: Retry) -> list[str]:
    """Say where the run would go on."""
    run = await _run(parts, verb.run_id)
    if run.state in (RunState.RETRYING, RunState.WAITING):
        return [f"try run {run.id} of flow {run.flow} now"]
    if run.state not in FINISHED:
        raise Refused(f"run {run.id} is {run.state}; only a finished run can be retried")
    if run.undo == "failed":
        return [f"finish the undo of run {run.id} of flow {run.flow}"]
    steps = await parts.journal.steps(run.seq)
    if verb.from_step is not None and not any(
        verb.from_step in (step.key, step.task) or step.key.startswith(f"{verb.from_step}[")
        for step in steps
    ):
        raise NotFound(f"run {run.id} has no recorded step {verb.from_step!r}")
    from_step = "" if verb.from_step is None else f", from step {verb.from_step} on"
    return [f"queue run {run.id} of flow {run.flow} again{from_step}"]


@plans(CancelAll)
async def plan_cancel_all(parts: Parts, verb: CancelAll) -> list[str]:
    """Count the runs."""
    runs = [run for run in await _matching(parts, verb.which) if run.state not in FINISHED]
    return [f"cancel {len(runs):,} run{'s' * (len(runs) != 1)}"]


@plans(RetryAll)
async def plan_retry_all(parts: Parts, verb: RetryAll) -> list[str]:
    """Count the runs."""
    states = (RunState.FAILED, RunState.CANCELLED)
    runs = [run for run in await _matching(parts, verb.which) if run.state in states]
    return [f"queue {len(runs):,} run{'s' * (len(runs) != 1)} again"]


@plans(Answer)
async def plan_answer(parts: Parts, verb: Answer) -> list[str]:
    """Say which approval would be answered; checks the fields."""
    run = await _run(parts, verb.run_id)
    waits = await parts.journal.waits(run.seq, verb.step)
    asked = [wait for wait in waits if wait.topic.startswith(APPROVAL)]
    unanswered = [wait.key for wait in asked if wait.answer is None]
    if not unanswered:
        what = "was answered already" if asked else "waits for no approval"
        raise Refused(f"run {run.id} {what}" + (f" at step {verb.step!r}" if verb.step else ""))
    if len(unanswered) > 1:
        raise Refused(f"run {run.id} waits for several approvals: {', '.join(unanswered)}")
    if verb.approved:
        await _check_fields(parts, run, verb.step, verb.fields)
    word = "approve" if verb.approved else "reject"
    return [f"{word} run {run.id} of flow {run.flow} at step {unanswered[0]}"]

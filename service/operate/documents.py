"""JSON documents for operators: the same from `turnout … --json` and from the HTTP API.

They are built here, from `Run.as_dict()` where they show a run. Documents are
bounded: lists omit large results (`result_bytes` is their size), and a run omits results of its
steps past a total (`left_out`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from turnout.service.domain.artefact import MAX_LISTED
from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import Event
from turnout.service.domain.payload import read_json
from turnout.service.domain.run import Run, RunError
from turnout.service.domain.trigger import Receipt, SeekPlan, Trigger
from turnout.service.domain.units import format_duration
from turnout.service.domain.waiting import Waiting
from turnout.service.flowcontrol.limit import Limit
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import (
    CUT_OFF,
    EVERYTHING,
    NOTHING,
    POLL,
    SKIPPED,
    ApprovalAnswer,
    AttemptRecord,
    FlowAbout,
    StepRecord,
    StoredArtefact,
    StoredEvent,
    StoredOverride,
    StoredPause,
    WindowMember,
)
from turnout.service.project import AnyFlow

from .names import no_run
from .verbs import Resumed
from .waits import WaitsFor, waits_of

MEMBERS_SHOWN = 100
"""How many members a window is shown with: its first ones."""

SHOWN_STEPS_BYTES = 4 * 2**20
"""The most bytes of step results that a run's document shows in total."""


def instant(value: datetime | None) -> str | None:
    """Format an instant as RFC 3339 in UTC."""
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def event_of(stored: StoredEvent, *, payload: bool = False) -> dict[str, Any]:
    """Return an event with its runs and decisions; with `payload` also its data.

    The payload is `data` if it decodes, else `data_base64`, as in CloudEvents.
    """
    event = stored.event
    document: dict[str, Any] = {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": instant(event.time),
        "datacontenttype": event.datacontenttype,
        "trigger": event.trigger,
        "tenant": event.tenant,
        "accepted_at": instant(stored.accepted_at),
        "runs": list(stored.runs),
    }
    if payload:
        document["decisions"] = [dict(decision) for decision in stored.decisions]
        document["extensions"] = dict(event.extensions)
        document["params"] = dict(event.params)
        document["query"] = dict(event.query)
        document["headers"] = dict(event.headers)
        document |= _payload(event)
    return document


def _payload(event: Event) -> dict[str, Any]:
    if not event.has_body:
        return {}
    try:
        data = event.data
    except InvalidData:
        data = event.body
    if isinstance(data, bytes):
        return {"data_base64": base64.b64encode(data).decode("ascii")}
    return {"data": data}


def listed_run(run: Run, waits: Mapping[str, Waiting]) -> dict[str, Any]:
    """Return a run as lists show it: what the journal says, and what it waits for, as text."""
    waiting = waits.get(run.id)
    return run.as_dict() | {"waits_for": None if waiting is None else waiting.detail}


async def post_mortem(
    reader: Reads, run_id: str, waits_for: WaitsFor | None = None
) -> dict[str, Any]:
    """Return everything the journal stores about a run; raises `NotFound`.

    `waits_for` says what it waits for, as text, and `waiting` the same with a cause and facts.
    """
    run = await reader.run(run_id)
    if run is None:
        raise no_run(run_id)
    event = await reader.event_of(run.seq)
    waits = await waits_of(reader, [run], waits_for)
    about = (await reader.flows_about()).get(run.flow)
    return listed_run(run, waits) | {
        **about_of(about),
        "error": _error(run.error),
        "due_at": instant(run.due_at),
        "waiting": waiting_of(waits[run.id]) if run.id in waits else None,
        "crashes": run.crashes,
        "replay": run.replay,
        "dead": run.dead,
        "reason": run.reason,
        "forced": run.forced,
        "order_key": run.order_key,
        "limit_key": None if run.keys is None else run.keys.get("limit"),
        "keys": None if run.keys is None else dict(run.keys),
        "code_version": run.code_version,
        "event": None if event is None else event_of(event, payload=True),
        "members": await _members(reader, run),
        "steps": [
            _step(step) for step in await reader.steps(run.seq, at_most_bytes=SHOWN_STEPS_BYTES)
        ],
        "artefacts": [artefact_of(each) for each in await reader.artefacts(run.seq, MAX_LISTED)],
        "answers": [_answer(answer) for answer in await reader.answers(run.seq)],
        "history": [_attempt(attempt) for attempt in await reader.attempts(run.seq)],
    }


async def _members(reader: Reads, run: Run) -> list[dict[str, Any]]:
    """Return the first members of the window of a run; none of a run of one event."""
    window = None if run.window_seq is None else await reader.window_of_run(run.seq)
    if window is None:
        return []
    members = await reader.window_members(window.seq, limit=MEMBERS_SHOWN)
    return [member_of(each, window.settings.parts) for each in members]


def member_of(member: WindowMember, parts: Sequence[str]) -> dict[str, Any]:
    """Return a member of a window; `part` is its trigger, of a pattern over several."""
    return {
        "position": member.position,
        "event_id": member.event_id,
        "event_source": member.event_source,
        "trigger": member.trigger,
        "part": parts[member.part] if member.part < len(parts) else None,
        "at": instant(member.at),
    }


def waiting_of(waiting: Waiting) -> dict[str, Any]:
    """Return what a run waits for."""
    facts = {
        name: instant(value) if isinstance(value, datetime) else value
        for name, value in waiting.facts.items()
    }
    return {"cause": waiting.cause, "detail": waiting.detail, "facts": facts}


def _error(error: RunError | None) -> dict[str, str | None] | None:
    return None if error is None else {**error.as_dict(), "traceback": error.traceback}


def _step(step: StepRecord) -> dict[str, Any]:
    seconds = None
    if step.finished_at is not None:
        seconds = (step.finished_at - step.started_at).total_seconds()
    return {
        "key": step.key,
        "task": step.task,
        "state": step_state(step),
        "tries": step.tries,
        "started_at": instant(step.started_at),
        "finished_at": instant(step.finished_at),
        "seconds": seconds,
        "encoding": step.encoding,
        "result": _shown(step),
        "left_out": step.state == "succeeded" and step.result is None and step.blob is None,
        "error": _error(step.error),
        "superseded": step.superseded,
        "fallback": step.state == "succeeded" and step.error is not None,
        "origin": step.origin,
        "cached": step.origin is not None and step.tries == 0,
        "file": None if step.blob is None else f"results/{step.blob[:2]}/{step.blob}",
    }


def _shown(step: StepRecord) -> Any:
    """Return the result of a step as JSON; of a poll without the call, which is a pickle."""
    if not step.result or step.encoding != "json":
        return None
    shown = _json(step.result)
    if step.task == POLL and step.state in ("waiting", "dropped") and isinstance(shown, dict):
        shown.pop("call", None)
    return shown


def step_state(step: StepRecord) -> str:
    """Return the state of a step: `skipped` if another branch failed before it was done."""
    is_left_out = step.superseded and step.error is not None and step.error.type in _LEFT_OUT
    return "skipped" if is_left_out else step.state


_LEFT_OUT = frozenset({SKIPPED, CUT_OFF})


def artefact_of(artefact: StoredArtefact) -> dict[str, Any]:
    """Return an artefact of a run: its name, type and size, and the step that attached it."""
    return {
        "name": artefact.name,
        "type": artefact.type,
        "bytes": artefact.size,
        "step": artefact.key,
        "at": instant(artefact.at),
    }


def _answer(answer: ApprovalAnswer) -> dict[str, Any]:
    """Return who answered an approval: as what was typed, and through which link or token."""
    return {
        "step": answer.key,
        "at": instant(answer.at),
        "approved": answer.approved,
        "by": answer.by,
        "via": answer.via,
    }


def _attempt(attempt: AttemptRecord) -> dict[str, Any]:
    lines = [] if attempt.log is None else attempt.log.splitlines()
    return {
        "attempt": attempt.attempt,
        "state": str(attempt.state),
        "started_at": instant(attempt.started_at),
        "finished_at": instant(attempt.finished_at),
        "error": _error(attempt.error),
        "log": [_json(line) for line in lines if line.strip()],
    }


def _json(raw: bytes) -> Any:
    """Decode JSON that turnout wrote; a row broken by hand is shown as text."""
    try:
        return read_json(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")


def pause_of(pause: StoredPause) -> dict[str, Any]:
    """Return a pause: since when, until when (None: until it is resumed), who, and why."""
    return {
        "name": pause.name,
        "paused_at": instant(pause.since),
        "until": instant(pause.until),
        "note": pause.note,
        "by": pause.by,
    }


def override_of(override: StoredOverride) -> dict[str, Any]:
    """Return a limit that an operator has set: how many until when, who, and why."""
    return {
        "name": override.name,
        "count": override.count,
        "since": instant(override.since),
        "until": instant(override.until),
        "note": override.note,
        "by": override.by,
    }


def resumed_of(resumed: Resumed) -> dict[str, Any]:
    """Return what was resumed, what waited behind it, and which pauses are still in force."""
    return {
        "name": resumed.name,
        "paused": False,
        "was_paused": resumed.was_paused,
        "waiting": resumed.waiting,
        "oldest": instant(resumed.oldest),
        "discarded": resumed.discarded,
        "still": [pause_of(pause) for pause in resumed.still],
    }


def flow_of(flow: AnyFlow, *, pauses: Mapping[str, StoredPause] = NOTHING) -> dict[str, Any]:
    """Return what a flow declares, and the pause for which it starts no run, if there is one."""
    pause = pauses.get(f"flow:{flow.name}") or pauses.get(EVERYTHING)
    limits = [rule for rule in flow.concurrency if isinstance(rule, Limit)]
    return {
        "name": flow.name,
        "file": flow.file,
        "line": flow.line,
        "triggers": [trigger.name for trigger in flow.triggers],
        "filtered": flow.when is not None,
        "concurrency": limits[0].count if limits else None,
        "per_key": bool(limits) and limits[0].per is not None,
        "ordered": flow.ordered_by is not None,
        "retries": flow.retry.count,
        "timeout": _duration(flow.timeout),
        "shadow": flow.shadow,
        "told": [channel.name for channel in flow.alerts],
        "expect_every": _duration(flow.expect_every),
        "deadline": None if flow.deadline is None else flow.deadline.words,
        "finish_within": _duration(flow.finish_within),
        **about_of(FlowAbout(flow.owner, flow.tags, flow.description)),
        "pool": "loop" if flow.is_async else flow.pool,
        "code_version": flow.code_version,
        "paused_at": None if pause is None else instant(pause.since),
        "pause": None if pause is None else pause_of(pause),
    }


def about_of(about: FlowAbout | None) -> dict[str, Any]:
    """Return what a flow says of itself."""
    known = about or FlowAbout()
    return {
        "owner": known.owner,
        "tags": list(known.tags),
        "description": known.description,
    }


def _duration(length: timedelta | None) -> str | None:
    return None if length is None else format_duration(length)


def trigger_of(
    trigger: Trigger,
    *,
    flows: Sequence[AnyFlow],
    problem: str | None,
    lag: Mapping[str, float],
    figures: Mapping[str, float],
    last_error: str | None,
    pause: StoredPause | None,
    address: str | None = None,
    next_at: datetime | None = None,
    last_at: datetime | None = None,
    rejected: Mapping[str, int] = NOTHING,
) -> dict[str, Any]:
    """Return a trigger, the flows it starts, and why it is down, if it is.

    `rejected` counts the input that became no event, since the service was started; `refused` is
    how much of it was not accepted.
    """
    return {
        "name": trigger.name,
        "kind": trigger.kind,
        "flows": [flow.name for flow in flows],
        "up": problem is None and pause is None,
        "problem": problem,
        "last_error": last_error,
        "lag": dict(lag),
        "figures": dict(figures),
        "paused_at": None if pause is None else instant(pause.since),
        "pause": None if pause is None else pause_of(pause),
        "address": address,
        "next_at": instant(next_at),
        "last_event_at": instant(last_at),
        "refused": sum(count for result, count in rejected.items() if result in _REFUSALS),
        "rejected": dict(rejected),
    }


_REFUSALS = frozenset(
    {"unverified", "unsupported", "undecodable", "too_large", "refused", "invalid", "unreadable"}
)
"""The results that say that input was not accepted."""


def receipt_of(receipt: Receipt) -> dict[str, Any]:
    """Return what became of an emitted event; `windows` and `refusals` only if there are any."""
    document: dict[str, Any] = {
        "event": receipt.event,
        "runs": list(receipt.runs),
        "duplicate": receipt.duplicate,
    }
    if receipt.windows:
        document["windows"] = dict(receipt.windows)
    refusals: Mapping[str, str] = receipt.refusals
    return document | ({"refusals": dict(refusals)} if refusals else {})


def seek_of(trigger: str, plan: SeekPlan, *, dry_run: bool) -> dict[str, Any]:
    """Return what a seek did, or would do."""
    return {"trigger": trigger, "dry_run": dry_run, "done": list(plan.sentences)}


def plan_of(sentences: Sequence[str]) -> dict[str, Any]:
    """Return what a verb would do, when it is only asked."""
    return {"dry_run": True, "done": list(sentences)}


def encode(document: Any) -> bytes:
    """Encode a document as one line of JSON; integers past 64 bits stay exact."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return json.dumps(document, separators=(",", ":")).encode("ascii")

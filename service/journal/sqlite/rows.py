"""Converts values to columns and back: what is written is read back equal.

Pure functions. Instants are stored as integer microseconds UTC, so they come back equal, in UTC.
JSON columns leave out defaults.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson

from turnout.service.domain.duplicates import digest
from turnout.service.domain.event import NO_BODY, Event
from turnout.service.domain.run import Run, RunError, RunState
from turnout.service.journal.records import (
    FAILED,
    REGISTERED,
    UNDO_STEPS,
    AttemptRecord,
    Decision,
    Queued,
    RecordedArguments,
    StepRecord,
    StoredEvent,
)

CRASHES_BEFORE_ISOLATION = 2
"""After this many consecutive crashes a run is resumed alone; see "Crash isolation"."""

UNFINISHED_STATES = "('scheduled', 'queued', 'running', 'retrying', 'waiting')"
"""The states of unfinished runs, for `IN`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOWEST = datetime.min.replace(tzinfo=UTC)
_HIGHEST = datetime.max.replace(tzinfo=UTC)
_HALF_KEY_BYTES = 10  # 80 bits: a sender cannot find another id with the same half

_EMPTY_BODY = "empty_body"
"""The detail of an event whose body is empty; without it an event of no bytes has no body."""

EVENT_COLUMNS = "e.seq, e.id, e.source, e.type, e.tenant, e.trigger, e.time, e.body, e.details"

LISTED_EVENT_COLUMNS = (
    "e.seq, e.id, e.source, e.type, e.tenant, e.trigger, e.time, NULL,"
    " CASE WHEN e.details IS NOT NULL THEN json_object('subject', e.details ->> 'subject',"
    " 'datacontenttype', e.details ->> 'datacontenttype') END"
)
"""An event in a list: without its body and headers, which could fill the memory."""

RUN_COLUMNS = (
    "r.seq, r.id, r.flow, r.state, r.attempts, r.crashes, e.id, e.source, e.trigger, e.tenant, "
    "r.queued_at, r.due_at, r.started_at, r.finished_at, r.result, r.error, r.reason, r.dead, "
    "r.replay, r.order_key, r.limit_key, r.code_version, r.cancelled_by, "
    # An unfinished run whose flow has failed is being undone if there is anything to undo.
    "CASE WHEN r.finished_at IS NOT NULL THEN r.undo"
    f" WHEN EXISTS (SELECT 1 FROM steps WHERE run_seq = r.seq AND key = '{FAILED}') AND EXISTS"
    f" (SELECT 1 FROM steps WHERE run_seq = r.seq AND task = '{REGISTERED}') THEN 'running' END, "
    "CASE WHEN r.undo = 'failed' THEN (SELECT json_group_array(key) FROM steps"
    f" WHERE run_seq = r.seq AND {UNDO_STEPS} AND state = 'failed') END, length(r.result)"
)
LISTED_RESULT_BYTES = 4096
"""A larger result is left out of lists: a page of results of a MiB each would fill the memory."""

LISTED_RUN_COLUMNS = RUN_COLUMNS.replace(
    "r.result,", f"CASE WHEN length(r.result) <= {LISTED_RESULT_BYTES} THEN r.result END,", 1
)
RUN_SOURCE = "runs AS r JOIN events AS e ON e.seq = r.event_seq"

STEP_COLUMNS = (
    "key, task, state, tries, started_at, finished_at, encoding, result, error, superseded, "
    "origin, spilled, aside, digest, called"
)


def micros(instant: datetime) -> int:
    """Return an aware instant as microseconds since 1970 UTC, exactly."""
    since = instant - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def instant(stored: int) -> datetime:
    """Read back what `micros` wrote.

    A sender may send the last hours of year 9999 in a zone behind UTC, or the first of year 1 in
    one ahead. `datetime` cannot hold these in UTC, so the nearest instant is returned.
    """
    try:
        return _EPOCH + timedelta(microseconds=stored)
    except OverflowError:
        return _HIGHEST if stored > 0 else _LOWEST


def micros_or_none(value: datetime | None) -> int | None:
    """Return `micros` of an instant that may be missing."""
    return None if value is None else micros(value)


def instant_or_none(stored: int | None) -> datetime | None:
    """Read back what `micros_or_none` wrote."""
    return None if stored is None else instant(stored)


def dump(value: Any) -> str:
    """Return a value as JSON text."""
    return orjson.dumps(value).decode()


def pack_details(event: Event) -> str | None:
    """Return the attributes without a column as JSON, None when all are defaults."""
    details: dict[str, Any] = {}
    for name in ("subject", "datacontenttype", "specversion"):
        if (text := getattr(event, name)) is not None:
            details[name] = text
    if event.encoding != "json":
        details["encoding"] = event.encoding
    for name in ("headers", "params", "query", "extensions"):
        if given := getattr(event, name):
            details[name] = dict(given)
    if event.hops:
        details["hops"] = event.hops
    if event.minted:
        details["minted"] = True
    if not event.body and event.has_body:
        details[_EMPTY_BODY] = True
    if event.exact is not None:
        details["exact"] = b64encode(event.exact).decode()
    return dump(details) if details else None


def event_from(row: Sequence[Any]) -> Event:
    """Return the event of a row of `EVENT_COLUMNS`."""
    _seq, event_id, source, kind, tenant, trigger, time, body, details = row
    others: dict[str, Any] = orjson.loads(details) if details else {}
    exact = others.pop("exact", None)
    is_empty = others.pop(_EMPTY_BODY, False)  # else no bytes mean no body, as in earlier versions
    return Event(
        id=event_id,
        source=source,
        type=kind,
        tenant=tenant,
        trigger=trigger,
        time=instant(time),
        body=body if body or is_empty else NO_BODY,
        exact=None if exact is None else b64decode(exact),
        **others,
    )


def identity(event: Event) -> tuple[bytes, bytes]:
    """Return the key that identifies a delivery, and the digest of its content.

    The key starts with the digest of the id; see `found_by_id`.
    """
    key = _digest(event.id, _HALF_KEY_BYTES) + _origin(event.tenant, event.trigger, event.source)
    return key, digest(event)


def found_by_id(event_id: str) -> tuple[str, list[Any]]:
    """Return the condition that finds the events with an id by index, and its values."""
    low = _digest(event_id, _HALF_KEY_BYTES)
    condition = (
        "e.id = ? AND e.seq IN (SELECT seq FROM events WHERE by_id = 1 AND id = ?"
        " UNION ALL SELECT event_seq FROM dedupe WHERE key BETWEEN ? AND ?)"
    )
    return condition, [event_id, event_id, low, low + b"\xff" * (_HALF_KEY_BYTES + 1)]


@lru_cache(maxsize=1024)
def _origin(tenant: str, trigger: str, source: str) -> bytes:
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    parts = (tenant, trigger, source)
    return _digest("".join(f"{len(part)}:{part}" for part in parts), _HALF_KEY_BYTES)


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def pack_decisions(decisions: Sequence[Decision], at: datetime) -> str | None:
    """Return decisions made at one time as a JSON array, None when there are none."""
    if not decisions:
        return None
    return dump(
        [
            {
                "flow": made.flow,
                "verdict": made.verdict,
                "detail": storable(made.detail),
                "at": _text(at),
            }
            for made in decisions
        ]
    )


def stored_event_from(
    row: Sequence[Any], accepted_at: int, runs: Sequence[str], occasions: Sequence[str | None]
) -> StoredEvent:
    """Return an event with its runs and all its decisions, oldest first."""
    return StoredEvent(
        seq=row[0],
        event=event_from(row),
        accepted_at=instant(accepted_at),
        runs=tuple(runs),
        decisions=[made for items in occasions if items for made in orjson.loads(items)],
    )


def pack_error(error: RunError | None) -> str | None:
    """Return an error with its traceback as JSON."""
    if error is None:
        return None
    fields = error.as_dict() | {"traceback": error.traceback}
    return dump({name: value and storable(value) for name, value in fields.items()})


def storable(text: str) -> str:
    """Return text that UTF-8 can encode: a message may quote a file name that it cannot.

    An outcome must be recorded whatever its message contains.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def error_from(stored: str | None) -> RunError | None:
    """Read back what `pack_error` wrote."""
    return None if stored is None else RunError(**orjson.loads(stored))


def failure_from(stored: str | None) -> str | None:
    """Return as text the (flow, state, error) of a run that failed or was cancelled."""
    if stored is None:
        return None
    flow, state, told = orjson.loads(stored)
    error = error_from(told)
    return f"{flow}: {state}" if error is None else f"{flow}: {error.type}: {error.message}"


def run_from(row: Sequence[Any]) -> Run:
    """Return the run of a row of `RUN_COLUMNS`."""
    return Run(
        seq=row[0],
        id=row[1],
        flow=row[2],
        state=RunState(row[3]),
        attempts=row[4],
        crashes=row[5],
        event_id=row[6],
        event_source=row[7],
        trigger=row[8],
        tenant=row[9],
        queued_at=instant(row[10]),
        due_at=instant_or_none(row[11]),
        started_at=instant_or_none(row[12]),
        finished_at=instant_or_none(row[13]),
        result=row[14],
        error=error_from(row[15]),
        reason=row[16],
        dead=bool(row[17]),
        replay=row[18],
        order_key=row[19],
        limit_key=row[20],
        code_version=row[21],
        cancelled_by=row[22],
        undo=row[23],
        undo_failed=tuple(orjson.loads(row[24])) if row[24] else (),
        result_bytes=row[25],
    )


def queued_from(row: Sequence[Any]) -> Queued:
    """Return the dispatcher's view of a run, from (seq, flow, keys, due, crashes in a row)."""
    return Queued(
        seq=row[0],
        flow=row[1],
        order_key=row[2],
        limit_key=row[3],
        due_at=instant_or_none(row[4]),
        isolated=is_isolated(row[5]),
    )


def is_isolated(consecutive_crashes: int) -> bool:
    """Whether a run is resumed alone."""
    return consecutive_crashes >= CRASHES_BEFORE_ISOLATION


def step_values(step: StepRecord) -> tuple[Any, ...]:
    """Return a step as a row of `STEP_COLUMNS`."""
    return (
        step.key,
        step.task,
        step.state,
        step.tries,
        micros(step.started_at),
        micros_or_none(step.finished_at),
        step.encoding,
        step.result,
        pack_error(step.error),
        int(step.superseded),
        step.origin,
        step.blob,
        int(step.in_error_handler),
        None if step.arguments is None else step.arguments.digest,
        None if step.arguments is None else storable(step.arguments.words),
    )


def step_from(row: Sequence[Any]) -> StepRecord:
    """Read back what `step_values` wrote."""
    return StepRecord(
        key=row[0],
        task=row[1],
        state=row[2],
        tries=row[3],
        started_at=instant(row[4]),
        finished_at=instant_or_none(row[5]),
        encoding=row[6],
        result=row[7],
        error=error_from(row[8]),
        superseded=bool(row[9]),
        origin=row[10],
        blob=row[11],
        in_error_handler=bool(row[12]),
        arguments=None if row[13] is None else RecordedArguments(row[13], row[14]),
    )


def attempt_from(row: Sequence[Any]) -> AttemptRecord:
    """Return the attempt of a row (attempt, started, finished, state, error, log)."""
    return AttemptRecord(
        attempt=row[0],
        started_at=instant(row[1]),
        finished_at=instant_or_none(row[2]),
        state=RunState(row[3]),
        error=error_from(row[4]),
        log=row[5],
    )


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")

"""Events: the job that appends them, the statements and the rows they are written with.

Attributes without a column are JSON in `details`, which leaves out defaults. Not here: which
events are stored (`append`).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson

from turnout.service.domain.decisions import Fact, Reason
from turnout.service.domain.errors import JournalError
from turnout.service.domain.event import NO_BODY, Event, like
from turnout.service.domain.event_columns import EventColumns, keyed
from turnout.service.domain.units import EPOCH, MICROSECOND
from turnout.service.journal.contract import Positions
from turnout.service.journal.records import Decision, Entry, NewMember, StoredEvent

from .bulk import insert
from .columns import selected
from .decisions import pack_decisions, unpack_decisions
from .dedupe import identity
from .values import dump, error_from, instant
from .writer import Job

_EMPTY_BODY = "empty_body"
"""The detail of an event whose body is empty; without it an event of no bytes has no body."""


# ---------------------------------------------------------------- writing


class EventRow(NamedTuple):
    """The columns of the table `events`, but for the seq it is given when it is written."""

    id: str
    source: str
    type: str
    tenant: str
    trigger: str
    time: int
    accepted_at: int
    body: bytes
    details: str | None
    decisions: str | None
    by_id: int | None
    unmatched: int | None
    after_run_action: int | None
    awaited: str | None


INSERT = insert("events", ("seq", *EventRow._fields))

_SHARED = ("type", "tenant", "trigger", "accepted_at", "by_id", "after_run_action")
_OWN = ("seq", "id", "source", "time", "body", "details")
INSERT_COLUMNS = insert("events", _OWN, shared=_SHARED)
"""Inserts the events of columns, and leaves out what they do not have."""

_KEY = "\0key\0"  # stands for a key while the details around it are packed


def event_row(entry: Entry, at: int) -> tuple[Any, ...]:
    """Return the row of an event, as routed: the values of an `EventRow`, in a quarter the time."""
    event = entry.event
    return (
        event.id,
        event.source,
        event.type,
        event.tenant,
        event.trigger,
        (event.time - EPOCH) // MICROSECOND,
        at,
        event.body,
        pack_details(event),
        pack_decisions(entry.decisions, at) if entry.decisions else None,
        1 if event.minted else None,
        None if entry.runs or entry.members else 1 if entry.awaited is None else 2,
        0 if entry.after_run_action else None,
        entry.awaited,
    )


class ColumnRows:
    """The rows of events that are columns; only their seqs are missing."""

    __slots__ = ("shared", "values")

    def __init__(self, entry: Entry, columns: EventColumns, at: int) -> None:
        _, _, kind, tenant, trigger, *_ = row = EventRow(*event_row(entry, at))
        self.shared = (kind, tenant, trigger, at, row.by_id, row.after_run_action)
        self.values: list[Any] = [None] * (len(_OWN) * len(columns))
        own: tuple[Sequence[Any], ...] = (
            columns.ids,
            [model.source for model in columns.models],
            columns.times,
            columns.bodies,
            _details_of(columns),
        )
        for place, column in enumerate(own, start=1):
            self.values[place :: len(_OWN)] = column

    def numbered(self, seqs: range) -> list[Any]:
        """Return the values of `INSERT_COLUMNS` with these seqs."""
        self.values[:: len(_OWN)] = seqs
        return self.values


def _details_of(columns: EventColumns) -> list[str | None]:
    """Return what `pack_details` says of each event, asked once for a model."""
    made: list[str | None] = []
    last: Event | None = None
    plain: str | None = None
    around: list[str] = []
    for model, key in zip(columns.models, columns.keys, strict=True):
        if model is not last:
            last, some = model, like(model, body=b"some")
            plain, around = pack_details(some), []
        if key is None:
            made.append(plain)
            continue
        if not around:
            around = str(pack_details(keyed(some, _KEY))).split(dump(_KEY))
        made.append(dump(key).join(around))
    return made


class AppendJob(Job):
    """Write entries and the moves of a trigger's positions.

    `events` are the rows of the entries' events (`ColumnRows` for columns), `identities` those of
    their deliveries, None for minted events. `expires_at` is when the deliveries' own dedupe window
    ends, if they have one. `is_decided`: conditions of runs are to be decided, at once or when a
    window fires, or runs to be cancelled. `caller` is the seq of the run that awaits the run of the
    entries.
    """

    __slots__ = (
        "at", "caller", "entries", "events", "expires_at", "identities", "is_decided", "positions",
        "rows", "trigger",
    )  # fmt: skip

    def __init__(
        self,
        entries: Sequence[Entry],
        now: datetime,
        trigger: str,
        positions: Positions,
        *,
        caller: int | None = None,
        dedupe: timedelta | None = None,
    ) -> None:
        """Put entries into rows; raises `JournalError` for what no row can hold."""
        self.error = None
        self.entries = entries
        self.at = at = (now - EPOCH) // MICROSECOND
        self.expires_at = None if dedupe is None else at + dedupe // MICROSECOND
        self.trigger = trigger
        self.positions = positions
        self.caller = caller
        self.is_decided = False
        self.rows = 2 * len(entries) + len(positions) + 1
        self.events: list[Any] = []
        self.identities: list[tuple[bytes, bytes] | None] = []
        try:
            for entry in entries:
                if entry.columns is None:
                    self.events.append(event_row(entry, at))
                else:
                    self.events.append(ColumnRows(entry, entry.columns, at))
                    self.rows += 2 * len(entry.columns)
                self.identities.append(None if entry.event.minted else identity(entry.event))
                for run in entry.runs:
                    if run.conditions is not None:
                        self.is_decided = True
                if entry.cancels or (entry.members and _is_decided(entry.members)):
                    self.is_decided = True
        except (TypeError, ValueError) as error:
            raise JournalError(f"this event cannot be stored: {error}") from error


def repeated_decision(event: Event, *, conflict: bool) -> Decision:
    """Return the decision about an event when another delivery, `event`, came under its id."""
    facts: dict[str, Fact] = {"type": event.type, "bytes": len(event.body)}
    if (record := event.extensions.get("kafkarecord")) is not None:
        facts["record"] = record
    if event.path is not None:
        facts["path"] = str(event.path)
    if conflict:
        detail = "the same id came again with other content"
        return Decision("", Reason.CONFLICT, detail, facts)
    return Decision("", Reason.DUPLICATE, "the same event was delivered again", facts)


def _is_decided(members: Sequence[NewMember]) -> bool:
    """Whether what windows fire is decided by conditions, or by who comes first."""
    for member in members:  # no generator: most events have one member
        if member.firing.conditions is not None or member.on_timeout is not None:
            return True
    return False


def pack_details(event: Event) -> str | None:
    """Return the attributes without a column as JSON, None when all are defaults."""
    details: dict[str, Any] = {}
    if event.subject is not None:
        details["subject"] = event.subject
    if event.datacontenttype is not None:
        details["datacontenttype"] = event.datacontenttype
    if event.specversion is not None:
        details["specversion"] = event.specversion
    if event.encoding != "json":
        details["encoding"] = event.encoding
    _pack_fields(event, details)
    if event.hops:
        details["hops"] = event.hops
    if event.minted:
        details["minted"] = True
    if not event.body and event.has_body:
        details[_EMPTY_BODY] = True
    if event.exact is not None:
        details["exact"] = b64encode(event.exact).decode()
    return orjson.dumps(details).decode() if details else None


def _pack_fields(event: Event, details: dict[str, Any]) -> None:
    """Add the fields of an event's transport; not in a loop, which costs twice as much."""
    if event.headers:
        details["headers"] = dict(event.headers)
    if event.params:
        details["params"] = dict(event.params)
    if event.query:
        details["query"] = dict(event.query)
    if event.extensions:
        details["extensions"] = dict(event.extensions)


# ---------------------------------------------------------------- reading


class ReadEvent(NamedTuple):
    """What is read of an event."""

    seq: int
    id: str
    source: str
    type: str
    tenant: str
    trigger: str
    time: int
    body: bytes | None
    details: str | None


EVENT_COLUMNS = selected(ReadEvent._fields, "e")

LISTED_EVENT_COLUMNS = selected(
    ReadEvent._fields,
    "e",
    body="NULL",
    details="CASE WHEN e.details IS NOT NULL THEN json_object('subject', e.details ->> 'subject',"
    " 'datacontenttype', e.details ->> 'datacontenttype') END",
)
"""An event in a list: without its body and headers, which could fill the memory."""


def event_from(values: Sequence[Any]) -> Event:
    """Return the event of a row, given as the values of `EVENT_COLUMNS`."""
    row = ReadEvent(*values)
    others: dict[str, Any] = orjson.loads(row.details) if row.details else {}
    exact = others.pop("exact", None)
    is_empty = others.pop(_EMPTY_BODY, False)  # else no bytes mean no body, as in earlier versions
    return Event(
        id=row.id,
        source=row.source,
        type=row.type,
        tenant=row.tenant,
        trigger=row.trigger,
        time=instant(row.time),
        body=row.body or (b"" if is_empty else NO_BODY),
        exact=None if exact is None else b64decode(exact),
        **others,
    )


def stored_event_from(
    values: Sequence[Any], accepted_at: int, runs: Sequence[str], occasions: Sequence[str | None]
) -> StoredEvent:
    """Return an event with its runs and all its decisions, oldest first."""
    row = ReadEvent(*values)
    return StoredEvent(
        seq=row.seq,
        event=event_from(row),
        accepted_at=instant(accepted_at),
        runs=tuple(runs),
        decisions=[made for items in occasions if items for made in unpack_decisions(items)],
    )


def failure_from(stored: str | None) -> str | None:
    """Return as text the (flow, state, error) of a run that failed or was cancelled."""
    if stored is None:
        return None
    flow, state, told = orjson.loads(stored)
    error = error_from(told)
    return f"{flow}: {state}" if error is None else f"{flow}: {error.type}: {error.message}"

"""Turns a Kafka record into an event: its identity, key, headers, CloudEvents, and what is wrong.

Every record becomes an event, even an unreadable one. That keeps its bytes as they came, and
extension `recorderror` has topic, partition, offset and the reason: every flow it feeds gets a dead
letter. Where there is a dead letter topic, extension `recordheaders` keeps headers that a plain
mapping would change. Pure functions. Not here: reading from Kafka.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import orjson

from turnout.service.domain import cloudevents
from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import MAX_HOPS, NEVER, NO_BODY, Event, like
from turnout.service.domain.event_columns import EventColumns, keyed
from turnout.service.domain.payload import decoder
from turnout.service.domain.units import EPOCH, MICROSECOND
from turnout.triggers.identity import EventId, identified

Data = Literal["json", "text", "bytes"]
Null = Literal["dead", "skip", "run"]

TYPE = "turnout.kafka.record"
"""The CloudEvents type of a record that is no CloudEvent itself."""

HOPS = "turnout-hops"
"""The header that carries how many events led to this one."""

_PROBLEM = "recorderror"
"""The extension in which is said why a record cannot be read."""

_CONTENT_TYPES: Mapping[Data, str] = {
    "json": "application/json",
    "text": "text/plain",
    "bytes": "application/octet-stream",
}
_URL = "data:;base64,"
_URL_BYTES = _URL.encode("ascii")
_LAST_MILLISECOND = 253_402_300_799_999  # the end of the year 9999


class Record(NamedTuple):
    """A record as it is in the log; `error` says why it could not be read."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDecoder:
    """Turns the records of one partition, in one epoch, into events."""

    trigger: str
    cluster: str
    topic: str
    partition: int
    epoch: int
    data: Data
    null: Null
    max_record: int
    keeps_headers: bool = False
    id: EventId | None = None
    _model: Event = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        model = Event(
            id=f"{self.cluster}/{self.topic}/{self.epoch}/{self.partition}/",
            source=f"kafka://{self.cluster}/{self.topic}",
            type=TYPE,
            time=NEVER,
            datacontenttype=_CONTENT_TYPES[self.data],
            encoding=self.data,
            extensions={"partition": f"{self.topic}/{self.partition}"},
            trigger=self.trigger,
            minted=True,  # positions let each offset pass once: no dedupe row is needed
        )
        object.__setattr__(self, "_model", model)

    def add_to(self, columns: EventColumns, records: Sequence[Any], now: datetime) -> bool:
        """Add the client's records to columns; False if one does not fit: then they are void.

        A record does not fit that cannot be read, nor one that `EventColumns` have no room for.
        """
        if self.id is not None or (records and isinstance(records[0], Record)):
            return False
        model, decode, most = self._model, decoder(self.data), self.max_record
        prefix, now_micros = model.id, (now - EPOCH) // MICROSECOND
        try:
            for record in records:
                value = record.value
                if value is None and self.null == "skip":
                    continue
                if value is None or not 0 < len(value) <= most:
                    return False
                if record.headers:
                    event = self.event(record, now)
                    if not _fits(event):
                        return False
                    columns.add(event)
                    continue
                columns.data.append(decode(value))
                stamp, key = record.timestamp, record.key
                columns.models.append(model)
                columns.ids.append(f"{prefix}{record.offset}")
                columns.times.append(
                    stamp * 1000 if 0 <= stamp <= _LAST_MILLISECOND else now_micros
                )
                columns.keys.append(None if key is None else text_of(key))
                columns.bodies.append(value)
        except InvalidData:
            return False
        return True

    def event(self, record: Any, now: datetime) -> Event:
        """Return the event of a record (`Record`, or the client's, which has no `error`).

        `now` replaces a missing timestamp.
        """
        # Hot path: one Event and no copy for a record that has nothing special.
        stamp, value = record.timestamp, record.value
        event = like(
            self._model,
            id=f"{self._model.id}{record.offset}",
            time=_instant(stamp) if 0 <= stamp <= _LAST_MILLISECOND else now,
            body=NO_BODY if value is None else value,
        )
        if record.key is not None:
            event = keyed(event, text_of(record.key))
        problem: str | None = getattr(record, "error", None)
        if problem is None:
            event, problem = self._apply_headers(event, record)
        if problem is None and event.body and event.encoding != "bytes":
            try:
                _ = event.data  # decoded once, here; the event keeps it
            except InvalidData as error:
                problem = str(error)
        if problem is not None:
            return self._unreadable(event, record.offset, problem)
        if self.id is None:
            return event
        # Under its sender's id; its record stays known by the offset.
        record_name = f"{self._model.id}{record.offset}"
        return _extended(identified(event, self.id), "kafkarecord", record_name)

    def _apply_headers(self, event: Event, record: Any) -> tuple[Event, str | None]:
        """Return the event with its headers applied, and what is wrong with it."""
        value = record.value
        if record.headers:
            event = like(event, headers=_headers(record.headers))
            if self.keeps_headers and _is_more(record.headers, event.headers):
                event = _extended(event, "recordheaders", packed_headers(record.headers))
        if value is None and self.null == "dead":
            return event, "its value is null"
        if len(event.body) > self.max_record:
            return event, f"it has {len(value)} bytes and max_record is {self.max_record}"
        if event.headers:
            try:
                event = _with_headers(event, event.headers)
            except InvalidData as error:
                return event, str(error)
        if self.data == "json" and value == b"":
            return event, "the body is empty where JSON was expected"
        return event, None

    def _unreadable(self, event: Event, offset: int, problem: str) -> Event:
        where = f"{self.topic} partition {self.partition} offset {offset}: {problem}"
        return _extended(event, _PROBLEM, where)


def _fits(event: Event) -> bool:
    """Whether the event of a record with headers is one that columns take."""
    is_plain = event.type == TYPE and bool(event.body) and event.hops <= MAX_HOPS
    return is_plain and _PROBLEM not in event.extensions


def text_of(raw: bytes) -> str:
    """Return bytes as text: as they are if they are UTF-8, else as a `data:` URL (RFC 2397).

    UTF-8 that looks like such a URL becomes one too, so that `bytes_of` can tell them apart.
    """
    if not raw.startswith(_URL_BYTES):
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return _URL + base64.b64encode(raw).decode("ascii")


def bytes_of(text: str) -> bytes:
    """Return the bytes that `text_of` was given; for any other text, its UTF-8."""
    if text.startswith(_URL):
        with suppress(ValueError):  # no base64: not made by `text_of`
            return base64.b64decode(text.removeprefix(_URL), validate=True)
    return text.encode("utf-8")


def _instant(milliseconds: int) -> datetime:
    return EPOCH + timedelta(milliseconds=milliseconds)


def _headers(listed: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    """Return headers by lower-case name; of several with one name the last counts, as in Kafka."""
    return {name.lower(): "" if value is None else text_of(value) for name, value in listed}


def _is_more(listed: Sequence[tuple[str, bytes | None]], headers: Mapping[str, str]) -> bool:
    """Whether the mapping loses something: a repeated name, a capital letter, a null."""
    return len(listed) > len(headers) or any(
        value is None or name not in headers for name, value in listed
    )


def packed_headers(listed: Sequence[tuple[str, bytes | None]]) -> str:
    """Write headers as they are: JSON of names and values, in order."""
    packed = [(name, None if value is None else text_of(value)) for name, value in listed]
    return orjson.dumps(packed).decode()


def headers_of(event: Event) -> list[tuple[str, bytes | None]]:
    """Return the headers of an event's record, as far as they were kept."""
    packed = event.extensions.get("recordheaders")
    texts = event.headers.items() if packed is None else orjson.loads(packed)
    return [(name, None if text is None else bytes_of(text)) for name, text in texts]


def _extended(event: Event, name: str, text: str) -> Event:
    return like(event, extensions={**event.extensions, name: text})


def _with_headers(event: Event, headers: Mapping[str, str]) -> Event:
    """Read hops and the CloudEvents attributes (Kafka binding 1.0.2) from headers."""
    hops = _hops(headers)
    if hops:
        event = like(event, hops=hops)
    try:
        cloud_event = _cloud_event(event, headers)
    except InvalidData as error:
        raise InvalidData(f"it is no sound CloudEvent: {error}") from None
    return event if cloud_event is None else _with_identity(event, cloud_event)


def _cloud_event(event: Event, headers: Mapping[str, str]) -> Event | None:
    """Return the CloudEvent in a record, None if it is none; its time defaults to the record's."""
    if is_structured(headers):
        return cloudevents.structured(event.body, now=event.time)
    if "ce_specversion" not in headers:
        return None
    attributes = {
        name.removeprefix("ce_"): text for name, text in headers.items() if name.startswith("ce_")
    }
    if "content-type" in headers:
        attributes["datacontenttype"] = headers["content-type"]
    return cloudevents.from_attributes(attributes, event.body, now=event.time)


def is_structured(headers: Mapping[str, str]) -> bool:
    """Whether a record's value is a whole CloudEvent with its attributes."""
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return content_type == cloudevents.STRUCTURED


def _hops(headers: Mapping[str, str]) -> int:
    text = headers.get(HOPS)
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise InvalidData(f"header {HOPS} is no count: {text[:40]!r}")
    return int(text)


def _with_identity(event: Event, cloud_event: Event) -> Event:
    """Return the CloudEvent with the identity of its record."""
    return replace(
        cloud_event,
        extensions={**cloud_event.extensions, **event.extensions, "kafkarecord": event.id},
        subject=cloud_event.subject if cloud_event.subject is not None else event.subject,
        headers=event.headers,
        trigger=event.trigger,
        hops=event.hops,
        minted=True,
    )

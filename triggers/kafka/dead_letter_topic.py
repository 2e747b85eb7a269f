"""The dead letter topic: the bytes of a record a flow failed on, with its offset and the reason.

Published once the journal holds the failure, as the after-run action of the event: at least once,
whatever crashes. Not here: the dead letters of the journal, which are kept either way.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]  # it carries no types

from turnout.service.domain.event import OWN_EXTENSIONS, Event
from turnout.service.domain.trigger import Emitter

from .client import as_trigger_error, ended, started
from .record import bytes_of, headers_of, is_structured

_SECONDS = 30.0
_OURS = OWN_EXTENSIONS | {"partition", "partitionkey"}
_locks: WeakKeyDictionary[Emitter, asyncio.Lock] = WeakKeyDictionary()


async def post(topic: str, event: Event, failure: str, emit: Emitter) -> None:
    """Publish the record of `event` and the `failure` of its run.

    Raises `TriggerError`, and is then called again later.
    """
    # One at a time: each opens a connection, and there may be a flood of dead letters.
    async with _locks.setdefault(emit, asyncio.Lock()):
        with as_trigger_error(f"cannot write to dead letter topic {topic!r}"):
            async with asyncio.timeout(_SECONDS):
                producer = AIOKafkaProducer(**emit.connection("kafka"), acks="all")
                try:
                    await started(producer)
                    key = event.extensions.get("partitionkey")
                    await producer.send_and_wait(
                        topic,
                        _value(event),
                        key=None if key is None else bytes_of(key),
                        headers=_headers(event, failure),
                    )
                finally:
                    await ended(producer.stop, _SECONDS)


def _value(event: Event) -> bytes | None:
    """Return the record's value; a null stays a null, except in a record without a key.

    The client cannot send a record with neither key nor value; a header says so instead.
    """
    is_null = not event.has_body and "partitionkey" in event.extensions
    return None if is_null else event.body


def _headers(event: Event, failure: str) -> list[tuple[str, bytes | None]]:
    record = event.extensions.get("kafkarecord", event.id)
    _cluster, topic, _epoch, partition, offset = record.rsplit("/", 4)
    fields = {
        "turnout-topic": topic,
        "turnout-partition": partition,
        "turnout-offset": offset,
        "turnout-trigger": event.trigger,
        "turnout-event": event.id,
        "turnout-reason": event.extensions.get("recorderror", failure),
    }
    if not event.has_body and "partitionkey" not in event.extensions:
        fields["turnout-null"] = "true"
    attributes = {}
    if "kafkarecord" in event.extensions and is_structured(event.headers):
        attributes = _attributes(event)
    ours = attributes | fields
    original = [(name, value) for name, value in headers_of(event) if name.lower() not in ours]
    return [*original, *((name, text.encode("utf-8")) for name, text in ours.items())]


def _attributes(event: Event) -> dict[str, str]:
    """Return a CloudEvent's attributes as headers, in the binary mode of the Kafka binding.

    A structured CloudEvent is stored as its data and attributes, so they are written apart.
    """
    fields = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time.isoformat(),
        **({} if event.subject is None else {"subject": event.subject}),
        **{name: text for name, text in event.extensions.items() if name not in _OURS},
    }
    content_type = {} if event.datacontenttype is None else {"content-type": event.datacontenttype}
    return {f"ce_{name}": text for name, text in fields.items()} | content_type

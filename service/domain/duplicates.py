"""Tells a second delivery of an event from another event with the same id.

CloudEvents are compared by attributes and data, since the same event may come in either mode; files
with an id of their own by what is in them; other events by type and bytes. Pure functions.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b

import orjson

from .errors import InvalidData
from .event import FILE_CONTENT, TRACE, Event

DIGEST_BYTES = 17
BODY_DIGEST_BYTES = 16
"""The size of digests in older journals: of the body alone."""


def digest(event: Event) -> bytes:
    """Return the digest of what must be the same when an event is delivered again."""
    if event.extensions and (content := event.extensions.get(FILE_CONTENT)) is not None:
        return blake2b(content.encode(), digest_size=DIGEST_BYTES).digest()
    body = event.body if event.specversion is None else _canonical(event)
    return blake2b(body, digest_size=DIGEST_BYTES, person=_kind(event.type)).digest()


def is_same(event: Event, mine: bytes, first: bytes) -> bool:
    """Whether an event, of digest `mine`, has the content of which a digest was kept at `first`."""
    if len(first) == BODY_DIGEST_BYTES:
        return first == blake2b(event.body, digest_size=BODY_DIGEST_BYTES).digest()
    return first == mine


_KAFKA_RECORD = (*TRACE, "kafkarecord", "recordheaders", "partition")


@lru_cache(maxsize=1024)
def _kind(event_type: str) -> bytes:
    return blake2b(event_type.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _canonical(event: Event) -> bytes:
    """Return the attributes and the data of a CloudEvent in one spelling.

    Not its time, which is that of the arrival if the sender gives none, nor the trace and the
    place in Kafka, which are new with each delivery.
    """
    essence = (event.datacontenttype or "application/json").partition(";")[0].strip().lower()
    left_out = _KAFKA_RECORD if "kafkarecord" in event.extensions else TRACE
    extensions = {name: text for name, text in event.extensions.items() if name not in left_out}
    attributes = orjson.dumps([event.subject, essence, extensions], option=orjson.OPT_SORT_KEYS)
    return attributes + b"\n" + _data(event)


def _data(event: Event) -> bytes:
    if event.encoding != "json" or not event.body:
        return event.body
    try:
        return _sorted(event.data)
    except InvalidData:
        return event.body


def _sorted(data: object) -> bytes:
    try:
        return orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer past 64 bits
        return json.dumps(data, sort_keys=True).encode("utf-8", "surrogatepass")

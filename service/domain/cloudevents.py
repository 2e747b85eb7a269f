"""CloudEvents 1.0 over HTTP: headers and body in, an `Event` or `InvalidData` with the field out.

Reads the structured JSON mode and the binary mode (CloudEvents HTTP binding 1.0.2, section 3), and
writes the structured one.
The payload keeps its bytes: in structured mode `data` is cut out of the document as it was
written, so numbers and key order stay the sender's. Pure functions. Not here: the batched mode
(refused by name), verification, and what the transport's own headers mean.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from .errors import InvalidData
from .event import NO_BODY, OWN_EXTENSIONS, Event
from .media_type import JSON, UTF8, media_type
from .payload import Encoding, decode_json

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"

MAX_ATTRIBUTE_CHARACTERS = 4096
MAX_EXTENSIONS = 64

_REQUIRED = ("specversion", "id", "source", "type")
_KNOWN = frozenset({*_REQUIRED, "time", "subject", "datacontenttype"})
_NAME = re.compile(r"[a-z0-9]+")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)  # RFC 3339 section 5.6

Headers = Mapping[str, Sequence[bytes]]
"""Every value of each header, by lower-case name, as `trigger.Inbound` holds them."""


def is_cloudevent(headers: Headers) -> bool:
    """Say whether a request claims to be a CloudEvent, in any mode."""
    return "ce-specversion" in headers or is_envelope(_content_type(headers))


@lru_cache(maxsize=256)
def is_envelope(content_type: str | None) -> bool:
    """Return whether a body of this type is a CloudEvent with its attributes inside."""
    return media_type(content_type or "").essence.startswith("application/cloudevents")


def parse(headers: Headers, body: bytes, *, now: datetime) -> Event:
    """Return the event of a request; a missing `time` is `now`. Raises `InvalidData`.

    The event has no trigger and no transport headers yet: those are the caller's to set.
    """
    content_type = _content_type(headers)
    if content_type == STRUCTURED:
        return structured(body, now=now)
    if is_envelope(content_type):
        raise InvalidData(
            f"{content_type} is not read here; send one event as {STRUCTURED} or with ce- headers",
            field="content-type",
        )
    if "ce-specversion" not in headers:
        raise InvalidData(
            f"not a CloudEvent: send {STRUCTURED}, or ce-specversion, ce-id, ce-source and ce-type "
            "as headers",
            field="ce-specversion",
        )
    return _binary(headers, body, now)


def encoding_of(content_type: str | None) -> Encoding:
    """Return how a body of this media type is decoded; none at all means JSON."""
    return media_type(content_type or JSON).encoding or "bytes"


def _content_type(headers: Headers) -> str:
    values = headers.get("content-type") or (b"",)
    return media_type(values[0].decode("latin-1")).essence


# ---------------------------------------------------------------- binary mode


def _binary(headers: Headers, body: bytes, now: datetime) -> Event:
    attributes = {}
    for header, values in headers.items():
        if header.startswith("ce-"):
            name = header.removeprefix("ce-")
            if len(values) != 1:
                raise InvalidData(f"{header} is sent {len(values)} times", field=name)
            attributes[name] = _header_text(name, values[0])
    if "datacontenttype" in attributes:
        raise InvalidData(
            "in binary mode the content type is the Content-Type header", field="datacontenttype"
        )
    if content_types := headers.get("content-type"):
        attributes["datacontenttype"] = content_types[0].decode("latin-1")
        body = _given(body, attributes["datacontenttype"])
    elif not body:
        body = NO_BODY
    return from_attributes(attributes, body, now=now)


def _header_text(name: str, raw: bytes) -> str:
    """Decode a header value: quotes off, then percent sequences once (HTTP binding 3.1.3.2)."""
    if len(raw) >= 2 and raw[:1] == raw[-1:] == b'"':
        raw = re.sub(rb"\\(.)", rb"\1", raw[1:-1])
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidData(f"ce-{name} is not percent-encoded UTF-8", field=name) from None


# ---------------------------------------------------------------- structured mode


def structured(document: bytes, *, now: datetime) -> Event:
    """Return the event of a document in the JSON format, whatever carried it."""
    envelope = decode_json(document)
    if not isinstance(envelope, dict):
        raise InvalidData("a structured CloudEvent is a JSON object")
    attributes = {
        name: _attribute_text(name, value)
        for name, value in envelope.items()
        if name not in ("data", "data_base64") and value is not None
    }
    body = _payload(envelope, attributes.get("datacontenttype"), document)
    return from_attributes(attributes, body, now=now)


def as_document(event: Event) -> bytes:
    """Return an event in the JSON format, for `structured` to read the same event from.

    JSON data is written as it is; other data, as base64.
    """
    members = {
        "specversion": event.specversion or "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time.isoformat(),
        **{name: getattr(event, name) for name in ("subject", "datacontenttype")},
        **event.extensions,
    }
    if event.has_body and encoding_of(event.datacontenttype) != "json":
        members["data_base64"] = base64.b64encode(event.body).decode("ascii")
    document = json.dumps(
        {name: text for name, text in members.items() if text is not None}, ensure_ascii=False
    ).encode("utf-8")
    if not event.has_body or "data_base64" in members:
        return document
    return document[:-1] + b', "data": ' + event.body + b"}"


def _attribute_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and name not in _KNOWN:
        return str(value).lower()  # `true` and `false` too
    raise InvalidData(f"{name} must be a string, not {type(value).__name__}", field=name)


def _payload(envelope: dict[str, Any], content_type: str | None, document: bytes) -> bytes:
    """Return the bytes of `data` or `data_base64` (JSON format 1.0.2, section 3.1)."""
    if envelope.get("data_base64") is not None:
        if envelope.get("data") is not None:
            raise InvalidData("an event has data or data_base64, not both", field="data_base64")
        try:
            data = base64.b64decode(envelope["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise InvalidData("data_base64 is not base64", field="data_base64") from None
        return _given(data, content_type)
    if "data" not in envelope:
        return NO_BODY
    if encoding_of(content_type) == "json":
        return _member(document.decode("utf-8"), "data").encode("utf-8")
    if not isinstance(envelope["data"], str):
        raise InvalidData(f"data of {content_type} must be a string, or data_base64", field="data")
    return envelope["data"].encode("utf-8")


def _given(data: bytes, content_type: str | None) -> bytes:
    """Return data that came as bytes; refuse JSON that is not even `null`, and other charsets."""
    encoding = encoding_of(content_type)
    if not data and encoding == "json":
        raise InvalidData("the body is empty where JSON was expected", field="data")
    charset = media_type(content_type or JSON).charset
    if encoding != "bytes" and charset not in UTF8:
        raise InvalidData(
            f"only UTF-8 is read here, not charset={charset[:40]}", field="datacontenttype"
        )
    return data


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def _member(document: str, name: str) -> str:
    """Cut the last member called `name` out of a JSON object already known to be sound."""
    found = ""
    at = _skip(document, _skip(document, 0) + 1)
    while document[at] != "}":
        key, at = _DECODER.raw_decode(document, at)
        start = _skip(document, _skip(document, at) + 1)  # past the colon
        _, end = _DECODER.raw_decode(document, start)
        if key == name:
            found = document[start:end]
        at = _skip(document, end)
        if document[at] == ",":
            at = _skip(document, at + 1)
    return found


def _skip(document: str, at: int) -> int:
    match = _SPACE.match(document, at)
    return at if match is None else match.end()


# ---------------------------------------------------------------- attributes


def from_attributes(attributes: dict[str, str], body: bytes, *, now: datetime) -> Event:
    """Return the event its attributes describe, as text by name, whatever carried them."""
    _check(attributes)
    content_type = attributes.get("datacontenttype")
    stamp = attributes.get("time")
    return Event(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        time=now if stamp is None else _instant(stamp),
        subject=attributes.get("subject"),
        datacontenttype=content_type,
        encoding=encoding_of(content_type),
        body=body,
        specversion=attributes["specversion"],
        extensions={name: text for name, text in attributes.items() if name not in _KNOWN},
    )


def _check(attributes: dict[str, str]) -> None:
    for name in _REQUIRED:
        if not attributes.get(name):
            raise InvalidData(f"the CloudEvents attribute {name!r} is missing or empty", field=name)
    if attributes["specversion"] != "1.0":
        given = attributes["specversion"][:40]
        raise InvalidData(
            f"only CloudEvents specversion 1.0 is read here, not {given!r}", field="specversion"
        )
    if len(attributes) > len(_KNOWN) + MAX_EXTENSIONS:
        raise InvalidData(f"more than {MAX_EXTENSIONS} extension attributes")
    for name in OWN_EXTENSIONS & attributes.keys():
        raise InvalidData(f"the attribute {name} is turnout's own", field=name)
    for name, text in attributes.items():
        if not _NAME.fullmatch(name):
            raise InvalidData(
                f"{name[:40]!r} cannot name an attribute: lower-case letters and digits only",
                field=name[:40],
            )
        if len(text) > MAX_ATTRIBUTE_CHARACTERS:
            raise InvalidData(
                f"{name} is longer than {MAX_ATTRIBUTE_CHARACTERS} characters", field=name
            )
        if _FORBIDDEN.search(text):
            raise InvalidData(f"{name} holds a control character", field=name)


def _instant(text: str) -> datetime:
    if INSTANT.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise InvalidData(
        f"time {text[:40]!r} is not an RFC 3339 instant such as 2026-01-31T09:00:00Z", field="time"
    )

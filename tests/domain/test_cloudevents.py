"""CloudEvents over HTTP: both modes read, everything else refused by field."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from turnout.service.domain.cloudevents import encoding_of, is_cloudevent, parse
from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import OWN_EXTENSIONS, Event

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
STRUCTURED = {"content-type": [b"application/cloudevents+json; charset=utf-8"]}
ENVELOPE = {"specversion": "1.0", "id": "a1", "source": "/shop", "type": "order.placed"}
BINARY = {
    "ce-specversion": [b"1.0"],
    "ce-id": [b"a1"],
    "ce-source": [b"/shop"],
    "ce-type": [b"order.placed"],
    "content-type": [b"application/json"],
}


def structured(**members: Any) -> Event:
    return parse(STRUCTURED, json.dumps(ENVELOPE | members).encode(), now=NOW)


def binary(body: bytes = b"{}", **headers: bytes) -> Event:
    named = {f"ce-{name}": [value] for name, value in headers.items()}
    return parse(BINARY | named, body, now=NOW)


def test_binary_mode_keeps_the_body_and_reads_the_attributes() -> None:
    event = binary(b' {"n": 1} ', subject=b"order/7", partitionkey=b"7")
    assert (event.id, event.source, event.type) == ("a1", "/shop", "order.placed")
    assert (event.subject, event.time) == ("order/7", NOW)
    assert event.extensions == {"partitionkey": "7"}
    assert event.body == b' {"n": 1} '
    assert event.data == {"n": 1}
    assert event.datacontenttype == "application/json"


def test_binary_header_values_are_percent_decoded_once() -> None:
    event = binary(subject=b"Euro%20%E2%82%AC%2525", note=b'"quoted \\" text"')
    assert event.subject == "Euro €%25"
    assert event.extensions["note"] == 'quoted " text'


def test_structured_mode_keeps_data_as_it_was_written() -> None:
    data = '{"b":1.10,  "a":18446744073709551616, "z":"\\u00e9}"}'
    document = (
        '{"specversion":"1.0","data" : 1,"id":"a1", "source":"/shop",\n'
        f'"data": {data} , "type":"order.placed","level":3,"vip":true}}'
    )
    event = parse(STRUCTURED, document.encode(), now=NOW)
    assert event.body == data.encode()
    assert event.data == {"b": 1.1, "a": 18446744073709551616, "z": "é}"}
    assert event.extensions == {"level": "3", "vip": "true"}


def test_structured_time_is_read_in_any_zone() -> None:
    event = structured(time="2026-01-31T10:00:00.5+01:00")
    assert event.time == datetime(2026, 1, 31, 9, 0, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("members", "body", "encoding"),
    [
        ({}, b"", "json"),
        ({"data": None}, b"null", "json"),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text", "text"),
        ({"data_base64": base64.b64encode(b"\x00\xff").decode(),
          "datacontenttype": "application/octet-stream"}, b"\x00\xff", "bytes"),
        ({"data_base64": base64.b64encode(b"[1]").decode()}, b"[1]", "json"),
        ({"data": [1], "datacontenttype": "application/vnd.x+json"}, b"[1]", "json"),
    ],
)  # fmt: skip
def test_structured_payload_forms(members: dict[str, Any], body: bytes, encoding: str) -> None:
    event = structured(**members)
    assert (event.body, event.encoding) == (body, encoding)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": None}, "id"),
        ({"id": 7}, "id"),
        ({"type": None}, "type"),
        ({"specversion": "0.3"}, "specversion"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-01-31T09:00:00"}, "time"),
        ({"time": "2026-02-30T09:00:00Z"}, "time"),
        ({"time": "0001-01-01T00:00:00+23:00"}, "time"),
        ({"subject": "bell\a"}, "subject"),
        ({"subject": "x" * 5000}, "subject"),
        ({"myExt": "x"}, "myExt"),
        ({"nested": {"a": 1}}, "nested"),
        ({"data": {"a": 1}, "datacontenttype": "text/plain"}, "data"),
        ({"data": 1, "data_base64": "MQ=="}, "data_base64"),
        ({"data_base64": "not base64!"}, "data_base64"),
        ({"data_base64": 5}, "data_base64"),
        ({"id": True}, "id"),
        ({"datacontenttype": True, "data": "x"}, "datacontenttype"),
        ({"datacontenttype": ["text/plain"], "data": "x"}, "datacontenttype"),
        (
            {"datacontenttype": "text/plain; charset=utf-16", "data_base64": "YQA="},
            "datacontenttype",
        ),
    ],
)
def test_structured_faults_name_the_field(members: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidData) as caught:
        structured(**members)
    assert caught.value.field == field


def test_binary_faults_name_the_field() -> None:
    with pytest.raises(InvalidData, match="2 times"):
        parse(BINARY | {"ce-id": [b"a", b"b"]}, b"", now=NOW)
    with pytest.raises(InvalidData, match="percent-encoded"):
        binary(subject=b"%ff")
    with pytest.raises(InvalidData, match="Content-Type header"):
        binary(datacontenttype=b"text/plain")
    with pytest.raises(InvalidData, match="control character"):
        binary(subject=b"%1b[2J")


@pytest.mark.parametrize(
    "content_type", ["text/plain; charset=utf-16le", "application/json; charset=latin-1"]
)
def test_bytes_in_another_charset_are_refused_not_guessed(content_type: str) -> None:
    headers = BINARY | {"content-type": [content_type.encode()]}
    with pytest.raises(InvalidData, match="only UTF-8") as caught:
        parse(headers, '"é"'.encode("latin-1"), now=NOW)
    assert caught.value.field == "datacontenttype"


def test_text_inside_a_document_needs_no_charset() -> None:
    event = structured(datacontenttype="text/plain; charset=latin-1", data="é")
    assert event.data == "é"


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b'{"a": NaN}', b'"\\ud800"', b"\xff"])
def test_hostile_documents_are_refused(document: bytes) -> None:
    with pytest.raises(InvalidData):
        parse(STRUCTURED, document, now=NOW)


def test_batches_and_strangers_are_refused_with_the_fix() -> None:
    with pytest.raises(InvalidData, match="one event as application/cloudevents"):
        parse({"content-type": [b"application/cloudevents-batch+json"]}, b"[]", now=NOW)
    with pytest.raises(InvalidData, match="not a CloudEvent"):
        parse({"content-type": [b"application/json"]}, b"{}", now=NOW)


def test_what_counts_as_a_cloudevent() -> None:
    assert is_cloudevent(STRUCTURED)
    assert is_cloudevent(BINARY)
    assert not is_cloudevent({"content-type": [b"application/json"]})


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        (None, "json"),
        ("application/json; charset=utf-8", "json"),
        ("application/problem+json", "json"),
        ("text/csv", "text"),
        ("application/x-www-form-urlencoded", "form"),
        ("image/png", "bytes"),
    ],
)
def test_encoding_follows_the_media_type(content_type: str | None, encoding: str) -> None:
    assert encoding_of(content_type) == encoding


@pytest.mark.parametrize("name", sorted(OWN_EXTENSIONS))
def test_a_sender_cannot_set_what_only_turnout_sets(name: str) -> None:
    headers = {
        "ce-specversion": [b"1.0"],
        "ce-id": [b"1"],
        "ce-source": [b"/a"],
        "ce-type": [b"t"],
        f"ce-{name}": [b"file:///etc/passwd"],
    }
    with pytest.raises(InvalidData, match="turnout's own"):
        parse(headers, b"", now=datetime.now(UTC))

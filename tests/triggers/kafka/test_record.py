"""Records to events: whatever is in a record, it is an event, and its bytes come back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.event import MAX_HOPS
from turnout.service.domain.event_columns import EventColumns
from turnout.triggers.kafka.record import (
    TYPE,
    Data,
    Null,
    Record,
    RecordDecoder,
    bytes_of,
    text_of,
)

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)

raw = st.binary(max_size=20) | st.text(max_size=6).map(lambda text: f"data:;base64,{text}".encode())

words = st.sampled_from(
    [
        *(b"1.0", b"id", b"/source", b"type", b"", b'"', b"9" * 40, "٣".encode(), b"\xff"),
        *(b"9999-12-31T23:59:59-23:59", b"0001-01-01T00:00:00+23:59", b"2016-12-31T23:59:60Z"),
        *(b"application/json", b"application/cloudevents+json", b"text/plain; charset=utf-16"),
    ]
)
names = st.sampled_from(
    [
        *("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "ce_"),
        *("ce_datacontenttype", "ce_recorderror", "ce_partition", "ce_partitionkey", "CE_ID"),
        *("content-type", "turnout-hops", "traceparent", "\x00"),
    ]
)
headers = st.lists(st.tuples(names, st.none() | raw | words), max_size=9)
cloud_event = headers.map(
    lambda more: [
        *(("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"t")),
        *more,
    ]
)
json_like = st.sampled_from(
    [
        *(b"", b"7", b"null", b"NaN", b"{oops", b'"\xff"', b'"\\ud800"', b"1e999", b"9" * 5000),
        *(b"[" * 70 + b"]" * 70, b'{"specversion": "1.0"}', b'{"specversion": 1, "data": {}}'),
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":7}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"x","data":{}}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","partition":"9","data":1e999}',
    ]
)


@given(
    value=st.none() | raw | json_like,
    headers=headers | cloud_event,
    key=st.none() | raw,
    timestamp=st.integers(-(2**63), 2**63 - 1) | st.just(1_700_000_000_000),
    data=st.sampled_from(["json", "text", "bytes"]),
    null=st.sampled_from(["dead", "skip", "run"]),
)
def test_every_record_is_an_event_that_names_its_offset(
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    key: bytes | None,
    timestamp: int,
    data: Data,
    null: Null,
) -> None:
    reader = RecordDecoder(
        trigger="kafka:o/g",
        cluster="c",
        topic="o",
        partition=3,
        epoch=1,
        data=data,
        null=null,
        max_record=1000,
    )
    event = reader.event(Record(5, timestamp, key, value, headers), NOW)
    assert event.extensions.get("kafkarecord", event.id) == "c/o/1/3/5"
    assert event.extensions["partition"] == "o/3"
    if key is not None:
        assert bytes_of(event.extensions["partitionkey"]) == key
    if "recorderror" in event.extensions:
        assert event.extensions["recorderror"].startswith("o partition 3 offset 5: ")
        assert event.body == (value or b""), "its bytes are kept as they came"
    elif event.body or event.encoding != "json":
        assert event.data is not NotImplemented  # it decodes


class FromClient(NamedTuple):
    """A record as the client has it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


@given(
    records=st.lists(
        st.builds(
            FromClient,
            offset=st.integers(0, 2**40),
            timestamp=st.integers(-(2**63), 2**63 - 1) | st.just(1_700_000_000_123),
            key=st.none() | raw,
            value=st.none() | raw | st.sampled_from([b"7", b'{"a": 1}', b"{oops", b"", b"x" * 30]),
            headers=st.just([]) | st.just([("x", b"1")]) | headers | cloud_event,
        ),
        max_size=5,
    ),
    data=st.sampled_from(["json", "text", "bytes"]),
    null=st.sampled_from(["dead", "skip", "run"]),
)
def test_records_that_fit_in_columns_are_the_same_events(
    records: list[FromClient], data: Data, null: Null
) -> None:
    reader = RecordDecoder(
        trigger="kafka:o/g", cluster="c", topic="o", partition=3, epoch=1, data=data, null=null,
        max_record=25,
    )  # fmt: skip
    columns = EventColumns()
    if not reader.add_to(columns, records, NOW):
        return
    single = [
        reader.event(each, NOW) for each in records if each.value is not None or null != "skip"
    ]
    assert list(columns) == single
    assert [each.data for each in columns.decoded()] == [each.data for each in single]
    assert columns.data == [each.data for each in single]
    for each in single:
        assert each.body and each.type == TYPE and each.hops <= MAX_HOPS
        assert "recorderror" not in each.extensions


@pytest.mark.parametrize(
    ("record", "fits"),
    [
        (FromClient(1, 5, b"k", b"{}", []), True),
        (FromClient(1, -1, None, b"{}", [("traceparent", b"00")]), True),
        (FromClient(1, 5, None, b"{oops", []), False),
        (FromClient(1, 5, None, b"", []), False),
        (FromClient(1, 5, None, None, []), False),
        (FromClient(1, 5, None, b"[" + b"1," * 600 + b"1]", []), False),
        (FromClient(1, 5, None, b"{}", [("turnout-hops", b"17")]), False),
        (FromClient(1, 5, None, b"{}", [("turnout-hops", b"1")]), True),
        (FromClient(1, 5, None, b"{}", [("ce_specversion", b"9")]), False),
        (Record(1, 5, None, b"{}", []), False),
    ],
)
def test_which_records_fit_in_columns(record: Any, fits: bool) -> None:
    reader = RecordDecoder(
        trigger="kafka:o/g", cluster="c", topic="o", partition=0, epoch=0, data="json", null="dead",
        max_record=1000,
    )  # fmt: skip
    assert reader.add_to(EventColumns(), [record], NOW) is fits


@pytest.mark.parametrize(("data", "empty"), [("text", ""), ("bytes", b"")])
def test_a_null_value_is_no_body_and_an_empty_one_is(data: Data, empty: object) -> None:
    reader = RecordDecoder(
        trigger="kafka:o/g", cluster="c", topic="o", partition=0, epoch=0, data=data, null="run",
        max_record=1000,
    )  # fmt: skip
    null = reader.event(Record(1, 0, None, None, []), NOW)
    blank = reader.event(Record(2, 0, None, b"", []), NOW)
    assert (null.has_body, null.data) == (False, None)
    assert (blank.has_body, blank.data) == (True, empty)


@given(raw)
def test_bytes_come_back_from_their_text(key: bytes) -> None:
    assert bytes_of(text_of(key)) == key


def test_a_text_from_elsewhere_is_its_own_bytes() -> None:
    assert bytes_of("data:;base64,!") == b"data:;base64,!"

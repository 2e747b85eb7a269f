"""Records to events: whatever is in a record, it is an event, and its bytes come back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.triggers.kafka.record import Data, Null, Record, RecordDecoder, bytes_of, text_of

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

"""Events keep their bytes, and their ids sort as they were made."""

from __future__ import annotations

import os
import pickle
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import Event, file_url, mint_id, path_from_url


def event(**fields: object) -> Event:
    return Event(id="1", source="/a", type="t", time=datetime.now(UTC), **fields)  # type: ignore[arg-type]  # fields by keyword


def test_minted_ids_are_uuid7_and_sort_in_the_order_they_were_made() -> None:
    ids = [mint_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    parsed = UUID(ids[0])
    assert parsed.version == 7
    assert parsed.variant == "specified in RFC 4122"
    made_at = (parsed.int >> 80) / 1000
    assert abs(made_at - datetime.now(UTC).timestamp()) < 60


@given(
    st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name and b"/" not in name)
)
def test_a_path_of_any_bytes_survives_the_url(name: bytes) -> None:
    path = Path(os.fsdecode(b"/in/" + name))
    assert os.fsencode(path_from_url(file_url(path))) == os.fsencode(path)
    assert file_url(path).isascii()


def test_data_is_decoded_on_use_and_bad_data_says_so() -> None:
    assert event(body=b'{"a": 1}').data == {"a": 1}
    assert event(body=b"hi", encoding="text").data == "hi"
    assert event().data is None
    with pytest.raises(InvalidData, match="not JSON"):
        _ = event(body=b"{").data


def test_an_event_without_a_body_is_not_one_with_an_empty_body() -> None:
    for encoding in ("text", "bytes", "form", "json"):
        none = pickle.loads(pickle.dumps(event(encoding=encoding)))
        empty = pickle.loads(pickle.dumps(event(body=b"", encoding=encoding)))
        assert (none.has_body, none.data) == (False, None)
        assert empty.has_body
    assert event(body=b"", encoding="text").data == ""
    assert event(body=b"", encoding="bytes").data == b""


def test_what_one_reader_changes_in_an_event_another_does_not_see() -> None:
    made = event(body=b'{"a": {"b": 1}}', headers={"x": "1"}, params={"p": "1"})
    _ = made.data
    first, second = made.own(), made.own()
    first.data["a"]["b"] = 2
    first.headers["x"] = first.params["p"] = "2"  # type: ignore[index]  # what a typed author would not do
    assert second.data == made.data == {"a": {"b": 1}}
    assert (second.headers, made.params) == ({"x": "1"}, {"p": "1"})
    assert pickle.loads(pickle.dumps(first)).data == {"a": {"b": 1}}


def test_an_event_about_a_file_knows_its_path() -> None:
    assert event().path is None
    assert event(extensions={"fileurl": "file:///in/a%20b"}).path == Path("/in/a b")

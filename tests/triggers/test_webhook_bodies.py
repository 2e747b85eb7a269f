"""What a body becomes: JSON, text, bytes, forms, CloudEvents, nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.service.domain.payload import Encoding
from turnout.triggers.webhook import webhook

from .requests import CLOUDEVENT, STRUCTURED, accepted, hook_key, post, refused, request

__all__ = ["hook_key"]  # the fixture


FORM = {"a": "1", "b": ["2", "3"], "c": ""}


class TestDecoding:
    @pytest.mark.parametrize(
        ("content_type", "body", "data"),
        [
            ("application/json", b'{"a": 1}', {"a": 1}),
            ("application/json; charset=UTF-8", b'["\xc3\xa9"]', ["é"]),
            ("application/vnd.acme+json", b"null", None),
            ("application/x-www-form-urlencoded", b"a=1&b=2&b=3&c=", FORM),
            ("text/plain", "grüße".encode(), "grüße"),
            ("text/csv; charset=utf-8", b"a,b\n1,2\n", "a,b\n1,2\n"),
            ("application/octet-stream", b"\x00\xff", b"\x00\xff"),
        ],
    )  # fmt: skip
    async def test_the_content_type_decides(
        self, content_type: str, body: bytes, data: object
    ) -> None:
        event = await accepted(webhook("/orders"), request(body, {"content-type": content_type}))
        assert (event.data, event.body, event.datacontenttype) == (data, body, content_type)

    @pytest.mark.parametrize(
        ("content_type", "declared"),
        [
            ("multipart/form-data; boundary=x", None),
            ("image/png", None),
            ("application/xml", None),
            ("text/plain; charset=utf-16", None),
            ("application/json; charset=latin-1", None),
            ("", None),
            ("text/plain", "json"),
            ("application/x-www-form-urlencoded", "json"),
            ("application/json", "form"),
            ("application/octet-stream", "text"),
            ("application/cloudevents-batch+json", None),
            ("application/cloudevents+avro", None),
        ],
    )
    async def test_what_a_route_does_not_take_is_415(
        self, content_type: str, declared: Any
    ) -> None:
        trigger = webhook("/orders", data=declared)
        document = await refused(trigger, request(b"{}", {"content-type": content_type}), 415)
        assert "accepted here" in document["detail"] or "UTF-8" in document["detail"]
        assert "no type" not in document["detail"]

    @pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "gzip, gzip", "identity, deflate"])
    async def test_a_packed_body_is_415(self, coding: str) -> None:
        document = await refused(
            webhook("/orders"), request(b"x", {"content-encoding": coding}), 415
        )
        assert "Content-Encoding" in document["detail"]

    async def test_identity_is_no_packing(self) -> None:
        await accepted(webhook("/orders"), request(b"{}", {"content-encoding": "identity"}))

    async def test_declared_bytes_take_anything_as_it_is(self) -> None:
        headers = {"content-type": "image/png"}
        event = await accepted(webhook("/orders", data="bytes"), request(b"\x89PNG", headers))
        assert event.data == b"\x89PNG"

    async def test_without_content_type_the_declaration_decides(self) -> None:
        plain = replace(request(b"hello"), headers={})
        assert (await accepted(webhook("/orders", data="text"), plain)).data == "hello"
        await refused(webhook("/orders"), plain, 400)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"NaN",
            b'{"a": Infinity}',
            b"[1e999]",
            b"9" * 5000,
            b"[" * 65 + b"]" * 65,
            b"[" * 1100 + b"]" * 1100,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'"\\ud800"',
            b'{"a": "\\udfff", "n": 18446744073709551616}',
            b'"\xff"',
            b"\xef\xbb\xbf{}",
            '{"a": 1}'.encode("utf-16"),
            b'{"a": 1}{"b": 2}',
            b"{'a': 1}",
            b"\x00",
        ],
        ids=lambda body: repr(body[:24]),
    )
    async def test_hostile_json_is_400(self, body: bytes) -> None:
        declared: Encoding | None
        for declared in (None, "json"):
            document = await refused(webhook("/orders", data=declared), request(body), 400)
            assert document["detail"]

    @pytest.mark.parametrize(
        ("body", "data"),
        [
            (b"18446744073709551616", 2**64),
            (b'{"n": -123456789012345678901234567890}', {"n": -123456789012345678901234567890}),
            (b"[" * 64 + b"]" * 64, None),
            (b'{"a": 1, "a": 2}', {"a": 2}),
            (b'{"__class__": {"__proto__": 1}, "headers": 2, "tenant": 3}', None),
        ],
    )
    async def test_odd_but_sound_json_stays_exact(self, body: bytes, data: object) -> None:
        event = await accepted(webhook("/orders"), request(body))
        assert event.body == body
        assert event.data == (json.loads(body) if data is None else data)
        assert event.tenant == "default"

    @settings(max_examples=300, deadline=None)
    @given(body=st.binary(max_size=60), content_type=st.binary(max_size=40))
    def test_any_bytes_get_an_answer(self, body: bytes, content_type: bytes) -> None:
        headers = {"content-type": content_type, "idempotency-key": body[:20]}
        reply, emit = asyncio.run(post(webhook("/orders"), request(body, headers)))
        assert reply.status in (202, 400, 415)
        assert len(emit.events) == (reply.status == 202)


class TestCloudEvents:
    async def test_structured_mode(self) -> None:
        body = json.dumps({**CLOUDEVENT, "data": {"n": 2**64}})
        event = await accepted(webhook("/orders"), request(body, STRUCTURED))
        assert (event.id, event.source, event.type, event.subject) == (
            "ce-1", "https://shop.example/orders", "com.example.order", "42"
        )  # fmt: skip
        assert event.time == datetime(2026, 1, 31, 8, 0, tzinfo=UTC)
        assert event.data == {"n": 2**64}
        assert event.extensions == {"traceparent": "00-1-2-03"}
        assert (event.minted, event.trigger) == (False, "webhook:/orders")

    async def test_structured_mode_with_binary_data(self) -> None:
        packed = base64.b64encode(b"\x89PNG").decode()
        document = {**CLOUDEVENT, "datacontenttype": "image/png", "data_base64": packed}
        event = await accepted(webhook("/orders"), request(json.dumps(document), STRUCTURED))
        assert event.data == b"\x89PNG"

    async def test_binary_mode(self) -> None:
        headers = {f"ce-{name}": value for name, value in CLOUDEVENT.items()}
        event = await accepted(webhook("/orders"), request(b'{"a": 1}', headers))
        assert (event.id, event.type, event.data) == ("ce-1", "com.example.order", {"a": 1})
        assert event.datacontenttype == "application/json"

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"id": ""}, "id"),
            ({"id": None}, "id"),
            ({"specversion": "0.3"}, "specversion"),
            ({"specversion": "1.1"}, "specversion"),
            ({"data_base64": ""}, "data"),
            ({"time": "yesterday"}, "time"),
            ({"data": 1, "data_base64": "AA=="}, "data_base64"),
            ({"data_base64": "?"}, "data_base64"),
            ({"fileurl": "file:///etc/passwd"}, "fileurl"),
            ({"Bad-Name": "x"}, "Bad-Name"),
        ],
    )
    async def test_a_bad_attribute_is_400_naming_it(self, change: Any, field: str) -> None:
        body = json.dumps({**CLOUDEVENT, **change})
        document = await refused(webhook("/orders"), request(body, STRUCTURED), 400)
        assert document["field"] == field

    async def test_an_empty_body_is_no_json_here_either(self) -> None:
        headers: dict[str, str] = {f"ce-{name}": value for name, value in CLOUDEVENT.items()}
        document = await refused(webhook("/orders"), request(b"", headers), 400)
        assert "empty where JSON was expected" in document["detail"]
        untyped = request(b"", headers)
        untyped = replace(
            untyped, headers={k: v for k, v in untyped.headers.items() if k != "content-type"}
        )
        assert (await accepted(webhook("/orders"), untyped)).data is None
        assert (
            await accepted(webhook("/orders"), request(json.dumps(CLOUDEVENT), STRUCTURED))
        ).data is None

    async def test_a_batch_is_refused_by_name(self) -> None:
        headers = {"content-type": "application/cloudevents-batch+json"}
        document = await refused(webhook("/orders"), request(b"[]", headers), 415)
        assert "one event a request" in document["detail"]

    async def test_a_declared_decoding_holds_for_the_data(self) -> None:
        document = {**CLOUDEVENT, "datacontenttype": "text/plain", "data": "x"}
        trigger = webhook("/orders", data="json")
        await refused(trigger, request(json.dumps(document), STRUCTURED), 415)


@pytest.mark.parametrize(
    ("data", "headers", "has_body"),
    [
        ("text", {"content-type": "text/plain", "content-length": "0"}, True),
        ("text", {"content-length": "0"}, True),
        ("bytes", {"content-type": "application/octet-stream"}, True),
        ("text", {}, False),
        ("json", {"content-length": "0"}, False),  # as a browser posts nothing at all
        (None, {}, False),
        (None, {"content-type": "text/plain"}, True),
    ],
)
async def test_a_request_without_a_body_is_not_one_with_an_empty_body(
    data: Encoding | None, headers: dict[str, str], has_body: bool
) -> None:
    sent = replace(
        request(b""), headers={name: [value.encode()] for name, value in headers.items()}
    )
    event = await accepted(webhook("/orders", data=data), sent)
    assert event.has_body is has_body


@pytest.mark.parametrize(
    ("document", "data", "has_body"),
    [
        ({}, None, False),
        ({"data": None}, None, True),
        ({"data": "", "datacontenttype": "text/plain"}, "", True),
        ({"datacontenttype": "text/plain"}, None, False),
        ({"data_base64": "", "datacontenttype": "application/octet-stream"}, b"", True),
    ],
)
async def test_a_cloudevent_without_data_is_not_one_with_empty_data(
    document: dict[str, Any], data: object, has_body: bool
) -> None:
    told = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"} | document
    sent = request(json.dumps(told), {"content-type": "application/cloudevents+json"})
    event = await accepted(webhook("/orders"), sent)
    assert (event.data, event.has_body) == (data, has_body)

"""The webhook trigger: a request becomes an event or a refusal; 202 only once it is kept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac as reference
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import CHECKOUT
from tests.support.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract
from turnout.service.domain.errors import (
    JournalBroken,
    JournalFull,
    Overloaded,
    SetupError,
    TurnoutError,
)
from turnout.service.domain.event import Event
from turnout.service.domain.payload import Encoding
from turnout.service.domain.run import Outcome, RunError, RunState
from turnout.service.domain.trigger import CalledTrigger, Inbound, Receipt, Reply
from turnout.service.governance.secrets import secret
from turnout.service.http.exchange import App
from turnout.service.http.ingest import Ingest
from turnout.service.settings import load
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.signatures import hmac
from turnout.triggers.webhook import MAX_STORED_HEADERS, WebhookTrigger, webhook

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
DELIVERIES = {
    file.name.split(".")[0]: file.read_bytes()
    for file in (CHECKOUT / "handlers/examples/deliveries").glob("*.json")
}
KEY = "a secret of the tests"
SETTINGS = load()


@pytest.fixture(autouse=True)
def hook_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", KEY)


def request(
    body: bytes | str = b"{}",
    headers: Mapping[str, bytes | str | Sequence[bytes]] | None = None,
    *,
    path: str = "/hooks/orders",
    query: bytes = b"",
    params: Mapping[str, str] | None = None,
) -> Inbound:
    given = {"content-type": "application/json"} | dict(headers or {})
    return Inbound(
        method="POST",
        path=path,
        params=params or {},
        query=query,
        headers={name.lower(): _values(value) for name, value in given.items()},
        body=body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body,
        client="127.0.0.1",
        received_at=NOW,
    )


def _values(value: bytes | str | Sequence[bytes]) -> list[bytes]:
    if isinstance(value, str):
        return [value.encode()]
    return [value] if isinstance(value, bytes) else list(value)


async def post(trigger: WebhookTrigger, inbound: Inbound) -> tuple[Reply, RecordingEmitter]:
    trigger.check()
    emit = RecordingEmitter()
    return await trigger.receive(inbound, emit), emit


async def accepted(trigger: WebhookTrigger, inbound: Inbound) -> Event:
    reply, emit = await post(trigger, inbound)
    assert reply.status == 202, reply.body
    (event,) = emit.events
    assert json.loads(reply.body)["event"] == event.id
    return event


async def refused(trigger: WebhookTrigger, inbound: Inbound, status: int) -> dict[str, Any]:
    reply, emit = await post(trigger, inbound)
    assert (reply.status, emit.events) == (status, []), reply.body
    assert reply.content_type == "application/problem+json"
    document: dict[str, Any] = json.loads(reply.body)
    assert document["status"] == status
    return document


class WebhookCase:
    """A signed webhook behind the real adapter, under the trigger contract."""

    keeps_input = False

    def __init__(self) -> None:
        self._trigger = webhook("/orders", verify="github", secret=secret("HOOK_KEY"))
        self._sent = 0
        self._accepted = 0
        self._last: dict[str, str] = {}
        self._due: list[dict[str, str]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._client: httpx.AsyncClient | None = None

    def emitter(self) -> RecordingEmitter:
        return RecordingEmitter()

    @asynccontextmanager
    async def watching(self, emit: RecordingEmitter) -> AsyncIterator[None]:
        async with ingesting(self._trigger, emit) as client, asyncio.TaskGroup() as tasks:
            self._client, self._tasks = client, tasks
            begun = [tasks.create_task(self._send(headers)) for headers in self._due]
            self._due = []
            self._running = begun
            yield
            for task in self._running:
                task.cancel()

    async def make_input(self) -> None:
        assert self._tasks is not None
        self._sent += 1
        self._last = {"x-github-delivery": f"delivery-{self._sent}", "x-github-event": "push"}
        self._running.append(self._tasks.create_task(self._send(self._last)))

    async def redeliver(self) -> None:
        self._due.append(self._last)

    def acknowledged(self) -> int:
        return self._accepted

    async def _send(self, headers: Mapping[str, str]) -> None:
        assert self._client is not None
        body = json.dumps({"delivery": headers["x-github-delivery"]}).encode()
        signature = sign(body)
        answer = await self._client.post(
            "/hooks/orders",
            content=body,
            headers={**headers, "content-type": "application/json", **signature},
        )
        self._accepted += answer.status_code == 202


def sign(body: bytes) -> dict[str, str]:
    digest = reference.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={digest}"}


@asynccontextmanager
async def ingesting(
    trigger: CalledTrigger, emit: RecordingEmitter
) -> AsyncIterator[httpx.AsyncClient]:
    async def rest() -> App:
        raise AssertionError("a webhook must not load the REST application")

    app = Ingest(
        [(trigger, emit)],
        settings=SETTINGS,
        metrics=Metrics(),
        problems=list,
        rest=rest,
        now=emit.now,
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://turnout") as client:
        yield client


class TestWebhookKeepsTheContract(TriggerContract):
    @pytest.fixture
    def case(self) -> TriggerCase:
        return WebhookCase()


class TestGitHub:
    TRIGGER = webhook("/github", verify="github", secret=secret("HOOK_KEY"))

    @pytest.mark.parametrize("kind", sorted(DELIVERIES))
    async def test_a_real_delivery_becomes_an_event(self, kind: str) -> None:
        body = DELIVERIES[kind]
        headers = {
            "X-GitHub-Event": kind,
            "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            **sign(body),
        }
        event = await accepted(self.TRIGGER, request(body, headers, path="/hooks/github"))
        assert event.id == "72d3162e-cc78-11e3-81ab-4c9367dc0958"
        assert event.type == f"github.{kind}"
        assert event.source == "/hooks/github"
        assert event.trigger == "webhook:/github"
        assert event.time == NOW
        assert not event.minted
        assert event.body == body
        assert event.data == json.loads(body)
        assert event.headers["x-github-event"] == kind
        assert "x-hub-signature-256" not in event.headers

    def test_ten_kinds_are_there(self) -> None:
        assert len(DELIVERIES) == 10

    async def test_every_refusal_says_the_same(self) -> None:
        good = sign(b"{}")
        tries: list[dict[str, Any]] = [
            {},
            {"x-hub-signature-256": ""},
            {"x-hub-signature-256": "sha256=" + "0" * 64},
            {"x-hub-signature-256": [good["x-hub-signature-256"].encode()] * 2},
            {"x-hub-signature-256": good["x-hub-signature-256"].upper()},
            {"x-hub-signature-256": b"\xff" * 5000},
            {"x-hub-signature": "sha1=" + "0" * 40},
        ]
        answers = []
        for headers in tries:
            reply, emit = await post(self.TRIGGER, request(b"{}", headers))
            assert (reply.status, emit.events, emit.rejected) == (401, [], {"unverified": 1})
            answers.append(reply)
        assert len({answer.body for answer in answers}) == 1

    async def test_an_unverified_body_is_not_even_parsed(self) -> None:
        await refused(self.TRIGGER, request(b"[" * 100_000), 401)

    async def test_a_kind_that_is_no_word_is_refused(self) -> None:
        headers = {"x-github-event": "push\u00e9 x", **sign(b"{}")}
        assert (await refused(self.TRIGGER, request(b"{}", headers), 400))["field"]


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


CLOUDEVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "ce-1",
    "source": "https://shop.example/orders",
    "type": "com.example.order",
    "subject": "42",
    "time": "2026-01-31T09:00:00+01:00",
    "traceparent": "00-1-2-03",
}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}


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


class TestIdentity:
    async def test_the_senders_key_is_the_id(self) -> None:
        event = await accepted(webhook("/orders"), request(headers={"Idempotency-Key": "k-1"}))
        assert (event.id, event.minted) == ("k-1", False)

    async def test_a_named_header_comes_first(self) -> None:
        headers = {"X-Delivery": "d-1", "Idempotency-Key": "k-1"}
        trigger = webhook("/orders", id_header="X-Delivery")
        assert (await accepted(trigger, request(headers=headers))).id == "d-1"

    async def test_a_signed_id_is_the_id(self) -> None:
        scheme = hmac(
            "X-Signature",
            template="{id}.{timestamp}.{body}",
            timestamp_header="X-Time",
            id_header="X-Id",
        )
        trigger = webhook("/orders", verify=scheme, secret=secret("HOOK_KEY"))
        stamp = str(int(NOW.timestamp()))
        signature = reference.new(KEY.encode(), f"msg_1.{stamp}.{{}}".encode(), hashlib.sha256)
        headers = {"X-Id": "msg_1", "X-Time": stamp, "X-Signature": signature.hexdigest()}
        assert (await accepted(trigger, request(headers=headers))).id == "msg_1"

    async def test_without_one_an_id_is_minted(self) -> None:
        first = await accepted(webhook("/orders"), request())
        second = await accepted(webhook("/orders"), request())
        assert first.minted
        assert first.id < second.id

    @pytest.mark.parametrize("key", ["x" * 257, b"\xff", [b"a", b"b"], "a\u0085b", "a\u202eb"])
    async def test_an_id_nobody_could_keep_is_400(self, key: Any) -> None:
        document = await refused(webhook("/orders"), request(headers={"idempotency-key": key}), 400)
        assert document["field"] == "idempotency-key"

    async def test_path_parameters_and_the_paths_source(self) -> None:
        inbound = request(path="/hooks/t/acme/ingest", params={"tenant": "acme"})
        event = await accepted(webhook("/t/{tenant}/ingest"), inbound)
        assert event.params == {"tenant": "acme"}
        assert event.source == "/hooks/t/acme/ingest"
        assert event.trigger == "webhook:/t/{tenant}/ingest"
        assert event.type == "turnout.webhook"


class TestStoredHeaders:
    async def test_credentials_are_dropped(self) -> None:
        secrets = ("authorization", "cookie", "proxy-authorization", "x-api-key", "x-gitlab-token")
        headers: dict[str, Any] = {
            **dict.fromkeys(secrets, "hush"),
            "x-kept": "yes",
            "via": [b"a", b"\xe9"],
        }
        event = await accepted(webhook("/orders"), request(headers=headers))
        assert "hush" not in event.headers.values()
        assert event.headers["x-kept"] == "yes"
        assert event.headers["via"] == "a, \u00e9"

    async def test_count_and_size_are_bounded(self) -> None:
        many = {f"x-{n}": "v" for n in range(500)}
        event = await accepted(webhook("/orders"), request(headers=many))
        assert len(event.headers) == MAX_STORED_HEADERS
        large = {f"x-{n}": "v" * 4000 for n in range(60)}
        event = await accepted(webhook("/orders"), request(headers=large))
        assert sum(map(len, event.headers.values())) <= 16 * 1024


class Answering(RecordingEmitter):
    """An emitter that answers as it is told."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__()
        self._receipt = receipt

    async def __call__(
        self, events: Sequence[Event], positions: Any = None, **_more: Any
    ) -> Sequence[Receipt]:
        await super().__call__(events, positions)
        return [self._receipt]


class TestAnswers:
    async def test_202_names_event_runs_and_duplicate(self) -> None:
        emit = RecordingEmitter()
        inbound = request(headers={"idempotency-key": "k"})
        first = await webhook("/orders").receive(inbound, emit)
        again = await webhook("/orders").receive(inbound, emit)
        assert json.loads(first.body) == {"event": "k", "runs": ["run-of-k"], "duplicate": False}
        assert (again.status, json.loads(again.body)["duplicate"]) == (202, True)

    async def test_the_same_id_with_another_body_is_409(self) -> None:
        emit = RecordingEmitter()
        key = {"idempotency-key": "k"}
        await webhook("/orders").receive(request(b"1", key), emit)
        reply = await webhook("/orders").receive(request(b"2", key), emit)
        assert reply.status == 409
        assert json.loads(reply.body)["event"] == "k"

    async def test_data_no_flow_takes_is_422_saying_why(self) -> None:
        refusals = {"bill": "amount: must be a number"}
        emit = Answering(Receipt(event="e", stored=False, refusals=refusals))
        reply = await webhook("/orders").receive(request(), emit)
        assert reply.status == 422
        assert json.loads(reply.body)["refusals"] == refusals

    @pytest.mark.parametrize(
        ("error", "least", "most"),
        [
            (Overloaded("full", retry_after_seconds=20), 15, 30),
            (Overloaded("full", retry_after_seconds=600), 300, 300),
            (Overloaded("full", retry_after_seconds=0), 1, 1),
            (JournalFull("disk full"), 1, 60),
            (JournalBroken("fsync failed"), 1, 60),
        ],
    )
    async def test_what_cannot_be_stored_is_503_to_come_back(
        self, error: TurnoutError, least: int, most: int
    ) -> None:
        emit = RecordingEmitter()
        emit.fail(error)
        seen = set()
        for _ in range(30):
            reply = await webhook("/orders").receive(request(), emit)
            assert reply.status == 503
            seen.add(int(dict(reply.headers)["retry-after"]))
        assert least <= min(seen) <= max(seen) <= most
        if error.args == ("full",) and least != most:
            assert len(seen) > 1, "a crowd would come back as one"


class TestWaiting:
    TRIGGER = webhook("/orders", respond=True)

    async def answer(self, outcome: Outcome | None, query: bytes = b"wait=10s") -> Reply:
        emit = RecordingEmitter()
        if outcome is not None:
            emit.results["run-of-k"] = outcome
        return await self.TRIGGER.receive(
            request(headers={"idempotency-key": "k"}, query=query), emit
        )

    async def test_the_result_is_answered(self) -> None:
        reply = await self.answer(Outcome(state=RunState.SUCCEEDED, result=b'{"receipt": 1}'))
        assert (reply.status, reply.body) == (200, b'{"receipt": 1}')
        assert (await self.answer(Outcome(state=RunState.SUCCEEDED))).body == b"null"

    async def test_a_failed_run_is_500_without_its_message(self) -> None:
        error = RunError(type="ValueError", message="password=hunter2")
        reply = await self.answer(Outcome(state=RunState.FAILED, error=error))
        assert reply.status == 500
        document = json.loads(reply.body)
        assert (document["run"], document["error"]) == ("run-of-k", "ValueError")
        assert b"hunter2" not in reply.body

    async def test_after_the_time_it_is_202(self) -> None:
        assert (await self.answer(None)).status == 202

    async def test_without_wait_nobody_waits(self) -> None:
        reply = await self.answer(Outcome(state=RunState.SUCCEEDED, result=b"1"), query=b"other=1")
        assert reply.status == 202

    async def test_too_many_waiters_is_still_accepted(self) -> None:
        class Full(RecordingEmitter):
            async def result(self, receipt: Receipt, timeout_seconds: float) -> Outcome | None:
                raise Overloaded("too many wait")

        reply = await self.TRIGGER.receive(request(query=b"wait=1s"), Full())
        assert reply.status == 202

    @pytest.mark.parametrize(
        "query", [b"wait", b"wait=", b"wait=10", b"wait=-1s", b"wait=2m", b"wait=%D9%A1s"]
    )
    async def test_a_wait_nobody_can_read_is_400_and_stores_nothing(self, query: bytes) -> None:
        assert (await refused(self.TRIGGER, request(query=query), 400))["field"] == "wait"

    async def test_a_sender_may_have_a_wait_of_its_own(self) -> None:
        event = await accepted(webhook("/orders"), request(query=b"wait=until+monday&n=1"))
        assert event.query == {"wait": "until monday", "n": "1"}

    async def test_our_wait_is_not_the_senders(self) -> None:
        emit = RecordingEmitter()
        await self.TRIGGER.receive(request(query=b"n=1&wait=1s&n=2"), emit)
        assert emit.events[0].query == {"n": ["1", "2"]}

    async def test_a_route_may_answer_every_request(self) -> None:
        trigger = webhook("/orders", respond="5s")
        outcome = Outcome(state=RunState.SUCCEEDED, result=b'{"a": 1}')
        assert (await self.reply(trigger, outcome)).body == b'{"a": 1}'
        assert (await self.reply(trigger, None)).status == 202

    @pytest.mark.parametrize(
        ("respond", "method", "query", "content_type", "body"),
        [
            (True, "GET", b"", "text/plain; charset=utf-8", "grüße".encode()),
            (True, "GET", b"wait=5s", "application/json", '"grüße"'.encode()),
            (True, "POST", b"wait=5s", "application/json", '"grüße"'.encode()),
            ("5s", "POST", b"", "text/plain; charset=utf-8", "grüße".encode()),
        ],
    )
    async def test_a_text_is_answered_as_it_is_unless_wait_asks_for_json(
        self, respond: Any, method: str, query: bytes, content_type: str, body: bytes
    ) -> None:
        trigger = webhook("/orders", respond=respond, methods=("GET", "POST"))
        outcome = Outcome(state=RunState.SUCCEEDED, result='"grüße"'.encode())
        reply = await self.reply(trigger, outcome, method=method, query=query)
        assert (reply.status, reply.content_type, reply.body) == (200, content_type, body)
        assert ("x-content-type-options", "nosniff") in reply.headers or "json" in content_type

    async def reply(self, trigger: WebhookTrigger, outcome: Outcome | None, **sent: Any) -> Reply:
        emit = RecordingEmitter()
        if outcome is not None:
            emit.results["run-of-k"] = outcome
        inbound = request(headers={"idempotency-key": "k"})
        return await trigger.receive(replace(inbound, **sent), emit)


class TestQuery:
    async def test_it_is_kept(self) -> None:
        event = await accepted(webhook("/orders"), request(query=b"a=1&b=x+y%21&a=2&c&d=%C3%BC"))
        assert event.query == {"a": ["1", "2"], "b": "x y!", "c": "", "d": "ü"}
        assert event.data == {}
        assert event.source == "/hooks/orders"

    async def test_many_fields_are_no_reason_to_refuse(self) -> None:
        query = "&".join(f"f{n}=1" for n in range(900)).encode()
        assert len((await accepted(webhook("/orders"), request(query=query))).query) == 900

    async def test_credentials_are_dropped(self) -> None:
        query = b"access_token=hush&API_KEY=hush&a%70ikey=hush&hub.verify_token=kept"
        event = await accepted(webhook("/orders"), request(query=query))
        assert event.query == {"hub.verify_token": "kept"}

    async def test_what_is_no_text_is_400(self) -> None:
        document = await refused(webhook("/orders"), request(query=b"a=%E9"), 400)
        assert document["field"] == "query"

    @pytest.mark.parametrize("data", [None, "form"])
    @pytest.mark.parametrize("content_type", [{}, {"content-type": [b"application/json"]}])
    async def test_a_get_without_a_body_has_it_for_data(
        self, data: Any, content_type: dict[str, list[bytes]]
    ) -> None:
        inbound = request(b"", query=b"hub.mode=subscribe&hub.challenge=1158201444&access_token=x")
        inbound = replace(inbound, method="GET", headers=content_type)
        event = await accepted(webhook("/orders", data=data, methods=("GET",)), inbound)
        assert event.data == {"hub.mode": "subscribe", "hub.challenge": "1158201444"}
        assert event.data == event.query
        assert event.body == b"hub.mode=subscribe&hub.challenge=1158201444"

    async def test_a_get_without_either_has_none(self) -> None:
        inbound = replace(request(b"", query=b"wait=5s"), method="GET")
        trigger = webhook("/orders", respond=True, methods=("GET",))
        assert (await accepted(trigger, inbound)).data is None

    async def test_a_get_with_a_body_has_that(self) -> None:
        inbound = replace(request(b"[1]", query=b"a=1"), method="GET")
        event = await accepted(webhook("/orders", methods=("GET",)), inbound)
        assert (event.data, event.query) == ([1], {"a": "1"})

    async def test_a_cloudevent_has_one_too(self) -> None:
        event = await accepted(
            webhook("/orders"), request(json.dumps(CLOUDEVENT), STRUCTURED, query=b"a=1")
        )
        assert event.query == {"a": "1"}


class TestDeclaring:
    def test_equal_settings_are_one_trigger(self) -> None:
        first = webhook("/orders", verify="github", secret=secret("A"))
        assert first == webhook("/orders", verify="github", secret=[secret("A")])
        assert hash(first) == hash(webhook("/orders", verify="github", secret=[secret("A")]))
        assert first != webhook("/orders", verify="github", secret=secret("B"))
        assert (first.name, first.kind, first.route) == ("webhook:/orders", "webhook", "/orders")
        assert webhook("/orders", name="orders").name == "orders"
        assert isinstance(first, CalledTrigger)

    def test_whether_it_is_verified_is_three_answers(self) -> None:
        assert webhook("/a", verify="github", secret=secret("A")).verified is True
        assert webhook("/a", verify="none").verified is False
        assert webhook("/a").verified is None

    @pytest.mark.parametrize(
        ("trigger", "message"),
        [
            (webhook("orders"), "written like"),
            (webhook("/"), "written like"),
            (webhook("/a//b"), "part of a path"),
            (webhook("/a/"), "part of a path"),
            (webhook("/a b"), "part of a path"),
            (webhook("/a/x{b}"), "part of a path"),
            (webhook("/a/{b-c}"), "must be a name"),
            (webhook("/{a}/{a}"), "stand once"),
            (webhook("/a/../b"), "proxies"),
            (webhook("/a", verify="gihtub"), '"github"'),
            (webhook("/a", verify="github"), "needs a secret"),
            (webhook("/a", secret=secret("A")), "without verify"),
            (webhook("/a", data="yaml"), "json, text"),  # type: ignore[arg-type]  # an author may
            (webhook("/a", methods=()), "methods"),
            (webhook("/a", methods=("BREW",)), "methods"),
            (webhook("/a", max_body=0), "max_body"),
            (webhook("/a", id_header="X Delivery"), "not a header's name"),
            (webhook("/a", id_header=""), "not a header's name"),
            (webhook("/a", verify=5), '"github"'),  # type: ignore[arg-type]  # an author may
            (webhook("/a", secret=None), "never the secret itself"),  # type: ignore[arg-type]
            (webhook("/a", secret="s3cret"), "never the secret itself"),  # type: ignore[arg-type]
            (webhook("/a", respond="0s"), "at most"),
            (webhook("/a", respond="2m"), "at most"),
            (webhook("/a", verify=hmac("not a header"), secret=secret("A")), "header"),
        ],
    )
    def test_what_cannot_work_is_refused_at_load(
        self, trigger: WebhookTrigger, message: str
    ) -> None:
        with pytest.raises(SetupError, match=message):
            trigger.check()

    def test_checking_reveals_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOOK_KEY")
        trigger = webhook("/a", verify="github", secret=secret("HOOK_KEY"))
        trigger.check()
        with pytest.raises(SetupError, match=r"webhook:/a: .*HOOK_KEY"):
            trigger.unlock()

    def test_max_body_is_read_as_a_size(self) -> None:
        assert webhook("/a", max_body="10MiB").max_body_bytes == 10 * 2**20


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

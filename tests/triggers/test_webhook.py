"""Webhooks: real deliveries, ids, what is stored of a request, and what is declared."""

from __future__ import annotations

import asyncio
import hashlib
import hmac as reference
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.support import CHECKOUT
from tests.support.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract
from turnout.service.domain.errors import (
    SetupError,
)
from turnout.service.domain.trigger import CalledTrigger
from turnout.service.governance.secrets import secret
from turnout.service.http.exchange import App
from turnout.service.http.ingest import Ingest
from turnout.service.settings import load
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.signatures import hmac
from turnout.triggers.webhook import MAX_STORED_HEADERS, WebhookTrigger, webhook

from .requests import CLOUDEVENT, KEY, NOW, STRUCTURED, accepted, hook_key, post, refused, request

__all__ = ["hook_key"]  # the fixture


DELIVERIES = {
    file.name.split(".")[0]: file.read_bytes()
    for file in (CHECKOUT / "handlers/examples/deliveries").glob("*.json")
}

SETTINGS = load()


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

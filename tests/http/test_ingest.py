"""The ASGI adapter: which request reaches which trigger, and what never reaches any."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import Emitter, Inbound, Reply
from turnout.service.governance.secrets import secret
from turnout.service.http import exchange, ingest
from turnout.service.http.exchange import App, Message, Receive, Scope, Send
from turnout.service.http.ingest import Ingest, check_exposure
from turnout.service.settings import Settings, load
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.webhook import WebhookTrigger, webhook

SETTINGS = load()


class Rest:
    """A REST application that says what it was asked, and counts how often it was loaded."""

    def __init__(self) -> None:
        self.loaded = 0
        self.scopes: list[Scope] = []

    async def load(self) -> App:
        self.loaded += 1
        await asyncio.sleep(0)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})


class House:
    """An ingest with real webhooks, and a client in front of it."""

    def __init__(
        self,
        *triggers: WebhookTrigger,
        settings: Settings = SETTINGS,
        problems: Callable[[], Sequence[str]] = list,
    ) -> None:
        self.emits = {trigger.name: RecordingEmitter() for trigger in triggers}
        self.rest = Rest()
        self.metrics = Metrics()
        self.app = Ingest(
            self.routes(*triggers),
            settings=settings,
            metrics=self.metrics,
            problems=problems,
            rest=self.rest.load,
        )

    def routes(self, *triggers: WebhookTrigger) -> list[tuple[WebhookTrigger, Emitter]]:
        return [
            (trigger, self.emits.setdefault(trigger.name, RecordingEmitter()))
            for trigger in triggers
        ]

    async def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, client=given.pop("client", ("127.0.0.1", 1)))
        async with httpx.AsyncClient(transport=transport, base_url="http://turnout") as client:
            return await client.request(method, path, **given)


ORDERS = webhook("/orders")


class TestRoutes:
    async def test_a_post_reaches_its_trigger(self) -> None:
        house = House(ORDERS, webhook("/other"))
        answer = await house.ask("POST", "/hooks/orders", json={"a": 1})
        (event,) = house.emits["webhook:/orders"].events
        assert answer.status_code == 202
        assert answer.json() == {
            "event": event.id,
            "runs": [f"run-of-{event.id}"],
            "duplicate": False,
        }
        assert answer.headers["content-type"] == "application/json"
        assert event.data == {"a": 1}
        assert not house.emits["webhook:/other"].events
        assert house.rest.loaded == 0

    @pytest.mark.parametrize(
        ("path", "name", "params"),
        [
            ("/hooks/t/acme/ingest", "webhook:/t/{tenant}/ingest", {"tenant": "acme"}),
            ("/hooks/t/a%2Fb/ingest", "webhook:/t/{tenant}/ingest", {"tenant": "a/b"}),
            ("/hooks/t/gr%C3%BC%C3%9Fe/ingest", "webhook:/t/{tenant}/ingest", {"tenant": "grüße"}),
            ("/hooks/t/all/ingest", "webhook:/t/all/ingest", {}),
            ("/hooks/%6Frders", "webhook:/orders", {}),
            ("/hooks/t/%61ll/ingest", "webhook:/t/all/ingest", {}),
            ("/hooks/t/%7e%61%2f%2Eb/ingest", "webhook:/t/{tenant}/ingest", {"tenant": "~a/.b"}),
        ],
    )
    async def test_parameters_and_the_more_exact_route(
        self, path: str, name: str, params: Mapping[str, str]
    ) -> None:
        house = House(webhook("/t/{tenant}/ingest"), webhook("/t/all/ingest"), ORDERS)
        assert (await house.ask("POST", path, json=1)).status_code == 202
        (event,) = house.emits[name].events
        assert event.params == params
        spelled = {"%6F": "o", "%61": "a", "%7e": "~", "%2f": "%2F", "%2E": "."}
        for written, canonical in spelled.items():
            path = path.replace(written, canonical)
        assert event.source == path

    @pytest.mark.parametrize(
        "path",
        ["/hooks/", "/hooks/nowhere", "/hooks/orders/", "/hooks//orders", "/hooks/ORDERS",
         "/hooks/t//ingest", "/hooks/t/a/b/ingest", "/hooks/t/%FF/ingest", "/hooks/orders%00",
         "/hooks/t/../ingest", "/hooks/t/./ingest", "/hooks/t/..%2Fb/ingest",
         "/hooks/t/a%2F%2Fb/ingest", "/hooks/t/a%00/ingest", "/hooks/t/%1B%5B31m/ingest",
         "/hooks/t/%E2%80%AEa/ingest"],
    )  # fmt: skip
    async def test_another_path_is_404(self, path: str) -> None:
        house = House(webhook("/t/{tenant}/ingest"), ORDERS)
        answer = await house.ask("POST", path, json=1)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert house.rest.loaded == 0

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "TRACE", "BREW"])
    async def test_another_method_is_405_with_allow(self, method: str) -> None:
        house = House(ORDERS)
        answer = await house.ask(method, "/hooks/orders")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "OPTIONS, POST"
        assert answer.headers["content-length"] != "0"
        assert bool(answer.content) == (method != "HEAD")

    async def test_options_says_what_is_allowed(self) -> None:
        house = House(webhook("/orders", methods=("POST", "PUT")))
        answer = await house.ask("OPTIONS", "/hooks/orders")
        assert (answer.status_code, answer.headers["allow"]) == (204, "OPTIONS, POST, PUT")
        assert answer.content == b""

    async def test_a_route_may_take_a_get(self) -> None:
        house = House(webhook("/ping", methods=("GET",)))
        assert (await house.ask("GET", "/hooks/ping")).status_code == 202
        (event,) = house.emits["webhook:/ping"].events
        assert event.data is None

    async def test_replacing_routes_is_seen_by_the_next_request(self) -> None:
        house = House(ORDERS)
        house.app.replace(house.routes(webhook("/new")))
        assert (await house.ask("POST", "/hooks/orders", json=1)).status_code == 404
        assert (await house.ask("POST", "/hooks/new", json=1)).status_code == 202

    async def test_a_missing_secret_refuses_the_start_and_leaves_a_reload_as_it_was(self) -> None:
        signed = webhook("/signed", verify="github", secret=secret("NOT_THERE_AT_ALL"))
        with pytest.raises(SetupError, match="NOT_THERE_AT_ALL"):
            House(signed)
        house = House(ORDERS)
        with pytest.raises(SetupError, match="NOT_THERE_AT_ALL"):
            house.app.replace(house.routes(ORDERS, signed))
        assert (await house.ask("POST", "/hooks/orders", json=1)).status_code == 202


class TestBodies:
    async def test_a_body_over_the_limit_is_413_and_counted(self) -> None:
        house = House(webhook("/orders", max_body="1KiB"))
        within = await house.ask("POST", "/hooks/orders", content=b'"' + b"x" * 1022 + b'"')
        assert within.status_code == 202
        answer = await house.ask("POST", "/hooks/orders", content=b"x" * 1025)
        assert answer.status_code == 413
        assert "1024 bytes" in answer.json()["detail"]
        assert house.emits["webhook:/orders"].rejected == {"too_large": 1}

    async def test_the_services_limit_holds_where_the_route_has_none(self) -> None:
        house = House(ORDERS, settings=SETTINGS.model_copy(update={"max_body_bytes": 10}))
        assert (await house.ask("POST", "/hooks/orders", content=b"x" * 11)).status_code == 413

    async def test_a_body_without_length_is_stopped_at_the_limit(self) -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 1024

        house = House(webhook("/orders", max_body="4KiB"))
        answer = await house.ask("POST", "/hooks/orders", content=endless())
        assert answer.status_code == 413
        assert answer.headers["connection"] == "close"
        assert sent * 1024 <= 4096 + exchange.LINGER_BYTES + 2048

    @pytest.mark.parametrize("length", [b"10737418240", b"9" * 30, b"-1", b"", b"1e3", b"0x10"])
    async def test_a_length_that_is_too_long_or_none_is_refused_unread(self, length: bytes) -> None:
        house = House(ORDERS)
        answers = await raw(house.app, [(b"content-length", length)], [])
        assert answers[0]["status"] == 413
        assert (b"connection", b"close") in answers[0]["headers"]

    async def test_chunks_are_put_together(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for part in (b'{"a"', b": ", b"1}"):
                yield part

        house = House(ORDERS)
        answer = await house.ask("POST", "/hooks/orders", content=chunks())
        assert answer.status_code == 202
        assert house.emits["webhook:/orders"].events[0].body == b'{"a": 1}'

    async def test_a_sender_that_hangs_up_midway_leaves_no_event(self) -> None:
        house = House(ORDERS)
        half: Message = {"type": "http.request", "body": b'{"a"', "more_body": True}
        answers = await raw(house.app, [], [half, {"type": "http.disconnect"}])
        assert answers == []
        assert not house.emits["webhook:/orders"].events


async def raw(
    app: Ingest, headers: list[tuple[bytes, bytes]], messages: list[Message]
) -> list[Message]:
    """Send one POST as a server would, and return the messages sent back."""
    answers: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answers.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/hooks/orders",
        "raw_path": b"/hooks/orders",
        "query_string": b"",
        "headers": headers,
        "client": None,
    }
    await app(scope, receive, send)
    return answers


class TestPages:
    async def test_healthz_says_the_process_is_alive(self) -> None:
        answer = await House().ask("GET", "/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    async def test_readyz_lists_what_is_wrong(self) -> None:
        reasons: list[str] = []
        house = House(problems=lambda: reasons)
        answer = await house.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()) == (
            200,
            {"ready": True, "reasons": [], "warnings": []},
        )
        reasons.append("the journal cannot be written: disk full")
        answer = await house.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()) == (
            503,
            {"ready": False, "reasons": reasons, "warnings": []},
        )

    async def test_metrics_are_prometheus_text(self) -> None:
        house = House(ORDERS)
        house.metrics.events.labels("webhook:/orders", "accepted").inc()
        answer = await house.ask("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert (
            'turnout_events_total{result="accepted",trigger="webhook:/orders"} 1.0' in answer.text
        )
        assert "# TYPE turnout_events_total counter" in answer.text

    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
    async def test_only_reading_is_allowed(self, path: str) -> None:
        house = House()
        head = await house.ask("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        post = await house.ask("POST", path, content=b"x")
        assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")

    async def test_everything_else_loads_the_rest_once(self) -> None:
        house = House(ORDERS)
        paths = ["/", "/api/runs", "/docs", "/hooks", "/healthz/", "/nowhere"]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(house.ask("GET", path)) for path in paths]
        assert [task.result().text for task in asked] == paths
        assert house.rest.loaded == 1

    async def test_the_rest_sees_the_prefix_a_proxy_stripped(self) -> None:
        house = House(settings=SETTINGS.model_copy(update={"root_path": "/turnout"}))
        await house.ask("GET", "/api/runs")
        (scope,) = house.rest.scopes
        assert (scope["root_path"], scope["path"]) == ("/turnout", "/turnout/api/runs")
        assert scope["raw_path"] == b"/turnout/api/runs"


class Echo:
    """A called trigger that remembers whom it was called by."""

    name = "webhook:/orders"
    kind = "webhook"
    route = "/orders"
    max_body_bytes: int | None = None

    def __init__(self) -> None:
        self.clients: list[str | None] = []

    def check(self) -> None:
        return

    async def receive(self, inbound: Inbound, emit: Emitter) -> Reply:
        self.clients.append(inbound.client)
        return Reply(status=202, content_type="text/plain", headers=(("x-extra", "é"),))


class TestProxies:
    @pytest.mark.parametrize(
        ("peer", "forwarded", "client"),
        [
            ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
            ("10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
            ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.1", "203.0.113.9, nonsense", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("203.0.113.1", "6.6.6.6", "203.0.113.1"),
        ],
    )
    async def test_only_a_trusted_proxy_says_who_the_client_is(
        self, peer: str, forwarded: str, client: str
    ) -> None:
        echo = Echo()
        house = House(settings=SETTINGS.model_copy(update={"trusted_proxies": ("10.0.0.0/8",)}))
        house.app.replace([(echo, RecordingEmitter())])
        answer = await house.ask(
            "POST", "/hooks/orders", headers={"x-forwarded-for": forwarded}, client=(peer, 1)
        )
        assert echo.clients == [client]
        assert answer.headers["content-type"] == "text/plain"
        assert answer.headers.raw[-1] == (b"x-extra", b"\xe9")

    def test_a_proxy_that_is_no_address_is_refused(self) -> None:
        with pytest.raises(SetupError, match="TRUSTED_PROXIES"):
            House(settings=SETTINGS.model_copy(update={"trusted_proxies": ("proxy",)}))


class TestExposure:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
    def test_on_loopback_anybody_may_be_let_in(self, host: str) -> None:
        check_exposure([ORDERS], host)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "example.test", "127.1"])
    def test_elsewhere_the_author_says_so(self, host: str) -> None:
        with pytest.raises(SetupError, match=r"webhook:/orders .*verify"):
            check_exposure([ORDERS], host)
        check_exposure([webhook("/orders", verify="none")], host)
        check_exposure([webhook("/orders", verify="github", secret=secret("A"))], host)

    def test_a_trigger_that_does_not_say_counts_as_open(self) -> None:
        with pytest.raises(SetupError):
            check_exposure([Echo()], "0.0.0.0")


async def test_a_hook_needs_no_web_framework() -> None:
    """What answers a hook must not wait for FastAPI, which is most of the start-up time."""
    code = (
        "import sys\n"
        f"import {ingest.__name__}, turnout.service.http.server.server, turnout.triggers.webhook\n"
        "sys.exit(any(name in sys.modules for name in ('fastapi', 'starlette')))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0

"""What a server answers, and how it starts and ends."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
import uvloop

from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import Reply
from turnout.service.http import exchange
from turnout.service.http.clients import Proxies, client_network
from turnout.service.http.exchange import App, Receive, Scope, Send
from turnout.service.http.ingest import Ingest
from turnout.service.http.server.listening import listen
from turnout.service.http.server.server import Server, serve
from turnout.service.telemetry.metrics import Metrics

from .peers import PATIENCE_SECONDS, SETTINGS, Hook, Site, hook, post, serving

__all__ = ["hook"]  # the fixture


class TestAnswers:
    async def test_a_hook_is_accepted_and_the_connection_kept(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            for number in (1, 2, 3):
                await peer.send(post())
                status, headers, body = await peer.answer()
                assert (status, headers["content-type"]) == (202, "application/json")
                assert headers["date"].endswith("GMT")
                assert "server" not in headers
                assert body.startswith(b'{"event":')
                assert len(hook.emit.events) == number

    async def test_pipelined_requests_are_answered_in_order(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            requests = [post(), b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", post(path="/hooks/no")]
            await peer.send(b"".join(requests * 20))
            for _ in range(20):
                assert [(await peer.answer())[0] for _ in range(2)] == [202, 200]
                status, headers, _ = await peer.answer()
                assert (status, headers["connection"]) == (404, "close")
                break
        assert len(hook.emit.events) == 1

    async def test_a_hundred_pipelined_posts_make_a_hundred_events(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post() * 100)
            assert [(await peer.answer())[0] for _ in range(100)] == [202] * 100
        assert len(hook.emit.events) == 100

    async def test_a_body_in_small_pieces(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            for byte in post():
                await peer.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await peer.answer())[0] == 202

    async def test_an_application_that_streams_hears_its_peer_leave(self) -> None:
        heard: list[str] = []
        gone = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            heard.append((await receive())["body"].decode())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            heard.append((await receive())["type"])
            gone.set()

        sock = listen(SETTINGS)
        async with serving(Server(app, sock, SETTINGS), sock) as site:
            peer = await site.connect()
            await peer.send(post(b"{}"))
            await peer.until(b"4\r\ntick\r\n")
            assert heard == ["{}"]
            peer.close()
            await gone.wait()
            assert heard == ["{}", "http.disconnect"]

    @pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.2"])
    @pytest.mark.parametrize("pause", [False, True], ids=["one packet", "two packets"])
    @pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
    async def test_an_offer_to_upgrade_is_an_ordinary_request(
        self, hook: Hook, protocol: str, pause: bool, chunked: bool
    ) -> None:
        offer = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {protocol}")
        whole, body = post(b"[17]", *offer), b"[17]"
        if chunked:
            whole = whole.replace(b"content-length: 4", b"transfer-encoding: chunked")
            whole, body = whole[:-4] + b"4\r\n[17]\r\n0\r\n\r\n", b"4\r\n[17]\r\n0\r\n\r\n"
        async with hook.running() as site:
            peer = await site.connect()
            if pause:
                await peer.send(whole[: -len(body)])
                await asyncio.sleep(0.02)
                whole = body
            await peer.send(whole)
            assert (await peer.answer())[0] == 202
            await peer.send(post())
            assert (await peer.answer())[0] == 202
        assert [event.body for event in hook.emit.events] == [b"[17]", b'{"a": 1}']

    async def test_a_peer_that_closes_its_side_still_gets_its_answers(self, hook: Hook) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post() * 2)
            peer.finish()
            await hook.emit.until(lambda: hook.emit.held == 1)
            hook.emit.release()
            assert (await peer.answer())[0] == 202
            status, headers, _ = await peer.answer()
            assert (status, headers["connection"]) == (202, "close")
            assert await peer.is_closed()
        assert len(hook.emit.events) == 2

    @pytest.mark.parametrize("cut", [3, 40, -1])
    async def test_half_a_request_is_none(self, hook: Hook, cut: int) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post() + post()[:cut])
            peer.finish()
            assert (await peer.answer())[0] == 202
            assert await peer.is_closed()
        assert len(hook.emit.events) == 1

    async def test_a_head_request_is_a_get_without_the_body(self) -> None:
        methods: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            methods.append(scope["method"])
            await exchange.answer(Reply(status=200, body=b"page"), send)

        async def rest() -> App:
            return app

        ingest = Ingest([], settings=SETTINGS, metrics=Metrics(), problems=list, rest=rest)
        sock = listen(SETTINGS)
        async with serving(Server(ingest, sock, SETTINGS), sock) as site:
            peer = await site.connect()
            await peer.send(b"HEAD /docs HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await peer.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert b"content-length: 4" in head
            await peer.send(b"GET /docs HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await peer.answer())[2] == b"page"
        assert methods == ["GET", "GET"]

    async def test_no_memory_for_a_request_is_503(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise MemoryError

        sock = listen(SETTINGS)
        async with serving(Server(app, sock, SETTINGS), sock) as site:
            peer = await site.connect()
            await peer.send(post())
            status, headers, _ = await peer.answer()
            assert (status, headers["retry-after"]) == (503, "5")

    async def test_an_error_nobody_expected_is_500_without_its_words(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise RuntimeError("hunter2")

        sock = listen(SETTINGS)
        async with serving(Server(app, sock, SETTINGS), sock) as site:
            peer = await site.connect()
            await peer.send(post())
            status, _, body = await peer.answer()
            assert status == 500
            assert b"hunter2" not in body
            assert await peer.is_closed()
        assert "hunter2" in caplog.text

    def test_it_runs_on_uvloop_too(self, hook: Hook) -> None:
        async def scene() -> None:
            async with hook.running() as site:
                peer = await site.connect()
                await peer.send(post())
                assert (await peer.answer())[0] == 202
                await peer.send(b"GET / HTTP/9.9\r\n\r\n")
                assert (await peer.answer())[0] == 400
                assert await peer.is_closed()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scene())

    def test_tls(self, tmp_path: Path) -> None:
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        try:
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                 "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate,
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
                check=True, capture_output=True,
            )  # fmt: skip
        except FileNotFoundError:
            pytest.skip("no openssl command to make a certificate with")
        secure = Hook(SETTINGS.model_copy(update={"tls_certificate": certificate, "tls_key": key}))
        trusting = ssl.create_default_context(cafile=str(certificate))

        async def scene() -> None:
            async with secure.running() as site:
                peer = await site.connect(trusting)
                await peer.send(post())
                assert (await peer.answer())[0] == 202
                peer.close()

        asyncio.run(scene())


class TestClients:
    @pytest.mark.parametrize(
        ("peer", "forwarded", "client"),
        [
            ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
            ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
            ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
            ("10.0.0.1", "nonsense", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ],
    )
    def test_a_trusted_proxy_says_whose_request_it_is(
        self, peer: str, forwarded: str, client: str
    ) -> None:
        headers = {"x-forwarded-for": [forwarded.encode()]}
        assert Proxies(["10.0.0.0/8"]).client((peer, 4711), headers) == client

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("203.0.113.7", "203.0.113.8", False),
            ("::ffff:203.0.113.7", "203.0.113.7", True),
            ("2001:db8::1", "2001:db8::ffff:2", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("fe80::1%eth0", "fe80::2", True),
        ],
    )
    def test_one_client_is_an_address_or_what_it_may_choose_from(
        self, one: str, other: str, same: bool
    ) -> None:
        assert (client_network(one) == client_network(other)) is same


class TestTheEnd:
    async def test_stopping_refuses_the_new_and_finishes_what_is_in_flight(
        self, hook: Hook
    ) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            idle, busy = await site.connect(), await site.connect()
            await idle.send(post(path="/hooks/orders?not=%E9UTF-8"))
            assert (await idle.answer())[0] == 400
            await busy.send(post())
            await hook.emit.until(lambda: hook.emit.held == 1)
            site.server.stop()
            assert await idle.is_closed()
            with pytest.raises(ConnectionError):
                await site.connect()
            hook.emit.release()
            status, headers, _ = await busy.answer()
            assert (status, headers["connection"]) == (202, "close")
            assert await busy.is_closed()

    async def test_stopping_waits_no_longer_than_its_bound(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        hook = await asyncio.to_thread(lambda: Hook(drain_seconds=0.1))
        hook.emit.hold()
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post())
            await hook.emit.until(lambda: hook.emit.held == 1)
            site.server.stop()
            assert await peer.is_closed()
        assert not hook.emit.events
        assert caplog.records == []

    async def test_cancelling_ends_it_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        started = asyncio.Event()
        hook = await asyncio.to_thread(lambda: Hook(started=started.set))
        hook.emit.hold()
        server, sock = hook.server, hook.sock
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(server.run())
            async with asyncio.timeout(PATIENCE_SECONDS):
                await started.wait()
                peer = await Site(server, sock.getsockname()[1]).connect()
                await peer.send(post())
                await hook.emit.until(lambda: hook.emit.held == 1)
                task.cancel()
                assert await peer.is_closed()
                await asyncio.wait([task])
            peer.close()
        assert task.cancelled()
        assert caplog.records == []

    async def test_serve_says_when_it_has_started(self, hook: Hook) -> None:
        started = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError("nobody asks")

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(serve(app, hook.sock, SETTINGS, started=started.set))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await started.wait()
            task.cancel()


class TestListening:
    def test_a_taken_port_names_the_port_and_the_fix(self) -> None:
        first = listen(SETTINGS)
        port = first.getsockname()[1]
        with first, pytest.raises(SetupError, match=rf"port {port} .* --port"):
            listen(SETTINGS.model_copy(update={"port": port}))

    @pytest.mark.parametrize("host", ["no such host", "203.0.113.7", "x" * 300])
    def test_an_address_that_is_not_ours_names_the_fix(self, host: str) -> None:
        with pytest.raises(SetupError, match="--host"):
            listen(SETTINGS.model_copy(update={"host": host}))

    def test_tls_files_that_cannot_be_used_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError("nobody asks")

        with listen(SETTINGS) as sock:
            for certificate in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
                with pytest.raises(SetupError, match="TLS"):
                    Server(app, sock, SETTINGS.model_copy(update={"tls_certificate": certificate}))
            with pytest.raises(SetupError, match="TLS_CERTIFICATE"):
                Server(app, sock, SETTINGS.model_copy(update={"tls_key": tmp_path / "key.pem"}))

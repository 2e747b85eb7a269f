"""The HTTP server against raw sockets: what it answers, whom it lets go, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import Reply
from turnout.service.http import exchange
from turnout.service.http.clients import Proxies, client_network
from turnout.service.http.exchange import App, Receive, Scope, Send
from turnout.service.http.ingest import Ingest
from turnout.service.http.server import connection
from turnout.service.http.server.server import Server, listen, serve
from turnout.service.settings import Settings, load
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.webhook import webhook

SETTINGS = load(port=0)
PATIENCE_SECONDS = 5.0


class Peer:
    """The other end: writes bytes as they are, reads what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next answer's status, headers and body."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.strip().split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
            }
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body

    async def until(self, text: bytes) -> bytes:
        """Read up to `text`, which comes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._reader.readuntil(text)

    async def is_closed(self) -> bool:
        """Wait until the server has closed; False when it sends something more instead."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self._reader.read(1) == b""
            except ConnectionResetError:
                return True

    def finish(self) -> None:
        """Close this side only."""
        self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


class Site:
    """A running server and its address."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self._peers: list[Peer] = []

    async def connect(
        self, tls: ssl.SSLContext | None = None, *, source: str = "127.0.0.1"
    ) -> Peer:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=tls, local_addr=(source, 0)
        )
        self._peers.append(Peer(reader, writer))
        return self._peers[-1]

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


@asynccontextmanager
async def serving(server: Server, sock: socket.socket) -> AsyncIterator[Site]:
    """Run a server until exit; stop it and wait for its end."""
    port = sock.getsockname()[1]
    site = Site(server, port)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(4 * PATIENCE_SECONDS):
        task = tasks.create_task(server.run())
        try:
            yield site
        finally:
            site.close()
            server.stop()
            await asyncio.wait([task])


async def nothing() -> App:
    raise AssertionError("nothing here is for the REST application")


class Hook:
    """A server with one webhook, /hooks/orders, and a socket for it."""

    def __init__(
        self,
        settings: Settings = SETTINGS,
        drain_seconds: float = 5.0,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.emit = RecordingEmitter()
        ingest = Ingest(
            [(webhook("/orders", max_body="64KiB"), self.emit)],
            settings=settings,
            metrics=Metrics(),
            problems=list,
            rest=nothing,
        )
        self.sock = listen(settings)
        self.server = Server(
            ingest, self.sock, settings, started=started, drain_seconds=drain_seconds
        )

    def running(self) -> AbstractAsyncContextManager[Site]:
        return serving(self.server, self.sock)


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every deadline a fraction of a second."""
    for name, seconds in (("HEADERS", 0.2), ("BODY", 0.2), ("WRITE", 0.2), ("LINGER", 0.1)):
        monkeypatch.setattr(connection, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(exchange, "LINGER_SECONDS", 0.1)


def post(body: bytes = b'{"a": 1}', *headers: str, path: str = "/hooks/orders") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


CHUNKED = post().replace(b"content-length: 8", b"transfer-encoding: chunked")[:-8]
"""The head of a request whose body comes in chunks."""


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


class TestBounds:
    @pytest.mark.parametrize(
        ("request_line", "headers", "status"),
        [
            ("POST /hooks/" + "x" * 9000, (), 414),
            ("GET /?" + "x=1&" * 3000, (), 414),
            ("GET /healthz", ("x: " + "y" * 33_000,), 431),
            ("GET /healthz", tuple(f"x-{n}: y" for n in range(101)), 431),
            ("GET /healthz", ("x: " + "y" * 1_000_000,), 431),
        ],
    )
    async def test_a_head_out_of_bounds_is_refused_and_closed(
        self,
        hook: Hook,
        request_line: str,
        headers: tuple[str, ...],
        status: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            lines = [f"{request_line} HTTP/1.1", "host: x", *headers, "", ""]
            await peer.send("\r\n".join(lines).encode())
            answer = await peer.answer()
            assert (answer[0], answer[1]["connection"]) == (status, "close")
            assert b"at most" in answer[2]
            assert await peer.is_closed()
        assert not caplog.records

    async def test_a_head_within_bounds_is_taken(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post(b"{}", "x: " + "y" * 30_000))
            assert (await peer.answer())[0] == 202
            await peer.send(post(b"{}", *(f"x-{n}: y" for n in range(98))))
            assert (await peer.answer())[0] == 202

    @pytest.mark.parametrize(
        "start", [b"GET /" + b"x" * 60_000, b"GET / HTTP/1.1\r\nx: " + b"y" * 60_000]
    )
    async def test_a_head_without_end_is_cut_off(self, hook: Hook, start: bytes) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(start + b"x" * 60_000)
            assert (await peer.answer())[0] in (414, 431)

    @pytest.mark.parametrize(
        "malformed",
        [
            post().replace(b"content-length: 8", b"content-length: 8\r\ncontent-length: 9"),
            post().replace(b"content-length: 8", b"content-length: 8, 9"),
            post().replace(b"content-length: 8", b"content-length: -1"),
            post(b"{}", "transfer-encoding: chunked"),
            post().replace(b"host: x\r\n", b""),
            post(b"{}", "Host: y"),
            post().replace(b"host: x", b"host: x/y"),
            post().replace(b"/hooks", b"ftp://x/hooks"),
            post()
            .replace(b"HTTP/1.1", b"HTTP/1.0")
            .replace(b"content-length: 8", b"transfer-encoding: chunked"),
            CHUNKED + b"zz\r\n",
            post().replace(b"host: x", b"host : x"),
            post().replace(b"host: x", b"host: x\x00y"),
            post().replace(b"HTTP/1.1", b"HTTP/1.1.1"),
            b"GET http://x HTTP/1.1\r\nhost: x\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /healthz\r\n\r\n",
        ],
    )
    async def test_bad_grammar_is_400_and_closed(self, hook: Hook, malformed: bytes) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(malformed)
            assert (await peer.answer())[0] == 400
            assert await peer.is_closed()
        assert not hook.emit.events

    @pytest.mark.parametrize("coding", ["gzip, chunked", "xchunked", "identity"])
    async def test_another_coding_of_the_body_is_501(self, hook: Hook, coding: str) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(CHUNKED.replace(b"chunked", coding.encode()) + b"2\r\n{}\r\n0\r\n\r\n")
            assert (await peer.answer())[0] == 501
            assert await peer.is_closed()
        assert not hook.emit.events

    @pytest.mark.parametrize(
        ("start", "more"),
        [
            (b"0\r\n", b"a:b\r\n" * 1000),
            (b"0\r\na:", b"x" * 8000),
            (b"2;a=", b"x" * 8000),
        ],
        ids=["trailers", "a trailer", "a chunk extension"],
    )
    async def test_a_body_without_end_beside_its_data_is_cut_off(
        self, hook: Hook, start: bytes, more: bytes
    ) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(CHUNKED + start)
            for _ in range(10):
                await peer.send(more)
            assert (await peer.answer())[0] == 431
            assert await peer.is_closed()
        assert not hook.emit.events

    @pytest.mark.parametrize("pause", [False, True], ids=["one packet", "two packets"])
    async def test_a_trailer_is_no_header(self, hook: Hook, pause: bool) -> None:
        trailer = b"0\r\nIdempotency-Key: forged\r\nX: y\r\n\r\n"
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(CHUNKED + b"2\r\n{}\r\n" + (b"" if pause else trailer))
            if pause:
                await asyncio.sleep(0.02)
                await peer.send(trailer)
            assert (await peer.answer())[0] == 202
        (event,) = hook.emit.events
        assert event.id != "forged"
        assert "x" not in event.headers

    async def test_ten_gibibytes_are_refused_unread(self, hook: Hook, hasty: None) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post().replace(b"content-length: 8", b"content-length: 10737418240"))
            assert (await peer.answer())[0] == 413
            assert await peer.is_closed()
        assert hook.emit.rejected == {"too_large": 1}

    async def test_a_refusal_reaches_a_peer_that_goes_on_sending(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post(b"x" * 2_000_000))
            assert (await peer.answer())[0] == 413

    async def test_a_packed_body_is_refused(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post(b"\x1f\x8b" + b"\x00" * 1000, "content-encoding: gzip"))
            assert (await peer.answer())[0] == 415

    async def test_expect_is_met_only_for_what_will_be_read(self, hook: Hook, hasty: None) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            head, body = post(b"{}", "expect: 100-continue")[:-2], b"{}"
            await peer.send(head)
            assert (await peer.answer())[0] == 100
            await peer.send(body)
            assert (await peer.answer())[0] == 202
            refused = (
                post(b"x" * 70_000, "expect: 100-continue")[:-70_000],
                post(b"{}", "expect: 100-continue", path="/hooks/no")[:-2],
            )
            for head, status in zip(refused, (413, 404), strict=True):
                peer = await site.connect()
                await peer.send(head)
                assert (await peer.answer())[0] == status
                assert await peer.is_closed()

    async def test_a_full_house_says_so_but_still_says_it_is_alive(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            monkeypatch.setattr(hook.server.peers, "most", 8)
            for _ in range(8):
                await (await site.connect()).send(post())
            await hook.emit.until(lambda: hook.emit.held == 8)
            late = await site.connect()
            await late.send(post())
            status, headers, _ = await late.answer()
            assert (status, headers["retry-after"]) == (503, "5")
            assert await late.is_closed()
            late = await site.connect()
            await late.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await late.answer())[0] == 200
            assert await late.is_closed()
            hook.emit.release()

    @pytest.mark.parametrize(
        ("most", "share", "proxies"), [(8, 100, []), (100, 8, []), (8, 1, ["127.0.0.0/8"])]
    )
    async def test_who_only_holds_connections_takes_nobodys_place(
        self, monkeypatch: pytest.MonkeyPatch, most: int, share: int, proxies: list[str]
    ) -> None:
        hook = await asyncio.to_thread(
            lambda: Hook(SETTINGS.model_copy(update={"trusted_proxies": proxies}))
        )
        async with hook.running() as site:
            monkeypatch.setattr(hook.server.peers, "most", most)
            monkeypatch.setattr(hook.server.peers, "share", share)
            idle = [await site.connect() for _ in range(8)]
            for _ in range(8):
                late = await site.connect()
                await late.send(post())
                assert (await late.answer())[0] == 202
            assert all([await peer.is_closed() for peer in idle[:7]])
        assert len(hook.emit.events) == 8

    async def test_a_client_beyond_its_share_waits_and_others_do_not(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            monkeypatch.setattr(hook.server.peers, "share", 2)
            for _ in range(2):
                await (await site.connect()).send(post())
            await hook.emit.until(lambda: hook.emit.held == 2)
            late = await site.connect()
            assert await late.is_closed()  # a margin of an eighth of two is none
            other = await site.connect(source="127.0.0.2")
            await other.send(post())
            await hook.emit.until(lambda: hook.emit.held == 3)
            hook.emit.release()
            assert (await other.answer())[0] == 202


@pytest.mark.usefixtures("hasty")
class TestDeadlines:
    @pytest.mark.parametrize(
        ("start", "answer"),
        [
            (b"", None),
            (b"POST /hooks/orders HTT", 408),
            (b"POST /hooks/orders HTTP/1.1\r\nhost: x\r\n", 408),
            (post()[:-1], 408),
            (
                post().replace(b"content-length: 8", b"transfer-encoding: chunked")[:-8]
                + b"8\r\n{",
                408,
            ),
            (b"\r\n\r\n", 408),
        ],
    )
    async def test_a_peer_that_falls_silent_is_let_go(
        self, hook: Hook, start: bytes, answer: int | None
    ) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(start)
            if answer is not None:
                assert (await peer.answer())[0] == answer
            assert await peer.is_closed()
        assert not hook.emit.events

    @pytest.mark.parametrize("head", [True, False], ids=["head", "body"])
    async def test_one_byte_at_a_time_does_not_hold_the_line(self, hook: Hook, head: bool) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(b"GET / HTTP/1.1\r\n" if head else post(b"x" * 9000)[:-9000])
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(site.server.peers):
                    await peer.send(b"x")
                    await asyncio.sleep(0.01)

    async def test_a_slow_but_steady_body_is_waited_for(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "BODY_BYTES_PER_SECOND", 20)
        async with hook.running() as site:
            peer = await site.connect()
            body = b'"' + b"x" * 58 + b'"'
            whole = post(body)
            await peer.send(whole[: -len(body)])
            began = asyncio.get_running_loop().time()
            for byte in body:
                await peer.send(bytes([byte]))
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - began > 2 * connection.BODY_SECONDS
            assert (await peer.answer())[0] == 202

    async def test_an_idle_connection_is_closed_without_a_word(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "IDLE_SECONDS", 0.2)
        hook = await asyncio.to_thread(Hook)
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post())
            assert (await peer.answer())[0] == 202
            assert await peer.is_closed()

    async def test_stray_line_ends_do_not_keep_an_idle_connection(self, hook: Hook) -> None:
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post())
            assert (await peer.answer())[0] == 202
            await peer.send(b"\r\n")
            assert (await peer.answer())[0] == 408
            assert await peer.is_closed()

    async def test_a_slow_emit_is_no_slow_peer(self, hook: Hook) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post())
            await hook.emit.until(lambda: hook.emit.held == 1)
            await asyncio.sleep(2 * connection.BODY_SECONDS)  # the very thing under test
            hook.emit.release()
            assert (await peer.answer())[0] == 202

    async def test_a_peer_that_does_not_read_is_let_go(self) -> None:
        sent = asyncio.Event()

        async def flood(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent.set()

        sock = await asyncio.to_thread(listen, SETTINGS)
        server = Server(flood, sock, SETTINGS)
        async with serving(server, sock) as site:
            peer = await site.connect()
            await peer.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(PATIENCE_SECONDS):
                await sent.wait()
                await site.server.peers.emptied.wait()


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


class TestOwedAnswers:
    async def test_what_comes_after_never_takes_an_answers_place(self, hook: Hook) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post() + b"NONSENSE\r\n\r\n")
            await hook.emit.until(lambda: hook.emit.held == 1)
            hook.emit.release()
            assert [(await peer.answer())[0] for _ in range(2)] == [202, 400]
            assert await peer.is_closed()
        assert len(hook.emit.events) == 1

    async def test_nor_does_a_broken_body_behind_it(self, hook: Hook) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post() * 2 + CHUNKED + b"zz\r\n")
            await hook.emit.until(lambda: hook.emit.held == 1)
            hook.emit.release()
            assert [(await peer.answer())[0] for _ in range(3)] == [202, 202, 400]
            assert await peer.is_closed()
        assert len(hook.emit.events) == 2

    async def test_a_peer_that_hangs_up_loses_the_answer_not_the_event(self, hook: Hook) -> None:
        hook.emit.hold()
        async with hook.running() as site:
            peer = await site.connect()
            await peer.send(post())
            await hook.emit.until(lambda: hook.emit.held == 1)
            peer.close()
            hook.emit.release()
            await hook.emit.stored(1)


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

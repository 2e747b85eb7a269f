"""Peers that are slow or leave: who is let go, and which answers are still owed."""

from __future__ import annotations

import asyncio

import pytest

from turnout.service.http.exchange import Receive, Scope, Send
from turnout.service.http.server import connection
from turnout.service.http.server.listening import listen
from turnout.service.http.server.server import Server

from .peers import CHUNKED, PATIENCE_SECONDS, SETTINGS, Hook, hasty, hook, post, serving

__all__ = ["hasty", "hook"]  # fixtures


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

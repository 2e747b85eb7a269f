"""What a peer may send and hold: anything beyond is refused or cut off."""

from __future__ import annotations

import asyncio

import pytest

from .peers import CHUNKED, SETTINGS, Hook, hasty, hook, post

__all__ = ["hasty", "hook"]  # fixtures


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

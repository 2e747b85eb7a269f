"""The reader of HTTP requests: the same bytes mean the same, however packets cut them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.service.http.server.request_parser import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    Refused,
    RequestParser,
)

POST = b"POST /hooks/orders?x=1 HTTP/1.1\r\nhost: x\r\n"
SIZED = POST + b"content-length: 5\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n"
OFFER = b"connection: upgrade\r\nupgrade: h2c\r\n"

Read = tuple[bytes, dict[bytes, bytes], bytes]


def read(pieces: Iterable[bytes]) -> list[Read | int]:
    """Return the path, headers and body of every request, and the status of what is refused."""
    reader, found = RequestParser(), list[Read | int]()
    head, body = None, b""
    try:
        for piece in pieces:
            reader.feed(piece)
            while head is not None or (head := reader.head()) is not None:
                body += reader.body()
                if not reader.is_whole:
                    break
                found.append((head.path, dict(head.headers), body))
                head, body = None, b""
    except Refused as refused:
        found.append(refused.status)
    return found


def cut(data: bytes) -> Iterable[list[bytes]]:
    """Return the ways to cut a message in two, and byte by byte."""
    yield [bytes([byte]) for byte in data]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


WHOLE = {
    "sized": (SIZED + b"\r\nhello", [b"hello"]),
    "nothing": (POST + b"\r\n", [b""]),
    "a blank behind a value": (POST + b"content-length: 5 \t\r\n\r\nhello", [b"hello"]),
    "an offer to upgrade": (SIZED + OFFER + b"\r\nhello", [b"hello"]),
    "an offer, chunked": (CHUNKED + OFFER + b"\r\n5\r\nhello\r\n0\r\n\r\n", [b"hello"]),
    "chunks": (CHUNKED + b"\r\n3\r\nhel\r\n02\r\nlo\r\n000\r\n\r\n", [b"hello"]),
    "an extension": (CHUNKED + b'\r\n5;a="b;c"\r\nhello\r\n0;z\r\n\r\n', [b"hello"]),
    "trailers": (CHUNKED + b"\r\n5\r\nhello\r\n0\r\nA: b\r\nHost: y\r\n\r\n", [b"hello"]),
    "empty lines before": (b"\r\n\r\n" + SIZED + b"\r\nhello", [b"hello"]),
    "three in a row": (
        SIZED + b"\r\nfirst" + CHUNKED + b"\r\n6\r\nsecond\r\n0\r\nA: b\r\n\r\n" + POST + b"\r\n",
        [b"first", b"second", b""],
    ),
    "a line end in the data": (SIZED + b"\r\n\r\n\r\n\n" + POST + b"\r\n", [b"\r\n\r\n\n", b""]),
}  # fmt: skip


@pytest.mark.parametrize(("data", "bodies"), WHOLE.values(), ids=WHOLE.keys())
def test_a_request_is_the_same_however_it_is_cut(data: bytes, bodies: list[bytes]) -> None:
    whole = read([data])
    assert [each if isinstance(each, int) else each[2] for each in whole] == bodies
    for each in whole:
        assert not isinstance(each, int)
        assert each[0] == b"/hooks/orders"
        assert b"a" not in each[1]
        assert each[1][b"host"] == b"x"
    for pieces in cut(data):
        assert read(pieces) == whole


BROKEN = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (SIZED + b"Host: x\r\n\r\n", 400),
    "a host that is none": (b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
    "a scheme": (SIZED.replace(b"/hooks", b"ftp://x/hooks") + b"\r\n", 400),
    "a tunnel": (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "both framings": (SIZED + b"transfer-encoding: chunked\r\n\r\n", 400),
    "two lengths": (SIZED + b"content-length: 5\r\n\r\n", 400),
    "a coding": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n", 501),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no size": (CHUNKED + b"\r\n\r\n", 400),
    "a size that is none": (CHUNKED + b"\r\nz\r\n", 400),
    "a negative size": (CHUNKED + b"\r\n-5\r\n", 400),
    "a size past all bounds": (CHUNKED + b"\r\n" + b"f" * 16 + b"\r\n", 400),
    "a blank before the size": (CHUNKED + b"\r\n 5\r\n", 400),
    "a line end in an extension": (CHUNKED + b"\r\n5;a\nb\r\n", 400),
    "data past its size": (CHUNKED + b"\r\n5\r\nhello!\r\n", 400),
    "a bare line end behind data": (CHUNKED + b"\r\n5\r\nhello\n0\r\n\r\n", 400),
    "bare line ends": (CHUNKED + b"\r\n5\nhello\n0\n\n", 400),
    "a trailer that is none": (CHUNKED + b"\r\n0\r\nno colon\r\n\r\n", 400),
    "a folded trailer": (CHUNKED + b"\r\n0\r\nA: b\r\n c\r\n\r\n", 400),
    "too many trailers": (CHUNKED + b"\r\n0\r\n" + b"a:\r\n" * (MAX_HEADERS - 1), 431),
    "too many headers": (SIZED + b"a:\r\n" * (MAX_HEADERS - 1) + b"\r\n", 431),
}


@pytest.mark.parametrize(("data", "status"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_refused_is_refused_however_it_is_cut(data: bytes, status: int) -> None:
    assert read([data]) == [status]
    for pieces in cut(data):
        assert read(pieces) == [status]


@pytest.mark.parametrize("size", [1, 100, 60_000, 10**6])
@pytest.mark.parametrize(
    "start",
    [
        POST + b"a: ",
        SIZED + b"x" * 40,
        CHUNKED + b"\r\n5;a=",
        CHUNKED + b"\r\n5\r\nhello\r\n0\r\nA: ",
    ],
    ids=["a header", "a header's name", "an extension", "a trailer"],
)
def test_nothing_is_read_without_end(start: bytes, size: int) -> None:
    piece = b"x" * size
    assert read([start, *[piece] * (1 + 50_000 // size)]) == [431]


def test_a_url_without_end_is_414() -> None:
    assert read([b"GET /", *[b"x" * 100] * 100]) == [414]


def test_what_fits_the_bound_of_headers_may_be_spent_anywhere() -> None:
    left = MAX_HEADER_BYTES - len(b"hostxtransfer-encodingchunked")
    for data, last in (
        (CHUNKED + b"\r\n0;" + b"x" * (left - 1), b"\r\n\r\n"),
        (CHUNKED + b"\r\n0\r\na:" + b"x" * (left - 2), b"\r\n\r\n"),
        (CHUNKED + b"a:" + b"x" * (left - 1), b"\r\n\r\n0\r\n\r\n"),
    ):
        for pieces in ([data + last], [data, last], [data + last[:1], last[1:]]):
            assert len(read(pieces)) == 1
            assert not isinstance(read(pieces)[0], int)
        assert read([data + b"x" + last]) == [431]


@settings(max_examples=300, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 20), min_size=1),
    cuts=st.lists(st.integers(1, 60)),
)
def test_any_body_in_any_chunks_and_any_packets(
    bodies: list[bytes], sizes: list[int], cuts: list[int]
) -> None:
    data = b"".join(CHUNKED + b"\r\n" + chunked(body, sizes) for body in bodies)
    pieces = []
    for size in cuts:
        pieces.append(data[:size])
        data = data[size:]
    found = read([*pieces, data])
    assert [each if isinstance(each, int) else each[2] for each in found] == bodies


def chunked(body: bytes, sizes: list[int]) -> bytes:
    coded = b""
    for index in range(len(body) + 1):
        size = sizes[index % len(sizes)]
        piece, body = body[:size], body[size:]
        if not piece:
            break
        coded += b"%x;n=%d\r\n%b\r\n" % (len(piece), index, piece)
    return coded + b"0\r\nA: b\r\n\r\n"


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), head=st.sampled_from([b"", SIZED, CHUNKED, CHUNKED + b"\r\n"]))
def test_any_bytes_are_read_or_refused(data: bytes, head: bytes) -> None:
    for each in read([head + data]):
        assert not isinstance(each, int) or each in (400, 414, 431, 501)

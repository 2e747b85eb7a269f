"""The parser of HTTP/1.1 requests: bytes in as they arrive, heads and bodies out.

httptools parses heads; the framing of bodies is read here, so that one set of bounds holds in
every part of a message: chunk extensions and trailers count as headers. The result depends on the
bytes alone, not on packet boundaries. An upgrade is not accepted, so a request that offers one is
an ordinary request with a body (RFC 9110 section 7.8). Trailers are checked and dropped: they may
be merged into headers only where their definition allows it (section 6.5.1).

Not here: deadlines and answers (`connection`), the limit of a body (`exchange`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain

import httptools

MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100
_MAX_HEAD_BYTES = MAX_URL_BYTES + MAX_HEADER_BYTES + 1024
"""A whole head as it is sent: the bounds above, and what stands between the parts."""

_MAX_SIZE_CHARACTERS = 16  # of a chunk: 15 digits, and a CR that waits for its LF

_HOST = re.compile(rb"[\w.~!$&'()*+,;=:%\[\]-]*")  # RFC 3986 section 3.2, without user and password
_PLAIN_CHUNK = re.compile(rb"([1-9a-fA-F][0-9a-fA-F]{0,14})\r\n")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})(;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*")


class Refused(Exception):
    """Raised when a request is refused, with the status to answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class Head:
    """The request line and headers of a request."""

    method: str
    path: bytes
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    expects_continue: bool


class RequestParser:
    """Reads the requests of one connection, one after the other.

    `feed` it bytes; call `head` until it returns one, then `body` until `is_whole`. Bytes after
    that are held (`holds_more`) until the next call of `head`.
    """

    def __init__(self) -> None:
        self.is_whole = True
        self._held = b""
        self._head_bytes = 0  # of the head being read
        self._head_end = b""  # its last three bytes: the blank line may come in pieces
        self._body: _Sized | _Chunks
        self._head: Head | None = None
        self._refusal: Refused | None = None

    def _begin(self) -> None:
        """Start a new request: each has its own parser, which no body can confuse."""
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._head = None
        self._refusal = None

    def feed(self, data: bytes) -> None:
        """Take what the peer sent."""
        self._held = self._held + data if self._held else data

    @property
    def holds_more(self) -> bool:
        """Whether bytes have come that nothing has read yet."""
        return bool(self._held)

    # ---- the head

    def head(self) -> Head | None:
        """Return the head of the next request, or None until it is complete."""
        held = self._held
        if not self._head_bytes:
            if held[:1] in b"\r\n":  # an empty line before a request (RFC 9112 section 2.2)
                held = held.lstrip(b"\r\n")
            if not held:
                self._held = b""
                return None
            self._begin()
        seam = len(self._head_end)
        found = (self._head_end + held if seam else held).find(b"\r\n\r\n")
        end = len(held) if found < 0 else found + 4 - seam
        allowed = _MAX_HEAD_BYTES - self._head_bytes
        self._parse(held[: min(end, allowed)])
        if end > allowed:
            raise Refused(431)
        if found < 0:
            self._head_bytes += end
            self._head_end = (self._head_end + held)[-3:]
            self._held = b""
            return None
        self._held = held[end:]
        if seam or self._head_bytes:
            self._head_bytes, self._head_end = 0, b""
        if self._head is None:
            raise Refused(400)
        return self._head

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # not accepted; the head is parsed all the same
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, MemoryError):
                raise Refused(503) from None
            raise self._refusal or Refused(400) from None

    def _refuse(self, status: int) -> Refused:
        """Remember why a parser callback raises: the parser does not pass the reason on."""
        self._refusal = Refused(status)
        return self._refusal

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            raise self._refuse(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, without the blanks around its value (RFC 9110 section 5.5)."""
        self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Check the head and find out how its body is framed."""
        headers = self._headers
        values = dict(headers)
        if len(values) < len(headers):
            self._refuse_repeated()
        self._header_bytes = sum(map(len, chain.from_iterable(headers)))
        if self._header_bytes > MAX_HEADER_BYTES or len(headers) > MAX_HEADERS:
            raise self._refuse(431)
        version = self._parser.get_http_version()
        method = self._parser.get_method().decode("ascii")
        if version not in ("1.1", "1.0") or method == "CONNECT":  # 0.9 has no headers
            raise self._refuse(400)
        host = values.get(b"host", b"" if version == "1.0" else None)
        if host is None or not _HOST.fullmatch(host):
            raise self._refuse(400)
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            raise self._refuse(400) from None
        if not url.path or url.schema not in (None, b"http", b"https"):
            raise self._refuse(400)
        self._body = body = self._framed(version, values)
        self.is_whole = body.is_whole
        self._head = Head(
            method,
            url.path,
            url.query or b"",
            version,
            headers,
            version == "1.1" and self._parser.should_keep_alive(),
            b"expect" in values and values[b"expect"].lower() == b"100-continue",
        )

    def _refuse_repeated(self) -> None:
        """Refuse a head that has a header twice which the parser needs."""
        for name in _NEEDED:
            if sum(each == name for each, _ in self._headers) > 1:
                raise self._refuse(400)

    def _framed(self, version: str, values: dict[bytes, bytes]) -> _Sized | _Chunks:
        if b"transfer-encoding" not in values:
            return _Sized(int(values.get(b"content-length", b"0")))
        if version != "1.1":  # RFC 9112 section 6.1
            raise self._refuse(400)
        if values[b"transfer-encoding"].lower() != b"chunked":
            raise self._refuse(501)
        return _Chunks(len(self._headers), self._header_bytes)

    # ---- the body

    def body(self) -> bytes:
        """Return the part of the body that arrived since the last call; then check `is_whole`."""
        if self.is_whole:
            return b""
        content, self._held = self._body.take(self._held)
        self.is_whole = self._body.is_whole
        return content


_NEEDED = (b"host", b"content-length", b"transfer-encoding", b"expect")
"""Headers the parser needs; none may be sent twice."""


class _Sized:
    """A body of a declared length."""

    __slots__ = ("_left", "is_whole")

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_whole = length == 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split `data` into the part that belongs to the body and the rest."""
        left = self._left
        if len(data) >= left:
            self._left, self.is_whole = 0, True
            return data[:left], data[left:]
        self._left = left - len(data)
        return data, b""


class _Chunks:
    """A body in the chunked coding (RFC 9112 section 7.1)."""

    __slots__ = ("_has_ended", "_header_bytes", "_headers", "_left", "is_whole")

    def __init__(self, headers: int, header_bytes: int) -> None:
        self.is_whole = False
        self._headers = headers
        self._header_bytes = header_bytes
        self._left = 0  # of the current chunk, the line end behind it included
        self._has_ended = False  # but for trailers

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content in `data`, and the rest that is incomplete or after the body."""
        content: list[bytes] = []
        at = 0
        while not self.is_whole:
            if self._left:
                at = self._data(data, at, content)
                if self._left:
                    break
            plain = None if self._has_ended else _PLAIN_CHUNK.match(data, at)
            if plain is not None:  # the common case, at a third of the cost
                start, size = plain.end(), int(plain[1], 16)
                at = start + size + 2
                if data[at - 2 : at] == b"\r\n":
                    content.append(data[start : at - 2])
                else:
                    at, self._left = start, size + 2
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                if data.find(b"\n", at) >= 0:
                    raise Refused(400)
                self._check_line(len(data) - at)
                break
            line = data[at:end]
            if self._has_ended:
                self._trailer(line)
            else:
                self._size(line)
            at = end + 2
        return b"".join(content), data[at:]

    def _data(self, data: bytes, at: int, content: list[bytes]) -> int:
        """Take data of a chunk and its line end; returns the new offset."""
        left = self._left
        if left > 2:
            piece = data[at : at + left - 2]
            content.append(piece)
            at += len(piece)
            left -= len(piece)
        if left == 2:
            closing = data[at : at + 2]
            if closing == b"\r\n":
                at += 2
                left = 0
            elif closing not in (b"", b"\r"):
                raise Refused(400)
        self._left = left
        return at

    def _check_line(self, length: int) -> None:
        """Refuse an unfinished line that already exceeds the bounds."""
        if self._header_bytes + length > MAX_HEADER_BYTES + _MAX_SIZE_CHARACTERS:
            raise Refused(431)

    def _size(self, line: bytes) -> None:
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise Refused(400)
        digits, extension = match.groups(b"")
        self._count(len(extension))
        size = int(digits, 16)
        if size:
            self._left = size + 2
        else:
            self._has_ended = True

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.is_whole = True
        elif _TRAILER.fullmatch(line) is None:
            raise Refused(400)
        else:
            self._headers += 1
            self._count(len(line))

    def _count(self, length: int) -> None:
        self._header_bytes += length
        if self._headers > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            raise Refused(431)

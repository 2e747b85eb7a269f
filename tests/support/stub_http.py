"""A web server for tests: answers as it is told, and keeps what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Content = bytes | Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Reply:
    """An answer; without a length it ends with the connection, `cut` ends it before its end."""

    status: int = 200
    content: Content = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    has_length: bool = True
    cut: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Stub:
    """Answers each path with the replies it was given, the last one again and again.

    `when_asked` is called before each answer; `open` has the connections that are.
    """

    def __init__(self, host: str = "127.0.0.1", certificate: Path | None = None) -> None:
        stub = self
        self.asked: list[Asked] = []
        self.replies: dict[str, list[Reply]] = {}
        self.connections = 0
        self.open: set[object] = set()
        self.when_asked: Callable[[Asked], None] = lambda asked: None

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                stub.connections += 1
                stub.open.add(self)
                super().setup()

            def finish(self) -> None:
                try:
                    super().finish()
                except OSError:
                    pass  # who asked is gone
                finally:
                    stub.open.remove(self)

            def do_GET(self) -> None:
                stub._answer(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815  as above

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def says(self, path: str, *replies: Reply) -> str:
        """Answer a path with these, one after the other; returns its address."""
        self.replies[path] = list(replies)
        return f"{self.url}{path}"

    def to(self, path: str) -> Sequence[Asked]:
        """Return what was asked of a path."""
        return [each for each in self.asked if each.path == path]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.command, handler.path, headers, body)
        self.asked.append(asked)
        self.when_asked(asked)
        replies = self.replies.get(handler.path.partition("?")[0]) or [Reply(404, b"no such path")]
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if isinstance(reply.content, bytes) and reply.has_length:
            handler.send_header("content-length", str(len(reply.content) + reply.cut))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        try:
            for part in [reply.content] if isinstance(reply.content, bytes) else reply.content():
                handler.wfile.write(part)
        except OSError:
            pass  # who asked has heard enough

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def stubbed(host: str = "127.0.0.1", certificate: Path | None = None) -> Iterator[Stub]:
    """Serve until the end of the block."""
    stub = Stub(host, certificate)
    try:
        yield stub
    finally:
        stub.close()

"""A server of somebody else's: answers as told, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.serving import serving

SALES = [
    {"category": "a", "amount": 1},
    {"category": "b", "amount": 5},
    {"category": "a", "amount": 2},
]
"""What the samples of a report are given at `/data`."""

REPORT = "category,amount\na,3\nb,5\n"
"""What they make of it."""


TOGETHER_SECONDS = 10
"""How long who comes first waits for the others; then nobody gets an answer."""


class Stub:
    """What the server answers by path: a status each time, the last one from then on, and JSON.

    With a barrier in `together`, it answers nobody until so many have asked.
    """

    def __init__(self) -> None:
        self.url = ""
        self.latency_seconds = 0.0
        self.together: threading.Barrier | None = None
        self.bodies: dict[str, Any] = {}
        self.statuses: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.texts: list[str] = []
        self.keys: list[str] = []

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        time.sleep(self.latency_seconds)
        if self.together is not None:
            self.together.wait(TOGETHER_SECONDS)
        statuses = self.statuses.get(path, [200])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        return status, json.dumps(self.bodies.get(path)).encode()

    def count(self, path: str) -> int:
        return self.asked.count(path)


@contextmanager
def stub() -> Iterator[Stub]:
    """Serve a stub on loopback."""
    made = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = made.answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            made.texts.append(sent["text"])
            made.keys.append(self.headers["idempotency-key"])
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield made

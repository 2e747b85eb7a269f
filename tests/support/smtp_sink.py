"""A mail server for tests: takes every mail and keeps it."""

from __future__ import annotations

import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message

from tests.support.serving import serving


class Sink:
    """The mails that came, and where to send them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mails: list[Message] = []


@contextmanager
def smtp_sink() -> Iterator[Sink]:
    """Serve a mail server on loopback."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 sink\r\n")
            for line in self.rfile:
                verb = line[:4].upper()
                if verb.startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    made.mails.append(message_from_bytes(b"".join(lines)))
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    made = Sink(server.server_address[1])
    with serving(server):
        yield made

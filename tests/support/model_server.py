"""A model server for tests: it speaks the protocol of chat completions, and says what it is told.

Real HTTP, on a port of its own. What it says is a function of the conversation, so that a repeated
request gets the same answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """What the model says: text, calls of tools as (name, arguments), or an error by its status."""

    text: str = ""
    calls: Sequence[tuple[str, Any]] = ()
    status: int = 200
    headers: Mapping[str, str] | None = None
    tokens: tuple[int, int] = (100, 10)
    ids: Sequence[str] | None = None
    body: bytes | None = None
    """What it answers in place of a completion."""


@dataclass(frozen=True)
class Request:
    """A request that came: its key, its messages and its tools."""

    key: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """What was said so far."""
        said: Sequence[Mapping[str, Any]] = self.body["messages"]
        return said

    @property
    def turn(self) -> int:
        """How many answers the conversation has."""
        return sum(each["role"] == "assistant" for each in self.messages)

    @property
    def tools(self) -> list[str]:
        """The names of the tools the model may call."""
        return [each["function"]["name"] for each in self.body.get("tools", [])]

    @property
    def results(self) -> list[str]:
        """What the calls of the last answer came to."""
        said = [*self.messages]
        last = max((at for at, each in enumerate(said) if each["role"] == "assistant"), default=-1)
        return [each["content"] for each in said[last + 1 :] if each["role"] == "tool"]


Script = Callable[[Request], Said] | Sequence[Said]


class ModelServer:
    """Answers by a script; `asked` is what came, in order."""

    def __init__(self, script: Script) -> None:
        server = self
        self.script = script
        self.asked: list[Request] = []
        self.delay_seconds = 0.0
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(size))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with suppress(ConnectionError):  # who asked has been killed
                    server._answer(self, Request(headers.get("idempotency-key", ""), body, headers))

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def _answer(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        with self._lock:
            self.asked.append(request)
            script = self.script
            said = script(request) if callable(script) else script[request.turn]
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        content = said.body or json.dumps(_completion(request, said)).encode()
        handler.send_response(said.status)
        for name, value in (said.headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self) -> None:
        """Stop answering; a second call does nothing."""
        if not self._thread.is_alive():
            return
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _completion(request: Request, said: Said) -> dict[str, Any]:
    if said.status != 200:
        return {"error": {"message": said.text or "no", "type": "error", "code": said.status}}
    calls = [
        {
            "id": said.ids[index] if said.ids else f"call-{request.turn}-{index}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for index, (name, arguments) in enumerate(said.calls)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
    if calls:
        message["tool_calls"] = calls
    read, written = said.tokens
    return {
        "id": f"answer-{request.turn}",
        "object": "chat.completion",
        "created": 1_767_225_600,
        "model": request.body["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if calls else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
        },
    }  # fmt: skip


@contextmanager
def model_server(script: Script) -> Iterator[ModelServer]:
    """Run a model server."""
    server = ModelServer(script)
    try:
        yield server
    finally:
        server.close()

"""Requests sent when they are due, whatever became of those before: latency as callers meet it.

A request's latency counts from the instant it was due, which random gaps decide (a Poisson
process), so a server that stalls is not spared the requests it kept waiting. One process, uvloop,
raw HTTP/1.1 on kept connections: about 30 µs of processor time a request, beside the server on the
machine's other core. Connections are used in turn; more are opened when none is free.
Run as `python -m tests.bench.openloop PORT PATH PER_SECOND SECONDS CONNECTIONS`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import uvloop

from .load import BODY
from .measure import percentile

MOST_CONNECTIONS = 512
PATIENCE_SECONDS = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RUN = re.compile(rb'"runs":\["([^"]+)"')


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of the requests: seconds to each answer; when each was due, by its run's id."""

    per_second: float
    answer_ms: Mapping[str, float]
    due_at: Mapping[str, float]

    def figures(self) -> dict[str, float]:
        """Return the figures a table shows."""
        return {"rate": self.per_second, **self.answer_ms}


def ask(
    port: int, path: str, *, per_second: float, seconds: float, connections: int = 16
) -> Answered:
    """POST to a server in an open loop; raises AssertionError when an answer was not 2xx.

    So many connections are open before the first request, and at most 512 ever.
    """
    command = [sys.executable, "-m", "tests.bench.openloop", str(port), path]
    done = subprocess.run(
        [*command, str(per_second), str(seconds), str(connections)],
        capture_output=True, text=True, check=False, timeout=seconds + 2 * PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return Answered(**json.loads(done.stdout))


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request on it, due at `due`."""

    def __init__(self, crowd: _Crowd) -> None:
        self.due: float | None = None
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, due: float) -> None:
        assert self._transport is not None
        self.due = due
        self._transport.write(self._crowd.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._received, 0, head)
        if length is None or len(self._received) < head + 4 + int(length.group(1)):
            return
        answer, self._received = self._received, b""
        due, self.due = self.due, None
        assert due is not None, answer
        self._crowd.answered(self, due, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.lost(self)


class _Crowd:
    """Callers who come when they come, and share connections."""

    def __init__(
        self, port: int, path: str, per_second: float, seconds: float, connections: int
    ) -> None:
        self._port = port
        self._count = max(1, round(per_second * seconds))
        self._per_second = per_second
        self._first = connections
        self._open = 0
        self._idle: deque[_Connection] = deque()
        self._late: deque[float] = deque()
        self._loop = asyncio.get_running_loop()
        self._all_answered = self._loop.create_future()
        self._answers: list[tuple[float, float, bytes]] = []
        self.request = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY

    async def ask(self) -> Answered:
        for _ in range(self._first):
            await self._connect()
        async with asyncio.TaskGroup() as tasks:
            started = due = self._loop.time()
            for _ in range(self._count):
                due += random.expovariate(self._per_second)
                if (wait := due - self._loop.time()) > 0.0005:
                    await asyncio.sleep(wait)
                if self._idle:
                    self._idle.popleft().send(due)
                    continue
                self._late.append(due)
                if self._open < MOST_CONNECTIONS:
                    tasks.create_task(self._connect())
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._all_answered
        return self._result(self._loop.time() - started)

    async def _connect(self) -> None:
        self._open += 1
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), "127.0.0.1", self._port
        )
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        if self._late:
            connection.send(self._late.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: _Connection, due: float, answer: bytes) -> None:
        self._answers.append((due, self._loop.time(), answer))
        self._free(connection)
        if len(self._answers) == self._count:
            self._all_answered.set_result(None)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection the server closed: it may when nothing is on it, not otherwise."""
        self._open -= 1
        if connection.due is None:
            if connection in self._idle:
                self._idle.remove(connection)
        elif not self._all_answered.done():
            self._all_answered.set_exception(ConnectionError("closed without an answer"))

    def _result(self, elapsed: float) -> Answered:
        refused = [answer for _, _, answer in self._answers if answer[9:10] != b"2"]
        assert not refused, refused[0]
        waits = [(at - due) * 1000 for due, at, _ in self._answers]
        to_wall = time.time_ns() / 1e9 - self._loop.time()
        runs: dict[str, float] = {}
        for due, _, answer in self._answers:
            if run := _RUN.search(answer):
                runs[run.group(1).decode()] = due + to_wall
        return Answered(
            self._count / elapsed,
            {"p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99)},
            runs,
        )


def main() -> None:
    """Ask, and print what came of it as JSON."""
    port, path, per_second, seconds, connections = sys.argv[1:6]
    asked = int(port), path, float(per_second), float(seconds), int(connections)

    async def ask_all() -> Answered:
        return await _Crowd(*asked).ask()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(ask_all())
    made: dict[str, Any] = {
        "per_second": found.per_second, "answer_ms": found.answer_ms, "due_at": found.due_at,
    }  # fmt: skip
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()

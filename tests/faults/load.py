"""A generator of webhook deliveries that is never killed and keeps every answer it got.

A 202 in its ledger is turnout's promise; the rest of a test checks that the promise was kept. It
speaks HTTP/1.1 on raw sockets, one connection a thread, because a client library would take more
of a small machine than the service under test.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from tests.support.program import Answer

SECRET = "It's a Secret to Everybody"
ANSWER_SECONDS = 30.0


class Connection:
    """One keep-alive connection that is opened again when it broke."""

    def __init__(self, port: int, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._port = port
        self._seconds = answer_seconds
        self._socket: socket.socket | None = None
        self._rest = b""

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer | None:
        """Send one request; None when it broke before the answer was whole."""
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), self._seconds)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._rest = b""
            self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            return self._answer()
        except OSError:
            self.close()
            return None

    def _answer(self) -> Answer:
        while b"\r\n\r\n" not in self._rest:
            self._rest += self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            self._rest += self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(status.split()[1]), headers, body)

    def _more(self) -> bytes:
        assert self._socket is not None
        piece = self._socket.recv(65536)
        if not piece:
            raise ConnectionResetError("closed in the middle of an answer")
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(slots=True)
class Ledger:
    """Everything the generator was answered: what turnout now owes.

    `accepted` maps an event id to the run ids its first 202 named. `statuses` counts answers,
    `None` standing for a broken connection; `refusals` keeps every answer that was not a 202.
    `contradictions` are answers that can never be right, whatever happened in between.
    """

    accepted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    accepted_at: dict[str, float] = field(default_factory=dict)
    statuses: Counter[int | None] = field(default_factory=Counter)
    refusals: list[tuple[float, Answer]] = field(default_factory=list)
    duplicates: int = 0
    contradictions: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, delivery: str | None, answer: Answer | None) -> bool:
        """Enter an answer; returns whether it was a 202."""
        now = time.monotonic()
        with self.lock:
            self.statuses[None if answer is None else answer.status] += 1
            if answer is None:
                return False
            if answer.status != 202:
                self.refusals.append((now, answer))
                return False
            told = answer.json
            event, runs = told["event"], tuple(told["runs"])
            if delivery is not None and event != delivery:
                self.contradictions.append(f"delivery {delivery} was answered as event {event}")
            self.duplicates += told["duplicate"]
            if self.accepted.setdefault(event, runs) != runs:
                self.contradictions.append(f"{event}: runs {runs}, first {self.accepted[event]}")
            self.accepted_at[event] = now
            return True


@dataclass(kw_only=True)
class Generator:
    """Posts until it is stopped: ids minted by turnout on one route, GitHub's on another.

    A GitHub-style delivery is sent again until it is answered 202, and now and then once more,
    as real senders do. `pace` is the requests a second of all threads together, 0 for full speed.
    """

    port: int
    seed: int
    threads: int = 4
    pace: float = 0.0
    most: int | None = None
    github_share: float = 0.5
    redelivered_share: float = 0.05
    minted_path: str = "/hooks/minted"
    answer_seconds: float = ANSWER_SECONDS
    padding: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    _leaving: threading.Event = field(default_factory=threading.Event)
    _sent: int = 0

    @contextmanager
    def running(self) -> Iterator[Ledger]:
        """Generate inside the block; a thread that fails is reported when the block ends."""
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                self._post_all(number)
            except BaseException as error:  # noqa: BLE001  handed to the test's own thread
                errors.append(error)

        workers = [
            threading.Thread(target=work, args=(number,), name=f"load-{number}", daemon=True)
            for number in range(self.threads)
        ]
        for worker in workers:
            worker.start()
        self._workers = workers
        try:
            yield self.ledger
        finally:
            self.stop()
        if errors:
            raise errors[0]
        assert not self.ledger.contradictions, self.ledger.contradictions[:5]

    def stop(self) -> None:
        """Let every thread have its last answer, then end it."""
        self._leaving.set()
        for worker in self._workers:
            worker.join(self.answer_seconds + 5)

    def sent_all(self, timeout: float) -> None:
        """Wait until `most` requests were sent and answered."""
        for worker in self._workers:
            worker.join(timeout)
            assert not worker.is_alive(), f"not all sent: {self.ledger.statuses}"

    def _post_all(self, number: int) -> None:
        dice = random.Random(self.seed * 1000 + number)
        with Connection(self.port, answer_seconds=self.answer_seconds) as connection:
            self._post_with(connection, dice, number)

    def _post_with(self, connection: Connection, dice: random.Random, number: int) -> None:
        delivered: list[tuple[str, bytes]] = []
        count = 0
        while not self._leaving.is_set():
            if self.most is not None and count * self.threads + number >= self.most:
                break
            count += 1
            if dice.random() < self.github_share:
                self._deliver(connection, dice, delivered, f"{number}-{count}")
            else:
                self._post_minted(connection, f"{number}-{count}")
            if self.pace:
                self._leaving.wait(self.threads / self.pace * dice.uniform(0.5, 1.5))

    def _body(self, number: str) -> bytes:
        return json.dumps({"number": number, "padding": "x" * self.padding}).encode()

    def _post_minted(self, connection: Connection, number: str) -> None:
        answer = connection.post(self.minted_path, self._body(number), _JSON)
        self.ledger.note(None, answer)
        self._rest_after(answer)

    def _deliver(
        self,
        connection: Connection,
        dice: random.Random,
        delivered: list[tuple[str, bytes]],
        number: str,
    ) -> None:
        if delivered and dice.random() < self.redelivered_share:
            delivery, body = dice.choice(delivered)
        else:
            delivery, body = f"{dice.getrandbits(64):016x}-{number}", self._body(number)
        digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = _JSON | {
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": delivery,
            "X-Hub-Signature-256": f"sha256={digest}",
        }
        while not self._leaving.is_set():
            answer = connection.post("/hooks/github", body, headers)
            if self.ledger.note(delivery, answer):
                delivered.append((delivery, body))
                return
            self._rest_after(answer)

    def _rest_after(self, answer: Answer | None) -> None:
        """Knock gently on a closed door."""
        if answer is None or answer.status != 202:
            self._leaving.wait(0.02)


_JSON = {"Content-Type": "application/json"}

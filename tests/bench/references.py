"""What turnout's HTTP intake is measured against: the least a Python program can do for the same.

`bare` answers 202 and keeps nothing. `commit` writes the rows turnout writes (the event, its
queued run; the same tables and indexes, `synchronous=FULL`) with many requests to a commit, and
gives the same answer; it verifies, validates, routes and counts nothing. `fastapi` validates the
body as a pydantic model, as its documentation shows, and keeps nothing. All run on uvicorn with
uvloop and httptools. Run as `python -m tests.bench.references KIND PORT FOLDER`.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

import apsw
import orjson
import uvicorn
from pydantic import BaseModel

from turnout.service.domain.event import mint_id

from .stored import bare_journal

MOST_ROWS = 1000
INSERT_EVENT = (
    "INSERT INTO events (seq, id, source, type, tenant, trigger, time, accepted_at, body, details,"
    " by_id) VALUES (?, ?, ?, 'turnout.webhook', 'default', 'webhook:/orders', ?, ?, ?, ?, 1)"
)
INSERT_RUN = (
    "INSERT INTO runs (seq, id, event_seq, flow, state, token, queued_at, code_version)"
    " VALUES (?, ?, ?, 'bill', 'queued', 0, ?, ?)"
)
CODE_VERSION = "0123456789abcdef"


class Item(BaseModel):
    """A line of an order."""

    sku: str
    count: int
    price: float


class Address(BaseModel):
    """Where an order goes."""

    street: str
    city: str
    zip: str
    country: str


class Order(BaseModel):
    """The body every bench sends."""

    id: str
    customer: str
    amount: float
    currency: str
    items: list[Item]
    address: Address
    note: str


class GroupCommit:
    """One thread that writes; what arrives together shares a transaction."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = bare_journal(folder)
        self._connection.wal_autocheckpoint(4000)
        self._queue: queue.SimpleQueue[tuple[Any, Any, asyncio.Future[None]]] = queue.SimpleQueue()
        self._seq = 0
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, event: tuple[Any, ...], run: tuple[Any, ...]) -> asyncio.Future[None]:
        """Write an event and its run; the future resolves after the commit."""
        future = self._loop.create_future()
        self._queue.put((event, run, future))
        return future

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            try:
                while len(batch) < MOST_ROWS:
                    batch.append(self._queue.get_nowait())
            except queue.Empty:
                pass
            self._write(self._connection, batch)
            self._loop.call_soon_threadsafe(_resolve, [future for _, _, future in batch])

    def _write(self, connection: apsw.Connection, batch: list[Any]) -> None:
        events, runs, seq = [], [], self._seq
        for event, (run_id, at, version), _ in batch:
            seq += 1
            events.append((seq, *event))
            runs.append((seq, run_id, seq, at, version))
        self._seq = seq
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT_EVENT, events)
        connection.executemany(INSERT_RUN, runs)
        connection.execute("COMMIT")


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


async def _body(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body"):
            return body


async def _answer(send: Any, body: bytes) -> None:
    length = b"%d" % len(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Read the request and answer."""
    await _body(receive)
    answer = {"event": mint_id(), "runs": [mint_id()], "duplicate": False}
    await _answer(send, orjson.dumps(answer))


class Commit:
    """Read the request, have its rows on disk, and answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal: GroupCommit | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if self._journal is None:
            self._journal = GroupCommit(self._folder)
        body = await _body(receive)
        orjson.loads(body)  # 202 promises JSON
        event_id, run_id, at = mint_id(), mint_id(), time.time_ns() // 1000
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        details = orjson.dumps(
            {"datacontenttype": "application/json", "headers": headers, "minted": True}
        ).decode()
        await self._journal.submit(
            (event_id, scope["path"], at, at, body, details), (run_id, at, CODE_VERSION)
        )
        answer = {"event": event_id, "runs": [run_id], "duplicate": False}
        await _answer(send, orjson.dumps(answer))


def _fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/hooks/orders", status_code=202)
    async def take(order: Order) -> dict[str, Any]:
        return {"event": mint_id(), "runs": [mint_id()], "duplicate": False}

    return app


def main() -> None:
    """Serve one of the references until killed."""
    kind, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    app = {"bare": lambda: bare, "commit": lambda: Commit(folder), "fastapi": _fastapi}[kind]()
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", lifespan="off",
        log_level="warning", access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()

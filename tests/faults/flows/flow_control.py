"""Every construct of flow control in use at once; each run writes down when its code runs.

A line a turn in the file `TURNOUT_TEST_LEDGER`: `begin` or `end`, the process, flow, key and run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from turnout import (
    current,
    dependency,
    flow,
    limit,
    rate_limit,
    retry,
    sleep,
    throttle,
    unique,
    webhook,
)

PROCESS = f"{os.getpid()}.{time.time_ns()}"  # ids of processes come again
LEDGER = os.open(os.environ["TURNOUT_TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
CRM_IS_DOWN = Path(os.environ["TURNOUT_TEST_LEDGER"]).with_name("crm-is-down")

SOON = retry(2, delay="20ms", jitter=False)
CRM = dependency("crm", open_after="100% of 3", probe="100ms", errors=ConnectionError)


class Order(TypedDict):
    """What each event says."""

    key: str
    number: int


@contextmanager
def working(order: Order) -> Iterator[None]:
    run = current().run
    line = f"{PROCESS} {run.flow} {order['key']} {run.id}\n"
    os.write(LEDGER, f"begin {line}".encode())
    try:
        yield
    finally:
        os.write(LEDGER, f"end {line}".encode())


async def work(order: Order, seconds: float = 0.01) -> None:
    with working(order):
        await asyncio.sleep(seconds)
        if order["number"] % 7 == 0 and current().run.attempt == 1:
            raise ValueError("the first try of every seventh fails")


@flow(on=webhook("/limited"), concurrency=limit(2, per=lambda event: event.data["key"]), retry=SOON)
async def limited(order: Order) -> None:
    await work(order)


@flow(
    on=webhook("/few", id=lambda event: f"order-{event.data['number']}"),
    concurrency=limit(3),
    priority=lambda event: "high" if event.data["number"] % 5 == 0 else "normal",
    retry=SOON,
)
async def few(order: Order) -> None:
    await work(order)


@flow(
    on=webhook("/reader"),
    concurrency=[limit("db", 2), limit(1, per=lambda event: event.data["key"])],
    retry=SOON,
)
async def reader(order: Order) -> None:
    await work(order)


@flow(on=webhook("/writer"), concurrency=limit("db", 2), retry=SOON)
async def writer(order: Order) -> None:
    await work(order)


@flow(
    on=webhook("/account"),
    concurrency=limit(1, per=lambda event: event.data["key"], hold="run"),
    retry=SOON,
)
async def account(order: Order) -> None:
    await work(order)
    await sleep("50ms")
    await work(order)


@flow(on=webhook("/late"), concurrency=limit(1), start_timeout="1s")
async def late(order: Order) -> None:
    with working(order):
        await asyncio.sleep(0.1)


@flow(on=webhook("/ordered"), ordered_by=lambda event: event.data["key"], retry=SOON)
async def ordered(order: Order) -> None:
    await work(order)


@flow(on=webhook("/throttled"), rate=throttle("20/2s"), retry=SOON)
async def throttled(order: Order) -> None:
    await work(order)


@flow(
    on=webhook("/apart"),
    rate=[throttle("5/1s", per=lambda event: event.data["key"]), throttle("calls", "10/1s")],
    retry=SOON,
)
async def apart(order: Order) -> None:
    await work(order)


@flow(on=webhook("/calls"), rate=throttle("calls", "10/1s"), retry=SOON)
async def calls(order: Order) -> None:
    await work(order)


@flow(
    on=webhook("/accepted"),
    rate=rate_limit("3/1s", per=lambda event: event.data["key"]),
    retry=SOON,
)
async def accepted(order: Order) -> None:
    await work(order)


@flow(on=webhook("/replaced"), key=lambda event: event.data["key"], mode="replace")
async def replaced(order: Order) -> None:
    with working(order):
        await asyncio.sleep(0.3)


@flow(on=webhook("/latest"), key=lambda event: event.data["key"], mode="latest")
async def latest(order: Order) -> None:
    with working(order):
        await asyncio.sleep(0.2)


@flow(on=webhook("/skipped"), key=lambda event: event.data["key"], mode="skip", timeout="5s")
async def skipped(order: Order) -> None:
    with working(order):
        await asyncio.sleep(0.2)


@flow(on=webhook("/alone"), unique=unique(lambda event: event.data["key"]), retry=SOON)
async def alone(order: Order) -> None:
    await work(order, 0.2)


@flow(on=webhook("/bounded"), max_queued=3, concurrency=limit(1))
async def bounded(order: Order) -> None:
    with working(order):
        await asyncio.sleep(0.2)


@flow(on=webhook("/stopped"), cancel_on=webhook("/stop"), match="key")
async def stopped(order: Order) -> None:
    with working(order):
        await asyncio.sleep(0.2)


@flow(on=webhook("/crm"), needs=CRM, retry=retry(100, delay="20ms", jitter=False))
async def crm(order: Order) -> None:
    with working(order):
        if CRM_IS_DOWN.exists():
            raise ConnectionError("refused")

"""Every construct that may take or refuse an event, over webhooks, typed events, files and Kafka.

The folder `TURNOUT_TEST_INBOX` has one folder for each flow over files.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from turnout import (
    Event,
    absent,
    all_of,
    batch,
    count,
    debounce,
    event,
    files,
    flow,
    kafka,
    limit,
    move,
    rate_limit,
    retry,
    sequence,
    throttle,
    unique,
    webhook,
)

INBOX = Path(os.environ["TURNOUT_TEST_INBOX"])
RECORDS = kafka(
    os.environ["TURNOUT_TEST_TOPIC"],
    group=os.environ["TURNOUT_TEST_GROUP"],
    start="earliest",
    session="2s",
)
SOON = retry(2, delay="20ms", jitter=False)

placed, paid, shipped = event("order.placed"), event("order.paid"), event("order.shipped")


def key(event: Event) -> str:
    return str(event.data["key"])


def inbox(name: str) -> Any:
    return files(str(INBOX / name / "*.json"), settle="50ms", then=move("done/"))


async def work(data: dict[str, Any]) -> int:
    await asyncio.sleep(0.002)
    if data["n"] % 17 == 0:
        raise ValueError("every seventeenth fails")
    return int(data["n"])


# ---------------------------------------------------------------- one event, one run


@flow(on=webhook("/a"), concurrency=limit(2, per=key), retry=SOON)
async def limited(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=webhook("/a"), key=key, mode="skip", timeout="1m", when=lambda event: event.data["n"] % 3)
async def skipping(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=webhook("/b"), key=key, mode="latest")
async def latest(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=[webhook("/b"), placed], key=key, mode="replace")
async def replacing(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=webhook("/c"), unique=unique(key, until="200ms"), ordered_by=key)
async def unlike(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=[webhook("/c"), shipped], rate=[rate_limit("40/1s", per=key), throttle("400/1s")])
async def rated(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=[webhook("/d"), paid], shadow=True, when=lambda event: event.data["n"] % 2)
async def shadowed(data: dict[str, Any]) -> int:
    return await work(data)


# ---------------------------------------------------------------- several events, one run


@flow(on=debounce(webhook("/a"), "300ms", max="1s", per=key, keep="all"), key=key, mode="skip",
      timeout="1m")  # fmt: skip
async def bursts(events: list[Event]) -> int:
    return len(events)


@flow(on=debounce(placed, "200ms", per=key))
async def last(data: dict[str, Any]) -> int:
    return await work(data)


@flow(on=batch(webhook("/d"), 20, "500ms"), when=lambda event: event.data["n"] % 5)
async def batched(events: list[dict[str, Any]]) -> int:
    return len(events)


@flow(on=count(webhook("/c"), 4, "1s", per=key), unique=unique(key, until="1s"))
async def counted(events: list[Event]) -> int:
    return len(events)


@flow
async def unpaid(events: list[Event]) -> int:
    return len(events)


@flow(on=sequence(placed, paid, shipped, within="1s", per=key, on_timeout=unpaid))
async def in_order(events: list[Event]) -> int:
    return len(events)


@flow(on=all_of(webhook("/b"), paid, within="1s", per=key), rate=rate_limit("5/1s"))
async def together(events: list[Event]) -> int:
    return len(events)


@flow(on=absent(shipped, "1s", after=paid, per=key))
async def missing(data: dict[str, Any]) -> int:
    return await work(data)


# ---------------------------------------------------------------- files and records


@flow(on=inbox("plain"), rate=rate_limit("20/1s"))
async def load(path: Path) -> str:
    return path.name


@flow(on=batch(inbox("batched"), 10, "400ms"))
async def load_all(paths: list[Path]) -> int:
    return len(paths)


@flow(on=count(inbox("counted"), 3, "400ms"))
async def load_some(paths: list[Path]) -> int:
    return len(paths)


@flow(on=inbox("shadow"), shadow=True)
async def load_none(path: Path) -> str:
    return path.name


@flow(on=batch(RECORDS, 50, "200ms"))
async def store(records: list[dict[str, Any]]) -> int:
    return len(records)


@flow(on=RECORDS, when=lambda event: event.data["number"] % 2, key=lambda _: "all", mode="latest")
async def newest(record: dict[str, Any]) -> int:
    return int(record["number"])

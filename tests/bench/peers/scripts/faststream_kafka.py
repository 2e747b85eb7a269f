"""FastStream: COUNT records of a topic handled: BOOTSTRAP TOPIC GROUP COUNT MODE.

MODE is `default`, what a subscriber does when nothing is said (offsets are committed in the
background, before the handler ends), or `ack`, `AckPolicy.ACK`, a commit after each handler.
`batch` and `batch-ack` are the same with a handler for each list of up to 500 records.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

BOOTSTRAP, TOPIC, GROUP, COUNT, MODE = sys.argv[1:]
broker = KafkaBroker(BOOTSTRAP, logger=None)
options: dict[str, Any] = {"group_id": GROUP, "auto_offset_reset": "earliest"}
if MODE.endswith("ack"):
    options["ack_policy"] = AckPolicy.ACK
if MODE.startswith("batch"):
    options |= {"batch": True, "batch_timeout_ms": 200, "max_records": 500}
done = asyncio.Event()
left = int(COUNT)


def handled(count: int) -> None:
    global left
    left -= count
    if left <= 0:
        done.set()


async def bill(order: dict) -> None:  # type: ignore[type-arg]  # as its documentation writes it
    handled(1)


async def bill_together(orders: list[dict]) -> None:  # type: ignore[type-arg]
    handled(len(orders))


broker.subscriber(TOPIC, **options)(bill_together if MODE.startswith("batch") else bill)


async def main() -> None:
    await broker.start()
    consumer = next(iter(broker.subscribers)).consumer
    while not consumer.assignment():  # noqa: ASYNC110  the client sets no event
        await asyncio.sleep(0.001)
    started, worked = time.perf_counter(), time.process_time()
    await done.wait()
    rate = int(COUNT) / (time.perf_counter() - started)
    micros = (time.process_time() - worked) / int(COUNT) * 1e6
    await broker.stop()
    sys.stdout.write(json.dumps({"rate": rate, "micros": micros}) + "\n")


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())

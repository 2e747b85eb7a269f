"""FastStream: COUNT records of a topic handled: BOOTSTRAP TOPIC GROUP COUNT default|ack.

`default` is what a subscriber does when nothing is said (offsets are committed in the background,
before the handler ends); `ack` is `AckPolicy.ACK`, a commit after each handler.
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

BOOTSTRAP, TOPIC, GROUP, COUNT, POLICY = sys.argv[1:]
broker = KafkaBroker(BOOTSTRAP, logger=None)
policy: dict[str, Any] = {} if POLICY == "default" else {"ack_policy": AckPolicy.ACK}
done = asyncio.Event()
left = int(COUNT)


@broker.subscriber(TOPIC, group_id=GROUP, auto_offset_reset="earliest", **policy)
async def bill(order: dict) -> None:  # type: ignore[type-arg]  # as its documentation writes it
    global left
    left -= 1
    if left == 0:
        done.set()


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

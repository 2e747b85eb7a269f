"""Taskiq: COUNT calls of one task sent to a Redis stream, until the last result is back.

`BENCH_REDIS` names the Redis. Worker and client are processes of their own; a worker runs
`taskiq worker taskiq_queue:broker` with its defaults: two processes on uvloop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

REDIS = os.environ["BENCH_REDIS"]
TOGETHER = 100
broker = RedisStreamBroker(REDIS).with_result_backend(
    RedisAsyncResultBackend(REDIS, result_ex_time=3600)
)


@broker.task(task_name="bill")
async def bill(order: dict[str, Any]) -> dict[str, Any]:
    return {"id": order["id"], "total": sum(i["count"] * i["price"] for i in order["items"])}


async def main() -> None:
    count, order = int(sys.argv[1]), json.loads(sys.argv[2])
    await broker.startup()
    await (await bill.kiq(order)).wait_result(timeout=30)
    left, sent = iter(range(count)), []

    async def worker() -> None:
        for _ in left:
            sent.append(await bill.kiq(order))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(worker())
    for task in sent:
        result = await task.wait_result(check_interval=0.01, timeout=60)
        result.raise_for_error()
    sys.stdout.write(json.dumps({"rate": count / (time.perf_counter() - started)}) + "\n")
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())

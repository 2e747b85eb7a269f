"""DBOS: COUNT workflows put on a queue, until the last result is back: COUNT DATABASE_URL ORDER."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from dbos import DBOS

COUNT, ORDER, TOGETHER = int(sys.argv[1]), json.loads(sys.argv[3]), 100
DBOS(config={"name": "bench", "system_database_url": sys.argv[2], "log_level": "ERROR"})


@DBOS.workflow()
async def bill(order: dict[str, Any]) -> dict[str, Any]:
    return {"id": order["id"], "total": sum(i["count"] * i["price"] for i in order["items"])}


async def main() -> None:
    DBOS.launch()
    await DBOS.register_queue_async("orders")
    await (await DBOS.enqueue_workflow_async("orders", bill, ORDER)).get_result()
    left, sent = iter(range(COUNT)), []

    async def worker() -> None:
        for _ in left:
            sent.append(await DBOS.enqueue_workflow_async("orders", bill, ORDER))

    cpu, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(worker())
    await asyncio.gather(*(handle.get_result() for handle in sent))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    sys.stdout.write(json.dumps({"rate": COUNT / elapsed, "cpu": cpu / COUNT * 1e6}) + "\n")
    sys.stdout.flush()
    DBOS.destroy()


asyncio.run(main())

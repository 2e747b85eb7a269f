"""DBOS workflows of so many steps: STEPS COUNT TOGETHER DATABASE_URL ORDER.

Started with `start_workflow_async`; a run has ended when its handle has the result.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from dbos import DBOS

STEPS, COUNT, TOGETHER = (int(value) for value in sys.argv[1:4])
ORDER = json.loads(sys.argv[5])
DBOS(
    config={
        "name": "bench",
        "system_database_url": sys.argv[4],
        "log_level": "ERROR",
    }
)


@DBOS.step()
async def add(number: int) -> int:
    return number + 1


@DBOS.workflow()
async def work(order: dict[str, Any]) -> int:
    value = 0
    for _ in range(STEPS):
        value = await add(value)
    return value


async def main() -> None:
    DBOS.launch()
    left = iter(range(COUNT))

    async def worker() -> None:
        for _ in left:
            handle = await DBOS.start_workflow_async(work, ORDER)
            await handle.get_result()

    warm = await DBOS.start_workflow_async(work, ORDER)
    await warm.get_result()
    cpu, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(worker())
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    sys.stdout.write(json.dumps({"rate": COUNT / elapsed, "cpu": cpu / COUNT * 1e6}) + "\n")
    sys.stdout.flush()
    DBOS.destroy()


asyncio.run(main())

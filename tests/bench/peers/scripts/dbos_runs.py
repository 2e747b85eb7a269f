"""DBOS workflows of so many steps on SQLite; run by `durable` in DBOS's own environment."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from dbos import DBOS  # type: ignore[import-not-found]  # in an environment of its own

STEPS, COUNT, TOGETHER = (int(value) for value in sys.argv[1:4])
ORDER = json.loads(sys.argv[5])
DBOS(
    config={
        "name": "bench",
        "system_database_url": f"sqlite:///{sys.argv[4]}/dbos.sqlite",
        "log_level": "ERROR",
    }
)


@DBOS.step()  # type: ignore[untyped-decorator]  # no types here
async def add(number: int) -> int:
    return number + 1


@DBOS.workflow()  # type: ignore[untyped-decorator]  # no types here
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

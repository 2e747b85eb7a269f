"""Prefect flows of so many tasks: STEPS COUNT TOGETHER ORDER; PREFECT_API_URL names the server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from prefect import flow, task

STEPS, COUNT, TOGETHER = (int(value) for value in sys.argv[1:4])
ORDER = json.loads(sys.argv[4])


@task
async def add(number: int) -> int:
    return number + 1


@flow
async def work(order: dict[str, Any]) -> int:
    value = 0
    for _ in range(STEPS):
        value = await add(value)
    return value


async def main() -> None:
    left = iter(range(COUNT))

    async def worker() -> None:
        for _ in left:
            await work(ORDER)

    await work(ORDER)
    cpu, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(worker())
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    sys.stdout.write(json.dumps({"rate": COUNT / elapsed, "cpu": cpu / COUNT * 1e6}) + "\n")


asyncio.run(main())

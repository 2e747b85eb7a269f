"""A cursor that each run moves by one page; what it took is its result."""

import asyncio
import random

from turnout import current, every, flow, task


@task
async def fetch(page: int) -> int:
    await asyncio.sleep(random.random() * 0.01)
    return page


@flow(on=every("100ms"), concurrency=1)
async def poll() -> int:
    page: int = current().state.get(default=0)
    taken = await fetch(page)
    await asyncio.sleep(random.random() * 0.01)
    current().state.set(page + 1)
    return taken

"""Poll with a cursor: each new item starts a run of its own, once; the cursor moves on success.

The cursor is kept in the transaction that records the run's success, so a crash in between skips no
item. What a poll that failed has emitted, the next one emits under the same `id=`, which starts
nothing. An item that cannot be stored fails its own run, and holds up none behind it.
`concurrency=1`: one poll at a time reads the cursor.
"""

from pathlib import Path

from turnout import current, emit, event, every, flow, retry, task

FEED = Path("feed.txt")
PAGE = 100


@task(retry=retry(5, delay="1s", max="1m"), timeout="30s")
def fetch(after: int) -> list[str]:
    """Return the next items behind the cursor; here the lines of a file, elsewhere a request."""
    lines = FEED.read_text().splitlines() if FEED.exists() else []
    return lines[after : after + PAGE]


@flow(on=every("30s"), concurrency=1, timeout="10m")
async def poll() -> int:
    """Start a run for each item that is new; the next poll goes on behind them."""
    after: int = current().state.get(default=0)
    items = await fetch.run(after)
    for number, item in enumerate(items, after):
        await emit("feed.item", item, id=f"item-{number}")
    current().state.set(after + len(items))
    return len(items)


@task(retry=retry(5, delay="1s", max="1m"), timeout="30s")
async def store(item: str) -> str:
    """Do what is to be done with an item; a step that was cut off comes again with its key."""
    return f"{item} ({current().key('store')[:4]})"


@flow(on=event("feed.item"), timeout="10m")
async def take(item: str) -> str:
    """Store one item."""
    return await store(item)

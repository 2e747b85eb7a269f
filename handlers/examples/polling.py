"""Poll with a cursor: each run takes the next items, and moves the cursor if it succeeds.

The cursor is kept in the transaction that records the run's success, so a crash in between neither
skips an item nor fetches one for a second run. `concurrency=1`: one run at a time reads it.
"""

from pathlib import Path

from turnout import current, every, flow, retry, task

FEED = Path("feed.txt")
PAGE = 100


@task(retry=retry(5, delay="1s", max="1m"), timeout="30s")
def fetch(after: int) -> list[str]:
    """Return the next items behind the cursor; here the lines of a file, elsewhere a request."""
    lines = FEED.read_text().splitlines() if FEED.exists() else []
    return lines[after : after + PAGE]


@task(retry=retry(5, delay="1s", max="1m"), timeout="30s")
async def store(item: str) -> str:
    """Do what is to be done with an item; a step that was cut off comes again with its key."""
    return f"{item} ({current().key('store')[:4]})"


@flow(on=every("30s"), concurrency=1, timeout="10m")
async def poll() -> int:
    """Take what is new; the next run goes on behind it."""
    after: int = current().state.get(default=0)
    items = await fetch.run(after)
    for item in items:
        await store(item)
    current().state.set(after + len(items))
    return len(items)

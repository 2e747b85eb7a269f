"""Write a report every night; a run that is late, or done again, writes the same file."""

from pathlib import Path

from turnout import cron, current, flow, retry, task

OUTBOX = Path("reports")


@task(timeout="1m")
def count(folder: str) -> dict[str, int]:
    """Return how many files a folder holds, and their bytes; in a thread, since it reads a disk."""
    sizes = [path.stat().st_size for path in Path(folder).glob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}


@task(retry=retry(5, delay="10s", max="10m"), timeout="1m")
def send(day: str, text: str) -> str:
    """Write the report where people read it; the same day writes the same file, never a second."""
    OUTBOX.mkdir(exist_ok=True)
    path = OUTBOX / f"{day}.txt"
    path.write_text(text + "\n")
    return str(path)


@flow(on=cron("30 2 * * *", tz="Europe/Berlin", missed="run_once"), timeout="30m")
async def report() -> str:
    """Count, then send. The day is that of the tick, also when the run is late."""
    day = current().event.time.date().isoformat()
    counted = await count.run("inbox")
    return await send.run(day, f"files: {counted['files']}, bytes: {counted['bytes']}")

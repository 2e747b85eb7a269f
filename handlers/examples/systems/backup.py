"""Back up a PostgreSQL database to S3 each night: dumped, stored, restored as a test, pruned.

What is stored is restored into a database of its own, and asked for its rows; only then old ones
go. A backup that fails there is removed, and the old ones stay. Needs PostgreSQL's programs,
`PGHOST`, `PGPORT` and `PGUSER` in the environment, and the password in `~/.pgpass`.
"""

# /// script
# dependencies = ["aiobotocore>=3"]
# ///

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from aiobotocore.session import get_session

from turnout import Fail, artefact, cron, current, flow, retry, shell, task

session = get_session()
BUCKET, DATABASE, KEPT = "backups", "shop", 7
ROWS = "SELECT count(*) FROM orders"
PG = {name: os.environ[name] for name in ("PGHOST", "PGPORT", "PGUSER") if name in os.environ}
again = retry(5, delay="1s", max="1m")


@asynccontextmanager
async def s3() -> AsyncIterator[Any]:
    """Open a client of S3."""
    async with session.create_client("s3") as client:
        yield client


async def remove(name: str) -> None:
    """Undo a backup that could not be restored; removing it again changes nothing."""
    async with s3() as client:
        await client.delete_object(Bucket=BUCKET, Key=name)


@task(undo=remove, retry=again, timeout="1h")
async def store(name: str, dump: str) -> str:
    """Store the dump under a name of its own; S3 compares checksums, and takes it whole or not."""
    meta = {"turnout-key": current().key()}
    async with s3() as client:
        with artefact(dump).path.open("rb") as body:
            await client.put_object(Bucket=BUCKET, Key=name, Body=body, Metadata=meta)
    return name


@task(retry=again, timeout="1h")
async def download(name: str) -> str:
    """Keep what is stored with the run; the file of a try that was cut off is written over."""
    part = anyio.Path(f"{current().key()}.part")
    async with s3() as client, await part.open("wb") as file:
        found = await client.get_object(Bucket=BUCKET, Key=name)
        async for chunk in found["Body"].iter_chunks(2**20):
            await file.write(chunk)
    kept: str = await asyncio.to_thread(current().attach, "stored.dump", Path(part))
    await part.unlink()
    return kept


@task(timeout="1h")
async def restore(dump: str) -> int:
    """Restore it where nobody works, and return how many rows it has."""
    scratch = f"restored_{current().key()[:8]}"
    await shell(["dropdb", "--if-exists", scratch], env=PG)  # of a try that was cut off
    await shell(["createdb", scratch], env=PG)
    try:
        into = ["pg_restore", "--exit-on-error", "--no-owner", f"--dbname={scratch}"]
        await shell(into, stdin=artefact(dump), env=PG)
        asked = await shell(["psql", "--no-psqlrc", "-Atc", ROWS, scratch], env=PG)
    finally:
        await shell(["dropdb", scratch], env=PG)
    if (rows := int(asked.stdout)) == 0:
        raise Fail("the backup has no rows")
    return rows


@task(retry=again, timeout="5m")
async def prune() -> list[str]:
    """Remove all but the newest; doing it again finds none."""
    async with s3() as client:
        found = await client.list_objects_v2(Bucket=BUCKET, Prefix=f"{DATABASE}/")
        old = sorted(each["Key"] for each in found.get("Contents", []))[:-KEPT]
        for name in old:
            await client.delete_object(Bucket=BUCKET, Key=name)
    return old


@flow(on=cron("0 2 * * *"))
async def backup() -> dict[str, Any]:
    """Make the backup of the night."""
    command = ["pg_dump", "--format=custom", "--", DATABASE]
    made = await shell(command, stdout=artefact("shop.dump"), env=PG, timeout="1h")
    name = f"{DATABASE}/{current().event.time:%Y-%m-%dT%H%M%S}.dump"
    rows = await restore(await download(await store(name, made.artefact or "")))
    return {"name": name, "rows": rows, "removed": await prune()}

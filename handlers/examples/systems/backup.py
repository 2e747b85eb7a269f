"""Back up a PostgreSQL database to S3 each night: dumped, stored, restored as a test, pruned.

What is stored is restored and asked for its rows; a backup that fails there is removed, and the
old ones stay. `PGHOST`, `PGPORT` and `PGUSER` say where, and the password is in `~/.pgpass`.
"""

# /// script
# dependencies = ["boto3>=1.40", "botocore"]
# ///

import os
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import NoCredentialsError

from turnout import Fail, artefact, cron, current, flow, retry, shell, task

BUCKET, DATABASE, KEPT = "backups", "shop", 7
ROWS = "SELECT count(*) FROM orders"
again = retry(5, not_on=NoCredentialsError)
PG = {name: os.environ[name] for name in ("PGHOST", "PGPORT", "PGUSER") if name in os.environ}


def bucket() -> Any:
    """Return the bucket, by a client of its own: tasks run in threads."""
    return boto3.session.Session().resource("s3").Bucket(BUCKET)


def remove(name: str) -> None:
    """Undo a backup that could not be restored; removing it again changes nothing."""
    bucket().Object(name).delete()


@task(undo=remove, retry=again, timeout="1h")
def store(name: str) -> None:
    """Store the dump under a name of its own; S3 compares checksums, and takes it whole or not."""
    meta = {"Metadata": {"turnout-key": current().key()}}
    bucket().upload_file(str(artefact("made.dump").path), name, ExtraArgs=meta)


@task(retry=again, timeout="1h")
def download(name: str) -> None:
    """Keep what is stored with the run; the file of a try that was cut off is written over."""
    part = Path(f"{current().key()}.part")
    with part.open("wb") as file:  # not `download_file`: a kill leaves its file under a random name
        bucket().download_fileobj(name, file)
    current().attach("stored.dump", part)
    part.unlink()


@task(retry=again, timeout="1h")
async def restore() -> int:
    """Restore what was stored where nobody works, and return how many rows it has."""
    scratch = f"restored_{current().key()[:8]}"
    await shell(["dropdb", "--if-exists", scratch], env=PG)  # of a try that was cut off
    await shell(["createdb", scratch], env=PG)
    try:
        # -e: an error ends it, -O: whoever owned the tables.
        await shell(["pg_restore", "-eO", "-d", scratch], stdin=artefact("stored.dump"), env=PG)
        asked = await shell(["psql", "--no-psqlrc", "-Atc", ROWS, scratch], env=PG)
    finally:
        await shell(["dropdb", scratch], env=PG)
    if (rows := int(asked.stdout)) == 0:
        raise Fail("the backup has no rows")
    return rows


@task(retry=again, timeout="5m")
def prune() -> list[str]:
    """Remove all but the newest; doing it again finds none."""
    names = sorted(each.key for each in bucket().objects.filter(Prefix=f"{DATABASE}/"))
    for name in names[:-KEPT]:
        remove(name)
    return names[:-KEPT]


@flow(on=cron("0 2 * * *"))
async def backup() -> dict[str, Any]:
    """Make the backup of the night."""
    dump = ["pg_dump", "-Fc", DATABASE]
    await shell(dump, stdout=artefact("made.dump"), env=PG, retry=again, timeout="1h")
    name = f"{DATABASE}/{current().event.time:%Y-%m-%dT%H%M%S}.dump"
    await store.run(name)
    await download.run(name)
    return {"name": name, "rows": await restore(), "removed": await prune.run()}

"""Exchange files with a partner over SFTP: fetch what they drop, and bring them what lies ready.

Nobody sees half a file: it is written under another name, and renamed when it is whole.
In `known_hosts` is the partner's key, in `id_partner` ours.
"""

# /// script
# dependencies = ["asyncssh>=2.24"]
# ///

import asyncio
import csv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh

from turnout import artefact, current, every, files, flow, retry, secret, task


@asynccontextmanager
async def partner() -> AsyncIterator[asyncssh.SFTPClient]:
    """Open a session at `PARTNER_SFTP`, which is HOST or HOST:PORT."""
    host, _, port = secret("PARTNER_SFTP").reveal().partition(":")
    connecting = asyncssh.connect(
        host, int(port or 22), username="shop", known_hosts="known_hosts", client_keys="id_partner"
    )
    async with connecting as connection, connection.start_sftp_client() as session:
        yield session


@task(reads=True, retry=retry(5), timeout="30s")
async def dropped() -> list[str]:
    """Return what lies there; what the partner still writes has another name."""
    async with partner() as session:
        return sorted(name for name in await session.listdir("out") if str(name).endswith(".csv"))


@task(retry=retry(5), timeout="5m")
async def fetch(name: str) -> str:
    """Keep a file with the run; it stays where it was."""
    async with partner() as session, session.open(f"out/{name}", "rb") as file:
        return await asyncio.to_thread(current().attach, name, await file.read())


@task
def book(name: str) -> int:
    """Do with it what is to be done."""
    with artefact(name).path.open(newline="") as file:
        return len(list(csv.DictReader(file)))


@task(retry=retry(5), timeout="30s")
async def acknowledge(name: str) -> None:
    """Move it away, once its rows are booked; a step that was cut off may have done so."""
    async with partner() as session:
        if await session.exists(f"out/{name}"):
            await session.posix_rename(f"out/{name}", f"out/taken/{name}")


@flow(on=every("1m"), mode="skip", timeout="30m")
async def collect() -> dict[str, int]:
    """Take everything that was dropped, one file after the other."""
    booked = {}
    for name in await dropped():
        booked[name] = await book.run(await fetch(name))
        await acknowledge(name)
    return booked


@task(retry=retry(5), timeout="5m")
async def bring(path: Path) -> None:
    """Bring a file; a step that was cut off leaves a part, which the next try writes over."""
    part = f"in/.{path.name}.{current().key()[:8]}"
    async with partner() as session:
        await session.put(str(path), part)
        await session.posix_rename(part, f"in/{path.name}")


@flow(on=files("ready/*.csv"))
async def deliver(path: Path) -> None:
    """Bring the partner a file."""
    await bring(path)

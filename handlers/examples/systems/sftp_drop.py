"""Exchange files with a partner over SFTP: fetch what they drop, and bring them what lies ready.

Nobody sees half a file: it is written under another name, and renamed when it is whole. A file is
moved away, then booked: its run says what came of it, and `turnout retry` books what has failed.
The partner is at `PARTNER_SFTP`; in `known_hosts` is their key, in `id_partner` ours.
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

from turnout import Skip, artefact, current, emit, event, every, files, flow, retry, secret, task


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


@flow(on=every("1m"), mode="skip", timeout="10m")
async def collect() -> list[str]:
    """Start a run for each file that lies there: one that cannot be booked holds up no other."""
    names = await dropped()
    for name in names:
        await emit("partner.dropped", name)
    return names


@task(retry=retry(5), timeout="30s")
async def take(name: str) -> str:
    """Move a file to where the partner replaces it no more; returns its name there."""
    taken = f"{current().key()[:8]}-{name}"
    async with partner() as session:
        if await session.exists(f"out/taken/{taken}"):  # by a try that was cut off
            return taken
        if not await session.exists(f"out/{name}"):
            raise Skip(f"{name} has gone")
        # Not `rename`: servers link the file, then remove what has its name by then.
        await session.posix_rename(f"out/{name}", f"out/taken/{taken}")
    return taken


@task(retry=retry(5), timeout="5m")
async def fetch(taken: str) -> str:
    """Keep a file with the run."""
    async with partner() as session, session.open(f"out/taken/{taken}", "rb") as file:
        return await asyncio.to_thread(current().attach, taken, await file.read())


@task
def book(kept: str) -> int:
    """Do with it what is to be done."""
    with artefact(kept).path.open(newline="") as file:
        return len(list(csv.DictReader(file)))


@flow(on=event("partner.dropped"), key=lambda each: each.data, mode="skip", timeout="30m")
async def receive(name: str) -> int:
    """Take a file, once however often it was seen meanwhile, and book its rows."""
    return await book.run(await fetch(await take(name)))


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

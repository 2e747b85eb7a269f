"""One flow that ends its process, one that blocks its loop for good, and innocent company."""

import asyncio
import os

from turnout import current, flow, task, webhook

witness = os.open(os.environ["TURNOUT_TEST_WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def executing(step: str) -> None:
    run = current()
    os.write(witness, f"{run.run.id} {step} {run.attempt}\n".encode())


@flow(on=webhook("/exits"))
async def exits() -> None:
    executing("exits")
    await asyncio.sleep(0.2)
    os._exit(99)


@flow(on=webhook("/blocks"))
async def blocks() -> None:
    executing("blocks")
    await asyncio.sleep(0.2)
    while True:
        pass


@task
async def before() -> str:
    executing("before")
    return os.urandom(8).hex()


@flow(on=webhook("/minted"))
async def innocent() -> str:
    mark = await before()
    executing("body")
    # Long enough to be running at the first two deaths; then suspects run one at a time.
    await asyncio.sleep(0.5 if current().run.crashes < 2 else 0.02)
    return mark

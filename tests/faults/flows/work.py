"""Flows whose length a test chooses: quick, slow, held at a gate, stuck in a thread."""

import asyncio
import os
import time
from pathlib import Path

from turnout import current, flow, limit, task, webhook

SECONDS = float(os.environ.get("TURNOUT_TEST_SECONDS", "0.005"))
AT_ONCE = int(os.environ.get("TURNOUT_TEST_AT_ONCE", "64"))
GATE = Path(os.environ["TURNOUT_TEST_GATE"])

witness = os.open(os.environ["TURNOUT_TEST_WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def executing(step: str) -> None:
    run = current()
    os.write(witness, f"{run.run.id} {step} {run.attempt}\n".encode())


@flow(on=webhook("/minted"), concurrency=limit(AT_ONCE))
async def slow() -> None:
    executing("slow")
    await asyncio.sleep(SECONDS)


@flow(on=webhook("/unmatched"), when=lambda _event: False)
async def never() -> None:
    executing("never")


@task
async def first() -> None:
    executing("first")
    await asyncio.sleep(SECONDS)


@task
async def second() -> None:
    executing("second")
    await asyncio.sleep(SECONDS)


@flow(on=webhook("/steps"), concurrency=limit(AT_ONCE))
async def two_steps() -> None:
    await first()
    await second()


@flow(on=webhook("/gated"))
async def gated() -> str:
    executing("gated")
    while not await asyncio.to_thread(GATE.exists):  # noqa: ASYNC110  the gate is a file
        await asyncio.sleep(0.02)
    return "through"


@flow(on=webhook("/stuck"))
def stuck() -> str:
    executing("stuck")
    while not GATE.exists():
        time.sleep(0.02)
    return "through"

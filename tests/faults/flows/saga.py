"""Orders of three parts, each to be given back: every line of the ledger is an effect outside."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from turnout import Fail, current, flow, retry, sleep, task, webhook

FOLDER = Path(os.environ["TURNOUT_TEST_LEDGER"])


def enter(what: str, order: str, part: str, key: str) -> None:
    with (FOLDER / "ledger").open("a") as file:
        file.write(f"{what} {order} {part} {key}\n")


@task(retry=retry(1, delay="5ms"))
async def give_back(order: str, part: str, key: str) -> None:
    await asyncio.sleep(0.01)
    if (FOLDER / "bank-down").exists():
        raise OSError("the bank is down")
    enter("back", order, part, key)
    await asyncio.sleep(0.01)


@task(undo=give_back)
async def take(order: str, part: str) -> str:
    await asyncio.sleep(0.01)
    enter("take", order, part, current().key())
    await asyncio.sleep(0.01)
    return part


@flow(on=webhook("/fails"))
async def fails(data: dict[str, str]) -> None:
    for part in "abc":
        await take(data["order"], part)
    raise Fail("no stock")


@flow(on=webhook("/waits"))
async def waits(data: dict[str, str]) -> None:
    for part in "abc":
        await take(data["order"], part)
    await sleep("1h")


@flow
async def below(data: dict[str, str]) -> None:
    await take(data["order"], "c")
    await sleep("1h")


@flow(on=webhook("/parents"))
async def parents(data: dict[str, str]) -> None:
    for part in "ab":
        await take(data["order"], part)
    await below(data)

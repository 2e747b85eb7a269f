"""Flows with open windows, and with runs that wait, in the journals beside this file.

It never changes: a run that goes on is compared with the code it began with.
"""

import os
from typing import Any

from turnout import (
    Event,
    Retry,
    absent,
    all_of,
    approval,
    batch,
    count,
    current,
    debounce,
    first,
    flow,
    sequence,
    sleep,
    wait_for,
    webhook,
)

LONG = "30000d"
went_on, paid, cancelled = webhook("/went-on"), webhook("/paid"), webhook("/cancelled")

Order = dict[str, Any]


def key(event: Event) -> str:
    return str(event.data["key"])


def numbers(orders: list[Order]) -> list[int]:
    return [int(order["n"]) for order in orders]


@flow(on=debounce(webhook("/pages"), "1h", max="3h", per=key))
async def index(page: Order) -> int:
    return int(page["n"])


@flow(on=debounce(webhook("/alerts"), "1h", max="3h", keep="all"))
async def tell(alerts: list[Order]) -> list[int]:
    return numbers(alerts)


@flow(on=batch(webhook("/rows"), 3, "1h"))
async def insert(rows: list[Order]) -> list[int]:
    return numbers(rows)


@flow(on=count(webhook("/failures"), 3, "1h", per=key))
async def lock(failures: list[Order]) -> list[int]:
    return numbers(failures)


@flow(on=sequence(webhook("/opened"), webhook("/shut"), within="1h", per=key))
async def watch(doors: list[Order]) -> list[int]:
    return numbers(doors)


@flow
async def remind(came: list[Order]) -> list[int]:
    return numbers(came)


@flow(on=all_of(webhook("/orders"), webhook("/payments"), within="1h", per=key, on_timeout=remind))
async def ship(came: list[Order]) -> list[int]:
    return numbers(came)


@flow(on=absent(webhook("/ended"), "1h", after=webhook("/begun"), per=key))
async def miss(begun: Order) -> int:
    return int(begun["n"])


@flow(on=absent(webhook("/beats"), "1h"))
async def silence() -> str:
    return "no beat"


@flow(on=batch(webhook("/lines"), 2, "1h"), awaits=[went_on])
async def prints(lines: list[Order]) -> list[int]:
    await wait_for(went_on, match={"n": lines[0]["n"]}, timeout=LONG)
    return numbers(lines)


@flow(on=batch(webhook("/items"), 3, "1h"), retry=3)
async def store(items: list[Order]) -> list[int]:
    if "THE_STORE_IS_FULL" in os.environ:
        raise Retry("the store is full", items=[1, 2], after="1h")
    return numbers(items)


@flow(on=webhook("/races"), awaits=[paid, cancelled])
async def races(order: Order) -> str:
    mine = {"n": order["n"]}
    match await first(wait_for(paid, match=mine), wait_for(cancelled, match=mine), sleep("2h")):
        case (0, _):
            return "paid"
        case (1, _):
            return "cancelled"
        case _:
            return "forgotten"


@flow(on=webhook("/asks"))
async def asks(order: Order) -> list[str]:
    said = [await approval("ops", timeout=LONG), await approval("boss", timeout=LONG)]
    return [each.by for each in said]


@flow(on=webhook("/polls"), concurrency=1)
async def polls(order: Order) -> int:
    before: int = current().state.get(default=0)
    current().state.set(int(order["n"]))
    return before

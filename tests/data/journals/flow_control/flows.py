"""Flows whose runs wait under every rule of flow control in the journals beside this file.

It never changes: a run that goes on is compared with the code it began with.
"""

import os
from typing import Any

from turnout import (
    Event,
    Retry,
    dependency,
    flow,
    limit,
    rate_limit,
    throttle,
    unique,
    wait_for,
    webhook,
)

LONG = "30000d"
went_on = webhook("/went-on")

Order = dict[str, Any]


def key(event: Event) -> str:
    return str(event.data["key"])


async def until_it_goes_on(order: Order) -> int:
    await wait_for(went_on, match={"n": order["n"]}, timeout=LONG)
    return int(order["n"])


@flow(on=webhook("/accounts"), awaits=[went_on], concurrency=limit(1, per=key, hold="run"))
async def accounts(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/ordered"), awaits=[went_on], ordered_by=key, max_queued=1)
async def ordered(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/reads"), concurrency=[limit("db", 1), limit(2)])
async def reads(order: Order) -> int:
    return int(order["n"])


@flow(on=webhook("/calls"), rate=throttle("calls", "1/h"))
async def calls(order: Order) -> int:
    return int(order["n"])


@flow(on=webhook("/views"), rate=[throttle("5/h", per=key), rate_limit("1/h", per=key)])
async def views(order: Order) -> int:
    return int(order["n"])


@flow(on=webhook("/deploys"), awaits=[went_on], key=key, mode="latest")
async def deploys(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/builds"), awaits=[went_on], key=key, mode="replace")
async def builds(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/scans"), awaits=[went_on], key=key, mode="skip", timeout="1h")
async def scans(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/bills"), unique=unique(key, until="7d"))
async def bills(order: Order) -> int:
    return int(order["n"])


@flow(on=webhook("/asks"), awaits=[went_on], unique=unique(key))
async def asks(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/picks"), priority=lambda event: event.data["key"])
async def picks(order: Order) -> int:
    return int(order["n"])


@flow(on=webhook("/expires"), start_timeout="2h")
async def expires(order: Order) -> int:
    return int(order["n"])


@flow(on=webhook("/ships"), awaits=[went_on], cancel_on=webhook("/called-off"), match="key")
async def ships(order: Order) -> int:
    return await until_it_goes_on(order)


@flow(on=webhook("/books"), needs=dependency("crm", probe="1h"))
async def books(order: Order) -> int:
    if "CRM_IS_DOWN" in os.environ:
        raise Retry("the CRM asks for time", after="1h", pause="crm")
    return int(order["n"])

"""The flow that wrote the journals of runs with limit keys beside this file; it never changes."""

import asyncio

from turnout import flow, limit, webhook

at_once: dict[str, int] = {}
most: dict[str, int] = {}


@flow(on=webhook("/bills"), concurrency=limit(1, per=lambda event: event.data["customer"]))
async def bill(order: dict) -> list[object]:  # type: ignore[type-arg]
    """Return who was billed, and how many bills of that customer ran at once so far."""
    customer = order["customer"]
    at_once[customer] = at_once.get(customer, 0) + 1
    most[customer] = max(most.get(customer, 0), at_once[customer])
    await asyncio.sleep(0.05)
    at_once[customer] -= 1
    return [customer[:5], order["n"], most[customer]]

"""Fetch at once and cache for an hour; how much came decides how it is worked on.

The service at `SHOP_URL` answers `/users` and `/orders` with JSON lists.
"""

from typing import Any

import httpx

from turnout import by_input, flow, gather, retry, secret, task, webhook

Rows = list[dict[str, Any]]


@task(cache=by_input(ttl="1h"), retry=retry(3, delay="1s"), timeout="30s")
async def fetch(endpoint: str) -> Rows:
    """Return the rows of an endpoint."""
    async with httpx.AsyncClient(base_url=secret("SHOP_URL").reveal(), timeout=10) as http:
        answer = await http.get(endpoint)
    rows: Rows = answer.raise_for_status().json()
    return rows


@task(pool="process")
def large(active: Rows, done: Rows) -> dict[str, int]:
    """Count in a process of its own, off the service's."""
    return {"users": len(active), "orders": len(done)}


@task
async def small(active: Rows, done: Rows) -> dict[str, int]:
    """Count here and now."""
    return {"users": len(active), "orders": len(done)}


@flow(on=webhook("/process", verify="none"))
async def dynamic() -> dict[str, int]:
    """Count active users and completed orders."""
    users, orders = await gather(fetch("users"), fetch("orders"))
    active = [user for user in users if user["active"]]
    done = [order for order in orders if order["status"] == "completed"]
    if len(active) > 1000:
        return await large.run(active, done)
    return await small(active, done)

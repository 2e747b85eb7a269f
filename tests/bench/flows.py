"""The flow files the benchmarks serve."""

ORDER = """
from pydantic import BaseModel
class Item(BaseModel):
    sku: str
    count: int
    price: float
class Address(BaseModel):
    street: str
    city: str
    zip: str
    country: str
class Order(BaseModel):
    id: str
    customer: str
    amount: float
    currency: str
    items: list[Item]
    address: Address
    note: str
"""

OCCUPIED = """
import asyncio
from turnout import flow, limit, webhook
@flow(on=webhook("/orders"), concurrency=limit(1))
async def bill(order: dict) -> None:
    await asyncio.sleep(36_000)
"""

OCCUPIED_VALIDATING = (
    ORDER
    + """
import asyncio
from turnout import flow, limit, webhook
@flow(on=webhook("/orders"), concurrency=limit(1))
async def bill(order: Order) -> None:
    await asyncio.sleep(36_000)
"""
)

FREE = """
from turnout import flow, webhook
@flow(on=webhook("/orders"))
async def bill(order: dict) -> None:
    return None
"""

RESPONDING = """
from turnout import flow, webhook
@flow(on=webhook("/orders", respond=True))
async def bill(order: dict) -> None:
    return None
"""

RETURNING = """
from turnout import flow, webhook
@flow(on=webhook("/orders"))
async def bill(order: dict) -> dict:
    return {"id": order["id"], "total": sum(i["count"] * i["price"] for i in order["items"])}
"""
RETURNING_TO_CALLER = RETURNING.replace('"/orders"', '"/orders", respond=True')

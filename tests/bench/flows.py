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

STAMP = """
import os, time
OUT = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def stamp(key):
    os.write(OUT, f"{key} {time.time_ns()}\\n".encode())
"""

DROPPED = (
    STAMP
    + """
from pathlib import Path
from turnout import files, flow
@flow(on=files(os.environ["BENCH_INBOX"] + "/*.json", settle=os.environ["BENCH_SETTLE"]))
async def load(path: Path) -> None:
    stamp(path.name)
"""
)

TICKING = (
    STAMP
    + """
from turnout import Event, at, every, flow, sleep, webhook
PENDING = int(os.environ["BENCH_TIMERS"])
LATER = [at(f"2099-01-01T00:00:{n % 60:02}", tz="UTC", name=f"later-{n}") for n in range(PENDING)]
@flow(on=every("100ms"))
async def tick(event: Event) -> None:
    stamp(f"{event.time.timestamp():.6f}")
if LATER:
    @flow(on=LATER)
    async def later() -> None: ...
@flow(on=webhook("/orders"))
async def sleeper(order: dict) -> None:
    await sleep("10h")
"""
)

SMALL = """
import os
from pathlib import Path
from turnout import cron, every, files, flow, webhook
@flow(on=webhook("/orders"))
async def bill(order: dict) -> None:
    return None
@flow(on=webhook("/answered", respond=True))
async def answer(order: dict) -> None:
    return None
@flow(on=files(os.environ["BENCH_INBOX"] + "/*.csv"))
async def load(path: Path) -> None:
    return None
@flow(on=[cron("0 9 * * *", tz="Europe/Berlin"), every("1h")])
async def report() -> None:
    return None
"""

MIXED = (
    STAMP
    + """
from pathlib import Path
from turnout import Event, event, every, files, flow, kafka, retry, task, webhook
@task
async def price(order: dict) -> float:
    return sum(item["count"] * item["price"] for item in order["items"])
@flow(on=webhook("/orders"))
async def bill(order: dict) -> float:
    return await price(order)
@flow(on=event("order.placed"), retry=retry(2, delay="1s"))
def placed(order: dict) -> None:
    stamp(order["key"])
@flow(on=files(os.environ["BENCH_INBOX"] + "/*.json", settle="100ms"))
async def load(path: Path) -> None:
    stamp(path.name)
@flow(on=every("1s"))
async def tick(event: Event) -> None:
    stamp(f"tick {event.time.timestamp():.6f}")
if "BENCH_TOPIC" in os.environ:
    @flow(on=kafka(os.environ["BENCH_TOPIC"], group="mixed", start="earliest"))
    async def consume(order: dict) -> None:
        stamp(order["key"])
"""
)

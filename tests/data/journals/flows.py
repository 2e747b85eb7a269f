"""Flows with unfinished runs in the journals beside this file.

It never changes: a run that goes on is compared with the code it began with.
"""

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from kept_types import Order, Receipt, Refused, release

from turnout import (
    Event,
    Fail,
    Rejected,
    approval,
    by_input,
    current,
    emit,
    event,
    flow,
    gather,
    retry,
    sleep,
    task,
    wait_for,
    webhook,
)

LONG = "30000d"
went_on = webhook("/went-on")


async def the_journal_is_opened_again(n: int) -> Event:
    return await wait_for(went_on, match={"n": n}, timeout=LONG)


@task
async def refuse(order: Order) -> None:
    raise Refused(order.n, because="it is old")


@task
def lose_connection() -> None:
    raise ConnectionResetError(104, "reset by peer")


@task
async def fail_together() -> None:
    raise ExceptionGroup("both", [ValueError("a"), OSError("b")])


@task(timeout="10ms")
async def take_too_long() -> None:
    await asyncio.Event().wait()


@flow(on=webhook("/catches"), awaits=[went_on])
async def catches(order: Order) -> list[str]:
    caught = []
    for call in (lambda: refuse(order), lose_connection.run, fail_together, take_too_long):
        try:
            await call()
        except Exception as error:
            caught.append(f"{type(error).__module__}.{type(error).__name__}: {error}")
            if isinstance(error, Refused):
                caught.append(f"{error.order} {error.because}")
            if isinstance(error, ConnectionResetError):
                caught.append(str(error.errno))
    await the_journal_is_opened_again(order.n)
    return caught


@task
async def money() -> Decimal:
    return Decimal("12.50")


@task
async def instants() -> tuple[datetime, timedelta]:
    zone = timezone(timedelta(hours=2))
    return datetime(2026, 3, 28, 12, tzinfo=zone), timedelta(days=1, microseconds=1)


@task
async def receipt(order: Order) -> Receipt:
    return Receipt(order.n, 1 + 2j)


@task
async def anything() -> Any:
    return {"set": {1}, "bytes": b"\x00\xff", "path": Path("a/b"), 7: (1, 2)}


@task
async def model(order: Order) -> Order:
    return order.model_copy(update={"customer": "other"})


@flow(on=webhook("/values"), awaits=[went_on])
async def values(order: Order) -> list[str]:
    first = await wait_for(went_on, match={"n": -order.n}, timeout=LONG)
    kept = [await money(), *await instants(), await receipt(order), await anything()]
    kept += await gather(model(order), model(Order(n=0)))
    await the_journal_is_opened_again(order.n)
    shown = [each.isoformat() if isinstance(each, datetime) else repr(each) for each in kept]
    return [*shown, first.type, str(first.data["n"])]


@flow
async def fails(order: Order) -> None:
    raise ValueError(f"child {order.n} failed")


@flow(on=webhook("/parent"), awaits=[went_on])
async def parent(order: Order) -> str:
    try:
        await fails(order)
    except Exception as error:
        await the_journal_is_opened_again(order.n)
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    return "no error"


@flow(awaits=[went_on])
async def child(order: Order) -> int:
    await the_journal_is_opened_again(order.n)
    return order.n * 2


@flow(on=webhook("/calls"))
async def calls(order: Order) -> int:
    return 1 + await child(order)


@flow(on=webhook("/asks"))
async def asks(order: Order) -> str:
    said = await approval("ops", fields=Order, timeout=LONG)
    return f"{said.fields.n} {said.fields.customer}"


@flow(on=webhook("/rejected"))
async def rejected(order: Order) -> str:
    try:
        await approval("ops")
    except Rejected as error:
        return f"rejected: {error}"
    return "approved"


@flow(on=webhook("/naps"))
async def naps(order: Order) -> str:
    before = await money()
    await sleep("60s")
    return f"woke with {before}"


@flow(on=webhook("/retries"), retry=retry(2, delay="60s", jitter=False))
async def retries(order: Order) -> int:
    await money()
    if current().attempt == 1:
        raise OSError("not yet")
    return current().attempt


@task
async def large() -> list[str]:
    return ["x" * 100] * 100


@flow(on=webhook("/stores"), awaits=[went_on])
async def stores(order: Order) -> int:
    lines = await large()
    await the_journal_is_opened_again(order.n)
    return sum(map(len, lines))


@flow(on=webhook("/ordered"), awaits=[went_on], ordered_by=lambda event: "one")
async def ordered(order: Order) -> int:
    await the_journal_is_opened_again(order.n)
    return order.n


@flow(on=webhook("/books"), awaits=[went_on])
async def books(order: Order) -> None:
    current().on_undo(release, order.n, place="car")
    await money()
    await the_journal_is_opened_again(order.n)
    raise Fail("no longer wanted")


@task(cache=by_input(ttl="30000d"))
async def look_up(n: int) -> list[int]:
    return [n, n]


@flow(on=webhook("/looks-up"))
async def looks_up(order: Order) -> list[int]:
    return await look_up(order.n)


@task
async def booked(order: Order) -> str:
    return datetime.now(UTC).isoformat()


@flow(on=webhook("/dies"), awaits=[went_on])
async def dies(order: Order) -> str:
    when = await booked(order)
    if "DIE" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return when


@flow(on=webhook("/held"))
def held(order: Order) -> str:
    return f"held {order.n}"


@flow(on=event("order.told"))
async def told(order: Order) -> str:
    return f"told {order.n}"


@flow(on=webhook("/tells"))
async def tells(order: Order) -> None:
    await emit("order.told", {"n": order.n}, id=f"order-{order.n}")
    await sleep("60s")
    await emit("order.told", {"n": order.n}, id=f"order-{order.n}")


@flow(on=webhook("/breaks"))
async def breaks(order: Order) -> None:
    raise ValueError(f"order {order.n} breaks")

"""An author's file, as a type checker sees it: `test_typing` reads what it reveals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, reveal_type

from turnout import (
    Event,
    Pending,
    approval,
    artefact,
    budget,
    current,
    dependency,
    event,
    first,
    flow,
    gather,
    http,
    limit,
    poll,
    resource,
    retry,
    secret,
    shell,
    sleep,
    task,
    wait_for,
)


@dataclass
class Order:
    id: str
    amount: float


@resource
async def database() -> dict[str, int]:
    return {}


@task(retry=retry(3, delay="1s"), timeout="30s")
async def charge(order: Order) -> str:
    return order.id


@task
async def weigh(order: Order, unit: str = "kg") -> float:
    return order.amount


@task
def pack(order: Order) -> bytes:
    return order.id.encode()


@task(pool="process")
def crunch(numbers: list[int]) -> int:
    return sum(numbers)


@flow(
    when=lambda event: event.data["amount"] > 0,
    concurrency=limit(8, per=lambda event: event.data["customer"]),
    needs=[dependency("bank", errors=OSError), dependency("crm", probe="1m")],
    retry=2,
    timeout="5m",
)
async def bill(order: Order, db: Annotated[dict[str, int], database]) -> dict[str, str]:
    receipt = await charge(order)
    reveal_type(receipt)  # str
    reveal_type(await weigh(order, unit="lb"))  # float
    reveal_type(await pack.run(order))  # bytes
    reveal_type(await crunch.run([1]))  # int
    reveal_type(await gather(charge(order), weigh(order)))  # tuple[str, float]
    reveal_type(await gather(*[charge(order)]))  # tuple[str, ...]
    both = await gather(charge(order), pack.run(order), return_exceptions=True)
    reveal_type(both)  # tuple[str | Exception, bytes | Exception]
    reveal_type(await charge.map([order], limit=4))  # list[str]
    reveal_type(await weigh.map([order]))  # list[float]
    reveal_type(await pack.map([order], limit=4))  # list[bytes]
    current().log.info("order.charged", receipt=receipt, key=current().key("mail"))
    return {"receipt": receipt}


@flow
def in_a_thread(order: Order, event: Event) -> int:
    reveal_type(pack(order))  # bytes
    reveal_type(list(pack.map([order])))  # list[bytes]
    reveal_type(pack.map([order])[0])  # bytes
    reveal_type(crunch([1, 2]))  # int
    reveal_type(current().attempt)  # int
    return 1


async def direct() -> None:
    reveal_type(await bill(Order("1", 2.0), {}))  # dict[str, str]


paid = event("order.paid")


@flow(awaits=paid)
async def waits(order: Order) -> str:
    came = await first(wait_for(paid), bill_again(order), sleep("2d"))
    if came.which == 0:
        reveal_type(came.value.hops)  # int
    match came:
        case (0, value):
            reveal_type(value.hops)  # int
        case (1, value):
            reveal_type(value)  # str
    question = await first(approval("ops"), sleep("2d"))
    reveal_type(question.value.by if question.which == 0 else current().attempt)  # str | int
    reveal_type((await first(*[wait_for(paid)])).value.hops)  # int
    return "x"


@task
async def is_ready(order: Order) -> str | Pending:
    return Pending("half")


@task
def is_weighed(order: Order, unit: str = "kg") -> float | Pending:
    return 1.0


@flow
async def polls(order: Order) -> str:
    reveal_type(await poll(is_ready, order, every="5s"))  # str
    reveal_type(await poll(is_weighed, order, "lb", timeout=None))  # float
    reveal_type(await budget("scale", max_changes=10, per="1h").take(2))  # None
    came = await first(sleep("1h"), poll(is_ready, order))
    reveal_type(came.value if came.which == 1 else "x")  # str
    return "x"


@flow
async def bill_again(order: Order) -> str:
    return order.id


@task
def attaches(order: Order) -> str:
    reveal_type(artefact("a.csv").read())  # bytes
    return current().attach("a.csv", artefact("b.csv").path, type="text/csv")


@flow
async def asks(order: Order) -> int:
    answer = await http.post("https://a.example/", json={"id": order.id}, headers={"X": "y"})
    reveal_type(answer.text)  # str
    reveal_type((await http("PATCH", "https://a.example/", untrusted=True)).status_code)  # int
    await http.get("https://a.example/dump", to=artefact("dump.zst"), redirects=2)
    return answer.status_code


@flow
async def commands(order: Order) -> str:
    result = await shell(["pg_dump", Path("x")], env={"A": "b", "B": secret("B")}, timeout="1h")
    reveal_type(result.exit_code)  # int
    reveal_type((await shell("ls | wc", shell=True, retry=2, allow={1})).stdout)  # str
    await shell(["cat"], stdin=artefact("a"), stdout=artefact("b"), reads=True)
    return result.stderr


@task(pool="process")
def command(order: Order) -> bytes:
    reveal_type(shell.blocking(["ls", order.id]).left_out)  # int
    return shell.blocking(["ls"], cwd="x", stdin=b"y").stdout_bytes

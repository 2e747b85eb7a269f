"""The flows of this project. `turnout check .` finds mistakes, `turnout serve .` runs them."""

from pydantic import BaseModel

from turnout import cron, current, flow, retry, task, webhook


class Order(BaseModel):
    """What a request to /hooks/orders must hold; anything else is answered 422."""

    id: str
    amount: float


@task(retry=retry(3, delay="1s"), timeout="30s")
async def confirm(order: Order) -> str:
    """Tell the customer; a task, since it has an effect: recorded once done, and not repeated."""
    return f"confirmed {order.id}"


@flow(on=webhook("/orders"), timeout="5m")
async def order(order: Order) -> str:
    """Confirm an order; if the process dies in the middle, the run goes on after its last step."""
    return await confirm(order)


@task
def measure() -> int:
    """Return what is to be reported; a task, since it may answer differently next time."""
    return 42


@flow(on=cron("0 6 * * *", tz="UTC"), timeout="10m")
async def nightly() -> int:
    """Log a number every morning."""
    measured = await measure.run()
    current().log.info("nightly.measured", measured=measured)
    return measured

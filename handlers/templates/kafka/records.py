"""A flow for each record of a topic; the setting kafka_bootstrap_servers names the brokers."""

from pydantic import BaseModel

from turnout import flow, kafka, retry, task


class Payment(BaseModel):
    """What a record must hold; anything else is a dead letter, and its partition goes on."""

    order: str
    amount: float


@task(retry=retry(3, delay="1s"), timeout="30s")
async def book(payment: Payment) -> str:
    """Write it down; a task, since it has an effect."""
    return f"booked {payment.order}"


@flow(on=kafka("payments", group="billing"), ordered_by="key", timeout="5m")
async def payment(payment: Payment) -> str:
    """Book a payment, those of one key one after the other."""
    return await book(payment)

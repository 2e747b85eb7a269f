"""Take orders from a queue of SQS: each starts one run, and is deleted once that is on disk.

SQS delivers at least once: what comes again has the same id, and starts nothing. An order that
nobody can read fails its own run, and holds up none behind it. `QUEUE_URL` is the queue; region
and credentials are those of the environment, as for every client of AWS.
"""

# /// script
# dependencies = ["aiobotocore>=3", "botocore"]
# ///

import os
from functools import partial

from aiobotocore.session import get_session
from botocore.exceptions import ConnectionError, HTTPClientError
from pydantic import BaseModel

from turnout import current, emit, event, every, flow, retry, task

sqs = partial(get_session().create_client, "sqs")
again = retry(5, on=(ConnectionError, HTTPClientError))  # the client itself tries 5xx again
MOST = 100
"""So many batches a run; the next tick goes on."""


class Order(BaseModel):
    """What a message says."""

    id: str
    amount: int


@task(retry=again, timeout="1m")
async def receive() -> list[dict[str, str]]:
    """Wait for up to ten messages; the queue hides them for its visibility timeout."""
    async with sqs() as client:
        answer = await client.receive_message(
            QueueUrl=os.environ["QUEUE_URL"], MaxNumberOfMessages=10, WaitTimeSeconds=20
        )
    return [
        {"id": each["MessageId"], "receipt": each["ReceiptHandle"], "body": each["Body"]}
        for each in answer.get("Messages", [])
    ]


@task(retry=again, timeout="1m")
async def delete(receipts: list[str]) -> None:
    """Delete messages; one that stays is delivered again, and deleted then."""
    entries = [{"Id": str(n), "ReceiptHandle": each} for n, each in enumerate(receipts)]
    async with sqs() as client:
        await client.delete_message_batch(QueueUrl=os.environ["QUEUE_URL"], Entries=entries)


@flow(on=every("30s"), mode="skip", timeout="1h")
async def drain_queue() -> int:
    """Start a run for each message that waits; returns how many were handed on."""
    count = 0
    for _ in range(MOST):
        if not (messages := await receive()):
            break
        for each in messages:
            await emit("queue.order", each["body"], id=each["id"])
        await delete([each["receipt"] for each in messages])
        count += len(messages)
    return count


@task
async def book(order: Order) -> str:
    """Do with it what is to be done, under a key that is the same for each try."""
    return f"order {order.id} is booked under {current().key()[:8]}"


@flow(on=event("queue.order"), timeout="10m")
async def book_order(body: str) -> str:
    """Book an order."""
    return await book(Order.model_validate_json(body))

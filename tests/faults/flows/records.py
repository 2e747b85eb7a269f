"""One run for each record of a topic, which returns what the record says."""

import os

from turnout import Event, flow, limit
from turnout.triggers.kafka import kafka

RECORDS = kafka(
    os.environ["TURNOUT_TEST_TOPIC"],
    group=os.environ["TURNOUT_TEST_GROUP"],
    start="earliest",
    session=os.environ.get("TURNOUT_TEST_SESSION", "2s"),
)


@flow(on=RECORDS, concurrency=limit(64))
async def read(event: Event) -> int:
    number: int = event.data["number"]
    return number

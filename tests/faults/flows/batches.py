"""One run for a batch of records of a topic, which returns what each of them says."""

import os

from turnout import batch, flow
from turnout.triggers.kafka import kafka

RECORDS = kafka(
    os.environ["TURNOUT_TEST_TOPIC"],
    group=os.environ["TURNOUT_TEST_GROUP"],
    start="earliest",
    session=os.environ.get("TURNOUT_TEST_SESSION", "2s"),
)


@flow(on=batch(RECORDS, 50, "300ms"))
async def load(records: list[dict]) -> list[int]:  # type: ignore[type-arg]  # plain JSON
    return [record["number"] for record in records]

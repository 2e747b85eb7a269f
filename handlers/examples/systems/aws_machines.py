"""Start machines in AWS, no more than a budget allows; a run that fails ends those it has started.

Region and credentials are those of the environment, as for every client of AWS.
"""

# /// script
# dependencies = ["aiobotocore>=3", "botocore"]
# ///

from functools import partial
from typing import Any

from aiobotocore.session import get_session
from botocore.exceptions import ConnectionError, HTTPClientError
from pydantic import BaseModel, Field

from turnout import Fail, Pending, budget, current, event, flow, poll, retry, task, webhook

ec2 = partial(get_session().create_client, "ec2")
machines = budget("ec2", max_changes=10, per="1h")
again = retry(5, on=(ConnectionError, HTTPClientError))  # the client itself tries 5xx again


class Wanted(BaseModel):
    """What is asked for."""

    image: str
    type: str = "t3.large"
    least: int = Field(ge=1, le=5)
    most: int = Field(ge=1, le=5)


async def tagged(client: Any, key: str) -> list[str]:
    """Return the machines that a step has started."""
    filters = [
        {"Name": "tag:turnout-key", "Values": [key]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    found = await client.describe_instances(Filters=filters)
    return [each["InstanceId"] for part in found["Reservations"] for each in part["Instances"]]


async def terminate(key: str) -> None:
    """End what a step has started, also one that was cut off before it knew what."""
    async with ec2() as client:
        if found := await tagged(client, key):
            await client.terminate_instances(InstanceIds=found)


@task(undo=terminate, retry=again, timeout="1m")
async def provision(image: str, kind: str, least: int, most: int) -> list[str]:
    """Start machines; a step that was cut off finds those that it has started by their tag."""
    key = current().key()
    tags = {"ResourceType": "instance", "Tags": [{"Key": "turnout-key", "Value": key}]}
    async with ec2() as client:
        if found := await tagged(client, key):
            return found
        started = await client.run_instances(
            ImageId=image, InstanceType=kind, MinCount=least, MaxCount=most,
            ClientToken=key, TagSpecifications=[tags],
        )  # fmt: skip
    return [each["InstanceId"] for each in started["Instances"]]


@task(retry=again, timeout="1m")
async def running(ids: list[str]) -> list[str] | Pending:
    """Look whether they run; one that is gone will not, and a new one may not be listed yet."""
    async with ec2() as client:
        # a filter, as asking for a machine that EC2 does not list yet is an error
        found = await client.describe_instances(Filters=[{"Name": "instance-id", "Values": ids}])
    states = [each["State"]["Name"] for part in found["Reservations"] for each in part["Instances"]]
    if gone := set(states) - {"pending", "running"}:
        raise Fail(f"a machine is {gone.pop()}")
    return ids if states == ["running"] * len(ids) else Pending(str(states))


@flow(on=[webhook("/machines", verify="none"), event("machines.wanted")])
async def start_machines(wanted: Wanted) -> list[str]:
    """Start so many, and return them when they run; after ten minutes all are ended."""
    await machines.take(wanted.most)
    ids = await provision(wanted.image, wanted.type, wanted.least, wanted.most)
    return await poll(running, ids, every="5s", timeout="10m")

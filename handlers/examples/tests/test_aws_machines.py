"""An EC2 that remembers the tags of its machines, and stops one when it is told to."""

import os
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import aws_machines
from botocore.exceptions import EndpointConnectionError

from turnout.testing import run

WANTED = {"image": "ami-1", "least": 2, "most": 2}


class Ec2:
    """What the flow uses of a client."""

    def __init__(self, lost: int | None = None, lists: bool = True, away: int = 0) -> None:
        self.states: list[str] = []
        self.lost, self.lists, self.away = lost, lists, away

    async def describe_instances(self, Filters: Any) -> Any:
        wanted = {each["Name"]: each["Values"] for each in Filters}
        if not self.lists:  # it lists new machines from the second time on
            self.lists = bool(self.states)
            return {"Reservations": []}
        if "instance-id" in wanted and self.lost is not None:
            self.states[self.lost] = "stopped"
        found = [
            {"InstanceId": str(number), "State": {"Name": state}}
            for number, state in enumerate(self.states)
            if state in wanted.get("instance-state-name", [state])
        ]
        return {"Reservations": [{"Instances": found}]}

    async def run_instances(self, MinCount: int, **_: Any) -> Any:
        self.states += ["running"] * MinCount
        return {"Instances": [{"InstanceId": str(n)} for n in range(len(self.states))]}

    async def terminate_instances(self, InstanceIds: list[str]) -> None:
        for each in InstanceIds:
            self.states[int(each)] = "terminated"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Ec2"]:
        if self.away:
            self.away -= 1
            raise EndpointConnectionError(endpoint_url="https://ec2")
        yield self


class AwsMachines(unittest.TestCase):
    def test_a_crash_starts_no_more(self) -> None:
        ec2 = Ec2()
        with patch.object(aws_machines, "ec2", ec2.opened):
            result = run(aws_machines.start_machines, WANTED, crash_at=2)
        self.assertEqual((result.result, result.crashes), (["0", "1"], 1))
        self.assertEqual(ec2.states, ["running"] * 2)

    def test_where_one_is_stopped_all_are_ended(self) -> None:
        ec2 = Ec2(lost=0)
        with patch.object(aws_machines, "ec2", ec2.opened):
            result = run(aws_machines.start_machines, WANTED)
        self.assertEqual((result.state, result.undo), ("failed", "done"))
        self.assertEqual(ec2.states, ["terminated"] * 2)

    def test_what_is_not_listed_yet_is_waited_for(self) -> None:
        ec2 = Ec2(lists=False)
        with patch.object(aws_machines, "ec2", ec2.opened):
            result = run(aws_machines.start_machines, WANTED)
        self.assertEqual((result.result, ec2.states), (["0", "1"], ["running"] * 2))

    def test_missing_credentials_fail_the_run_at_once(self) -> None:
        files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        none = files | {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true"}
        with patch.dict(os.environ, none, clear=True):
            result = run(aws_machines.start_machines, WANTED)
        self.assertIn("Unable to locate credentials", str(result.error))
        self.assertEqual(result.steps["provision#1"].tries, 1)

    def test_an_aws_that_is_not_reached_is_asked_again(self) -> None:
        ec2 = Ec2(away=2)
        with patch.object(aws_machines, "ec2", ec2.opened):
            result = run(aws_machines.start_machines, WANTED)
        self.assertEqual((result.result, result.steps["provision#1"].tries), (["0", "1"], 3))

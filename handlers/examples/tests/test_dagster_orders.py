"""A stand-in for Dagster, which finds runs by their tags as the real one does."""

import unittest
from typing import Any
from unittest.mock import patch

import dagster_orders

from turnout.testing import run


class Dagster:
    def __init__(self, status: str, *events: Any) -> None:
        self.ended = {"status": status, "eventConnection": {"events": events}}
        self.runs: list[Any] = []

    async def __call__(self, query: str, **variables: Any) -> Any:
        if query == dagster_orders.FIND:
            return {"results": [{"runId": "1"} for tags in self.runs if tags == variables["tags"]]}
        if query == dagster_orders.LAUNCH:
            self.runs.append(variables["params"]["executionMetadata"]["tags"])
            return {"run": {"runId": "1"}}
        return self.ended


class DagsterOrders(unittest.TestCase):
    def test_a_crash_starts_no_second_run(self) -> None:
        done = Dagster("SUCCESS", {"metadataEntries": [{"label": "receipt", "text": "receipt-7"}]})
        with patch.object(dagster_orders, "dagster", done):
            result = run(dagster_orders.bill_by_dagster, {"id": "7", "amount": 3.5}, crash_at=1)
        self.assertEqual((result.state, result.result), ("succeeded", "receipt-7"))
        self.assertEqual(len(done.runs), 1)

    def test_what_fails_there_is_told_here(self) -> None:
        failed = Dagster("FAILURE", {"error": {"errorChain": [{"error": {"message": "no such"}}]}})
        with patch.object(dagster_orders, "dagster", failed):
            result = run(dagster_orders.bill_by_dagster, {"id": "7", "amount": 3.5})
        self.assertIn("is FAILURE: ['no such']", str(result.error))

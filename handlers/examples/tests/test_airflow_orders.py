"""A stand-in for Airflow, which has one run for an id as the real one does."""

import unittest
from typing import Any
from unittest.mock import patch

import airflow_orders

from turnout.testing import run


class Airflow:
    def __init__(self, state: str) -> None:
        self.state = state
        self.runs: dict[str, Any] = {}

    async def __call__(self, method: str, path: str, **options: Any) -> Any:
        if method == "POST":
            self.runs[options["json"]["dag_run_id"]] = options["json"]["conf"]
        if path.endswith("/logs/1"):
            return {"content": [{"error_detail": [{"exc_value": "no such customer"}]}]}
        if path.endswith("/taskInstances"):
            return {"task_instances": [{"task_id": "charge", "try_number": 1}]}
        return {"state": self.state, "value": "receipt-7"}


class AirflowOrders(unittest.TestCase):
    def test_a_crash_starts_no_second_run(self) -> None:
        with patch.object(airflow_orders, "airflow", Airflow("success")) as airflow:
            result = run(airflow_orders.bill_by_airflow, {"id": "7", "amount": 3.5}, crash_at=1)
        self.assertEqual((result.state, result.result), ("succeeded", "receipt-7"))
        self.assertEqual(list(airflow.runs.values()), [{"id": "7", "amount": 3.5}])

    def test_what_fails_there_is_told_here(self) -> None:
        with patch.object(airflow_orders, "airflow", Airflow("failed")):
            result = run(airflow_orders.bill_by_airflow, {"id": "7", "amount": 3.5})
        self.assertIn("charge no such customer", str(result.error))

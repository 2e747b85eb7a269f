"""A stand-in for Prefect, which has one run for a key as the real one does."""

import unittest
from typing import Any
from unittest.mock import patch

import prefect_orders

from turnout.testing import run


class Prefect:
    def __init__(self, **state: str) -> None:
        self.state = state
        self.runs: dict[str, Any] = {}

    async def __call__(self, method: str, path: str, **options: Any) -> Any:
        if method == "POST":
            self.runs[options["json"]["idempotency_key"]] = options["json"]["parameters"]
        return {"id": "1", "state": self.state}


class PrefectOrders(unittest.TestCase):
    def test_a_crash_starts_no_second_run(self) -> None:
        done = Prefect(type="COMPLETED", name="Completed", message="receipt-7")
        with patch.object(prefect_orders, "prefect", done):
            result = run(prefect_orders.bill_by_prefect, {"id": "7", "amount": 3.5}, crash_at=1)
        self.assertEqual((result.state, result.result), ("succeeded", "receipt-7"))
        self.assertEqual(list(done.runs.values()), [{"order": {"id": "7", "amount": 3.5}}])

    def test_what_fails_there_is_told_here(self) -> None:
        failed = Prefect(type="FAILED", name="Failed", message="no such customer")
        with patch.object(prefect_orders, "prefect", failed):
            result = run(prefect_orders.bill_by_prefect, {"id": "7", "amount": 3.5})
        self.assertIn("is Failed: no such customer", str(result.error))

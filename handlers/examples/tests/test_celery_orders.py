"""A real Celery worker in a thread, with a broker in memory."""

import unittest
from typing import Any
from unittest.mock import patch

import celery_orders
from celery import Celery
from celery.contrib.testing.worker import start_worker

from turnout.testing import run

shop = Celery("shop", broker="memory://", backend="cache+memory://")


@shop.task(name="shop.charge")
def charge(order: dict[str, Any]) -> str:
    return f"receipt-{order['id']}"


class CeleryOrders(unittest.TestCase):
    def test_the_receipt_comes_back_over_a_crash(self) -> None:
        with (
            patch.object(celery_orders, "shop", lambda: shop),
            start_worker(shop, perform_ping_check=False),
        ):
            result = run(celery_orders.bill, {"id": "7", "amount": 3.5}, crash_at=1)
        self.assertEqual((result.state, result.result), ("succeeded", "receipt-7"))
        self.assertEqual(result.crashes, 1)

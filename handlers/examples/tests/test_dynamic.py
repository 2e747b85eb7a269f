"""The way a run takes is seen by its steps."""

import unittest
from typing import Any
from unittest.mock import patch

import dynamic

from turnout import task
from turnout.testing import run

ROWS: dict[str, list[dict[str, Any]]] = {
    "users": [{"active": True}, {"active": False}],
    "orders": [{"status": "completed"}, {"status": "open"}],
}


@task
async def fetch(endpoint: str) -> list[dict[str, Any]]:
    return ROWS[endpoint]


class Dynamic(unittest.TestCase):
    def test_few_users_are_counted_here_and_now(self) -> None:
        with patch.object(dynamic, "fetch", fetch):
            result = run(dynamic.dynamic)
        self.assertEqual(result.result, {"users": 1, "orders": 1})
        self.assertIn("small#1", result.steps)

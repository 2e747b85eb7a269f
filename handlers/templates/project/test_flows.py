"""Run it in the project's folder: `python -m unittest`, or pytest where it is installed."""

import unittest

from flows import nightly, order

from turnout.testing import run


class Flows(unittest.TestCase):
    """Each test runs a flow as the service would: recorded, on a journal in memory."""

    def test_an_order_is_confirmed_also_over_a_crash(self) -> None:
        """The process dies once the step is done and before it is recorded; another goes on."""
        for crash_at in (None, 1):
            result = run(order, {"id": "7", "amount": 3}, crash_at=crash_at)
            self.assertEqual((result.state, result.result), ("succeeded", "confirmed 7"))

    def test_the_nightly_flow_reports_what_was_measured(self) -> None:
        """A flow without data."""
        self.assertEqual(run(nightly).result, 42)

"""What is outside is replaced: the flow calls `notify` by the name that it has in its module."""

import unittest
from unittest.mock import ANY, AsyncMock, patch

import daily_report

from turnout import task
from turnout.testing import run


@task
def collect(folder: str) -> dict[str, int]:
    return {"files": len(folder), "bytes": 5}


class DailyReport(unittest.TestCase):
    def test_a_sending_that_fails_is_tried_again_and_nothing_is_counted_twice(self) -> None:
        notify = AsyncMock(side_effect=[OSError("no answer"), None])
        with patch.multiple(daily_report, notify=notify, collect=collect):
            result = run(daily_report.daily_report)
        self.assertEqual((result.state, result.attempts), ("succeeded", 2))
        self.assertEqual(result.steps["collect#1"].tries, 1)
        notify.assert_awaited_with(ANY, "files done: 10, bytes: 5")

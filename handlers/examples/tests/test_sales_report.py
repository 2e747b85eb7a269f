"""The report is made of what is downloaded, and made once whatever crashes."""

import os
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import ANY, AsyncMock, patch

import sales_report

from turnout import task
from turnout.testing import run


@task
async def download() -> list[dict[str, object]]:
    return [{"category": "a", "amount": 1}, {"category": "b", "amount": 5}]


class SalesReport(unittest.TestCase):
    def test_a_crash_while_it_is_saved_changes_nothing(self) -> None:
        home = Path.cwd()
        with TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                notify = AsyncMock()
                with patch.multiple(sales_report, notify=notify, download=download):
                    result = run(sales_report.daily, crash_at=3)
                report = Path("daily_report.csv").read_text()
            finally:
                os.chdir(home)
        self.assertEqual((result.state, result.result), ("succeeded", "daily_report.csv"))
        self.assertEqual(report, "category,amount\na,1\nb,5\n")
        notify.assert_awaited_once_with(ANY, "Report ready: daily_report.csv")

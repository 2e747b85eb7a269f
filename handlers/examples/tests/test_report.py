"""Nights pass at once: `advance` lets the timer tick."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import report as nightly

from turnout.testing import serve


class Report(unittest.IsolatedAsyncioTestCase):
    """The clock of `serve` begins at 2026-01-01, midnight UTC."""

    async def test_each_night_writes_one_report(self) -> None:
        """Three ticks, three files, named after the days of the ticks."""
        with TemporaryDirectory() as folder:
            nightly.OUTBOX = Path(folder) / "reports"
            async with serve(nightly.report) as service:
                await service.advance("3d")
            written = sorted(path.name for path in nightly.OUTBOX.iterdir())
            self.assertEqual(written, ["2026-01-01.txt", "2026-01-02.txt", "2026-01-03.txt"])

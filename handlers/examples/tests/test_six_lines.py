"""The timer ticks as time passes."""

import unittest

from six_lines import disk_free

from turnout.testing import serve


class SixLines(unittest.IsolatedAsyncioTestCase):
    async def test_every_ten_seconds_it_looks_at_the_disk(self) -> None:
        async with serve(disk_free) as service:
            await service.advance("30s")
            runs = await service.runs(disk_free)
        self.assertEqual(len(runs), 3)
        self.assertTrue(all(run.result > 0 for run in runs))

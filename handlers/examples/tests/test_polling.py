"""The cursor moves with each run that succeeds, once, whatever crashes."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import polling

from turnout.testing import serve


class Polling(unittest.IsolatedAsyncioTestCase):
    """`service.state` is what the flow keeps between runs."""

    async def test_each_run_goes_on_behind_the_last_one_over_a_crash(self) -> None:
        """A run is killed before its second item is recorded; what comes later is new."""
        with TemporaryDirectory() as folder:
            polling.FEED = Path(folder) / "feed.txt"
            async with serve(polling.poll) as service:
                polling.FEED.write_text("a\nb\n")
                self.assertEqual((await service.run(polling.poll, crash_at=3)).result, 2)
                self.assertEqual(await service.state(polling.poll), 2)
                polling.FEED.write_text("a\nb\nc\n")
                self.assertEqual((await service.run(polling.poll)).result, 1)
                self.assertEqual(await service.state(polling.poll), 3)

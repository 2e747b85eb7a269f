"""The cursor moves with each poll that succeeds, and each item is taken once, whatever fails."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import polling

from turnout import Fail, task
from turnout.testing import Service, serve


class Polling(unittest.IsolatedAsyncioTestCase):
    """`service.state` is what the flow keeps between runs."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.feed = Path(folder.name) / "feed.txt"
        feed = patch.object(polling, "FEED", self.feed)
        feed.start()
        self.addCleanup(feed.stop)

    async def test_each_poll_goes_on_behind_the_last_one_over_a_crash(self) -> None:
        async with serve(polling.poll, polling.take) as service:
            self.feed.write_text("a\nb\n")
            self.assertEqual((await service.run(polling.poll, crash_at=1)).result, 2)
            self.assertEqual(await service.state(polling.poll), 2)
            self.feed.write_text("a\nb\nc\n")
            self.assertEqual((await service.run(polling.poll)).result, 1)
            self.assertEqual(await self.taken(service), ["a", "b", "c"])

    async def test_an_item_that_cannot_be_stored_fails_alone(self) -> None:
        @task
        async def store(item: str) -> str:
            if item == "b":
                raise Fail("nobody wants b")
            return item

        self.feed.write_text("a\nb\nc\n")
        with patch.object(polling, "store", store):
            async with serve(polling.poll, polling.take) as service:
                self.assertEqual((await service.run(polling.poll)).result, 3)
                self.assertEqual((await service.run(polling.poll)).result, 0)
                runs = await service.runs(polling.take)
        states = {run.result: str(run.state) for run in runs}
        self.assertEqual(states, {"a": "succeeded", None: "failed", "c": "succeeded"})

    async def test_what_a_poll_that_failed_has_emitted_is_taken_once(self) -> None:
        honest = polling.emit

        async def breaks_down(kind: str, item: str, *, id: str) -> None:
            await honest(kind, item, id=id)
            raise Fail("the poll breaks down")

        self.feed.write_text("a\nb\n")
        async with serve(polling.poll, polling.take) as service:
            with patch.object(polling, "emit", breaks_down):
                self.assertEqual((await service.run(polling.poll)).state, "failed")
            self.assertEqual((await service.run(polling.poll)).state, "succeeded")
            self.assertEqual(await self.taken(service), ["a", "b"])

    async def taken(self, service: Service) -> list[str]:
        runs = await service.runs(polling.take)
        return [str(run.result).split()[0] for run in runs]

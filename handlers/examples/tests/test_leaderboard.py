"""What trains is replaced: it takes minutes, and packages of its own."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import leaderboard

from turnout import task
from turnout.testing import file_event, serve


@task
def train(path: Path) -> leaderboard.Trained:
    return leaderboard.Trained("models/1", {"a": 0.9})


class Leaderboard(unittest.IsolatedAsyncioTestCase):
    async def test_a_file_is_trained_on(self) -> None:
        with TemporaryDirectory() as folder, patch.object(leaderboard, "train", train):
            file = Path(folder) / "rows.csv"
            file.write_text("x,label\n1,0\n")
            async with serve(leaderboard.leaderboard) as service:
                (run,) = await service.emit(file_event(leaderboard.leaderboard, file))
        self.assertEqual((run.state, list(run.steps)), ("succeeded", ["train#1"]))

"""What trains is replaced: it takes minutes, and packages of its own."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import automl

from turnout import task
from turnout.testing import file_event, serve


@task
def train(path: Path) -> list[list[str]]:
    return [["model_id", "auc"], ["a", "0.9"]]


class Automl(unittest.IsolatedAsyncioTestCase):
    async def test_a_file_is_trained_on(self) -> None:
        with TemporaryDirectory() as folder, patch.object(automl, "train", train):
            file = Path(folder) / "rows.csv"
            file.write_text("x,label\n1,0\n")
            async with serve(automl.automl) as service:
                (run,) = await service.emit(file_event(automl.automl, file))
        self.assertEqual((run.state, list(run.steps)), ("succeeded", ["train#1"]))

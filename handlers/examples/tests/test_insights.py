"""What the model answers is replaced; the same content is not asked about again."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import insights

from turnout import by_input, task
from turnout.testing import file_event, serve

asked: list[str] = []


@task(cache=by_input(ttl="1d"))
async def ask(question: str, rows: str) -> str:
    asked.append(question)
    return f"{len(rows.splitlines()) - 1} rows"


class Insights(unittest.IsolatedAsyncioTestCase):
    async def test_each_question_is_asked_once_about_the_same_content(self) -> None:
        with TemporaryDirectory() as folder, patch.object(insights, "ask", ask):
            async with serve(insights.insights) as service:
                for name in ("monday.csv", "copy.csv"):
                    file = Path(folder) / name
                    file.write_text("product,sold\na,3\nb,5\n")
                    (run,) = await service.emit(file_event(insights.insights, file))
                    self.assertEqual(run.result, ["2 rows"] * 3)
        self.assertEqual(len(asked), 3)

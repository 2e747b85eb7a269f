"""A good file and a bad one."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from csv_drop import sales

from turnout.testing import file_event, serve


async def dropped(rows: str) -> Any:
    """Return the run of a file with these rows."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sales.csv"
        file.write_text(f"day,product,amount\n{rows}")
        async with serve(sales) as service:
            (result,) = await service.emit(file_event(sales, file))
            return result


class CsvDrop(unittest.IsolatedAsyncioTestCase):
    async def test_amounts_are_summed_to_the_cent(self) -> None:
        result = await dropped("2026-01-05,pears,0.10\n2026-01-05,pears,0.20\n")
        self.assertEqual(result.result["total"], "0.30")

    async def test_every_bad_line_is_named_and_nothing_is_tried_again(self) -> None:
        result = await dropped("2026-13-05,pears,1\n2026-01-05,pears,1\n2026-01-05,pears,-1\n")
        self.assertEqual((result.state, result.attempts), ("failed", 1))
        self.assertRegex(result.error.message, "line 2: day: .*; line 4: amount: ")

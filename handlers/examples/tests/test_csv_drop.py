"""A good file and a bad one."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from csv_drop import sales

from turnout.testing import file_event, serve


async def dropped(rows: str, encoding: str = "utf-8", header: str = "day,product,amount\n") -> Any:
    """Return the run of a file with these rows."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sales.csv"
        file.write_text(header + rows, encoding)
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

    async def test_a_decimal_comma_is_no_field_to_leave_out(self) -> None:
        result = await dropped("2026-01-05,pears,1,50\n")
        self.assertEqual(result.error.message, "line 2: more fields than the header names")

    async def test_a_spreadsheet_may_begin_with_its_mark(self) -> None:
        result = await dropped("2026-01-05,pears,1\n", "utf-8-sig")
        self.assertEqual(result.result["rows"], 1)

    async def test_a_file_that_is_empty_or_lacks_a_column_is_refused(self) -> None:
        empty = await dropped("", header="")
        self.assertEqual(empty.state, "failed")
        self.assertEqual(empty.error.message, "line 1 names no column day, product, amount")
        other = await dropped("2026-01-05,pears,1\n", header="day,product,price\n")
        self.assertEqual(other.error.message, "line 1 names no column amount")

    async def test_a_day_without_sales_comes_to_nothing(self) -> None:
        result = await dropped("")
        self.assertEqual((result.result["rows"], result.result["total"]), (0, "0"))

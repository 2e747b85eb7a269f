"""A pipeline over real files: a database and a CSV file into a database and a Parquet file."""

import json
import sqlite3
import unittest
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from etl import etl

from turnout.testing import file_event, serve


class Etl(unittest.IsolatedAsyncioTestCase):
    async def test_every_place_gets_the_rows_of_every_source(self) -> None:
        with TemporaryDirectory() as name:
            folder = Path(name)
            result = await piped(folder, "id,amount\n3,5\n4,-1\n")
            with duckdb.connect(str(folder / "all.duckdb")) as database:
                rows = database.execute("SELECT id FROM rows ORDER BY id").fetchall()
                loaded = database.execute(f"SELECT count(*) FROM '{folder}/all.parquet'").fetchone()
        self.assertEqual(result.result, "Processed 3 records")
        self.assertEqual((rows, loaded), ([(1,), (2,), (3,)], (3,)))

    async def test_an_empty_source_stops_the_load(self) -> None:
        with TemporaryDirectory() as name:
            result = await piped(Path(name), "id,amount\n")
            self.assertFalse((Path(name) / "all.duckdb").exists())
        self.assertEqual(result.error.message, "Data cannot be empty")

    async def test_a_source_with_other_columns_is_refused_by_name(self) -> None:
        with TemporaryDirectory() as name:
            result = await piped(Path(name), "id,price\n3,5\n")
            self.assertFalse((Path(name) / "all.duckdb").exists())
        self.assertRegex(result.error.message, "#sales and .*rows.csv do not both have amount, pri")

    async def test_what_a_pipeline_cannot_do_is_refused_before_anything_is_read(self) -> None:
        for wrong, told in (
            ({"sources": []}, "sources"),
            ({"sources": ["rows.xlsx"]}, "rows.xlsx"),
            ({"destinations": []}, "destinations"),
            ({"destinations": ["all.parquet", "all.csv"]}, "all.csv"),
        ):
            with TemporaryDirectory() as name:
                result = await piped(Path(name), "id,amount\n3,5\n", **wrong)
            self.assertEqual((result.state, result.attempts, result.steps), ("failed", 1, {}))
            self.assertIn(told, result.error.message)


async def piped(folder: Path, rows: str, **changed: list[str]) -> Any:
    """Return the run of a pipeline with two rows in a database, and these in a CSV file."""
    (folder / "rows.csv").write_text(rows)
    with closing(sqlite3.connect(folder / "shop.db")) as shop, shop:
        shop.execute("CREATE TABLE sales (id INTEGER, amount INTEGER)")
        shop.executemany("INSERT INTO sales VALUES (?, ?)", [(1, 1), (2, 2)])
    plan = {
        "sources": [f"{folder}/shop.db#sales", f"{folder}/rows.csv"],
        "positive": ["amount"],
        "destinations": [f"{folder}/all.duckdb", f"{folder}/all.parquet"],
    }
    file = folder / "plan.json"
    file.write_text(json.dumps(plan | changed))
    async with serve(etl) as service:
        (result,) = await service.emit(file_event(etl, file))
        return result

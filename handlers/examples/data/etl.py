"""Bring rows of several sources into several places: read at once, check, join, load at once.

A pipeline is a JSON file dropped into `pipelines/`. Each source is checked by itself, and all have
the same columns; data that breaks a rule fails the run at once, also under `python -O`. A place
that is down is tried again by itself.
"""

# /// script
# dependencies = ["duckdb>=1.4", "pandas>=2.3"]
# ///

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated

import duckdb
import pandas as pd
from pydantic import BaseModel, Field

from turnout import Fail, files, flow, retry, task

Source = Annotated[str, Field(pattern=r"^https?://|\.csv$|.#.")]
Destination = Annotated[str, Field(pattern=r"\.(duckdb|parquet)$")]


class Pipeline(BaseModel):
    """What the dropped file says."""

    sources: list[Source] = Field(min_length=1)
    positive: list[str] = []
    destinations: list[Destination] = Field(min_length=1)


@task(retry=retry(2, delay="1s"), timeout="1m")
def extract(source: str) -> pd.DataFrame:
    """Read an address that answers JSON, a CSV file, or the table of `shop.db#sales`."""
    if source.startswith("http"):
        return pd.read_json(source)
    if source.endswith(".csv"):
        return pd.read_csv(source)
    file, _, table = source.rpartition("#")
    # Read only: one that is missing is not made.
    with closing(sqlite3.connect(f"{Path(file).resolve().as_uri()}?mode=ro", uri=True)) as shop:
        return pd.read_sql(f'SELECT * FROM "{table}"', shop)


@task
def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what a source has if it may be used; what is bad stays so: nothing is tried again."""
    if frame.empty:
        raise Fail("Data cannot be empty")
    nulls = int(frame.isna().sum().sum())
    if not nulls < len(frame) * 0.1:
        raise Fail(f"Too many empty fields: {nulls} in {len(frame)} rows")
    return frame


def join(sources: list[str], frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all sources; where one lacks a column, pandas would leave fields empty."""
    for source, frame in zip(sources, frames, strict=True):
        if other := set(frame) ^ set(frames[0]):
            raise Fail(f"{sources[0]} and {source} do not both have {', '.join(sorted(other))}")
    return pd.concat(frames, ignore_index=True)


@task
def transform(frame: pd.DataFrame, positive: list[str]) -> pd.DataFrame:
    """Keep the rows whose `positive` columns are, of whatever source."""
    return frame[(frame[positive] > 0).all(axis="columns")]


@task(retry=retry(3, delay="10s"), timeout="5m")
def load(job: tuple[Path, pd.DataFrame]) -> None:
    """Replace what is at a destination, whole or not at all: doing it again changes nothing."""
    destination, frame = job
    if destination.suffix == ".parquet":
        unfinished = destination.with_suffix(".part")
        with duckdb.connect() as database:  # not the one that all threads share: loads run at once
            database.from_df(frame).write_parquet(str(unfinished))
        unfinished.replace(destination)
    else:
        with duckdb.connect(str(destination)) as database:
            database.register("frame", frame)
            database.execute("CREATE OR REPLACE TABLE rows AS FROM frame")


@flow(on=files("pipelines/*.json"))
def etl(path: Path) -> str:
    """Run the pipeline of the file."""
    pipeline = Pipeline.model_validate_json(path.read_bytes())
    frames = [validate(frame) for frame in extract.map(pipeline.sources, limit=4)]
    data = transform(join(pipeline.sources, frames), pipeline.positive)
    load.map([(Path(destination), data) for destination in pipeline.destinations])
    return f"Processed {len(data)} records"

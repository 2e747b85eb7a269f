"""Bring rows of several sources into several places: read at once, check, join, load at once.

A pipeline is a JSON file dropped into `pipelines/`. Data that breaks a rule fails the run at once,
also under `python -O`; a place that is down is tried again by itself.
"""

# /// script
# dependencies = ["duckdb>=1.4", "pandas>=2.3"]
# ///

import sqlite3
from pathlib import Path
from typing import Literal

import duckdb
import pandas as pd
from pydantic import BaseModel

from turnout import Fail, files, flow, retry, task


class Source(BaseModel):
    """Where rows come from: a table, an address that answers JSON, or a file."""

    kind: Literal["sqlite", "http", "csv"]
    at: str
    table: str = ""


class Destination(BaseModel):
    """Where rows go: a table of a database file, or a file."""

    kind: Literal["duckdb", "parquet"]
    at: str
    table: str = "rows"


class Pipeline(BaseModel):
    """What the dropped file says."""

    sources: list[Source]
    positive: list[str] = []
    destinations: list[Destination]


@task(retry=retry(2, delay="1s"), timeout="1m")
def extract(source: Source) -> pd.DataFrame:
    """Read one source."""
    if source.kind == "http":
        return pd.read_json(source.at)
    if source.kind == "csv":
        return pd.read_csv(source.at)
    with sqlite3.connect(source.at) as database:
        return pd.read_sql(f'SELECT * FROM "{source.table}"', database)


@task
def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame if it may be used; a bad one stays bad, so nothing is tried again."""
    if frame.empty:
        raise Fail("Data cannot be empty")
    nulls = int(frame.isna().sum().sum())
    if not nulls < len(frame) * 0.1:
        raise Fail(f"Too many empty fields: {nulls} in {len(frame)} rows")
    return frame


@task
def transform(frame: pd.DataFrame, positive: list[str]) -> pd.DataFrame:
    """Keep the rows whose `positive` columns are."""
    for column in positive:
        frame = frame[frame[column] > 0]
    return frame


@task(retry=retry(3, delay="10s"), timeout="5m")
def load(job: tuple[Destination, pd.DataFrame]) -> int:
    """Replace what is at a destination, whole or not at all: doing it again changes nothing."""
    destination, frame = job
    if destination.kind == "duckdb":
        with duckdb.connect(destination.at) as database:
            database.register("frame", frame)
            database.execute(f'CREATE OR REPLACE TABLE "{destination.table}" AS FROM frame')
    else:
        unfinished = Path(f"{destination.at}.part")
        duckdb.from_df(frame).write_parquet(str(unfinished))
        unfinished.replace(destination.at)
    return len(frame)


@flow(on=files("pipelines/*.json"))
def etl(path: Path) -> str:
    """Run the pipeline of the file."""
    pipeline = Pipeline.model_validate_json(path.read_bytes())
    frames = [validate(frame) for frame in extract.map(pipeline.sources, limit=4)]
    data = transform(pd.concat(frames, ignore_index=True), pipeline.positive)
    load.map([(destination, data) for destination in pipeline.destinations])
    return f"Processed {len(data)} records"

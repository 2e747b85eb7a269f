"""Fetch readings page by page with requests, and summarise a day with polars into a Parquet file.

The service at `READINGS_URL` answers `/readings?day=…&page=…` with `{"readings": […], "pages": n}`.
"""

# /// script
# dependencies = ["polars>=1.40", "requests>=2.32"]
# ///

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import requests

from turnout import cron, current, flow, retry, secret, task


@task(retry=retry(3, delay="1s", on=requests.RequestException), timeout="1m")
def fetch(day: str, page: int) -> dict[str, Any]:
    """Return a page; a page that was fetched is not fetched again."""
    url = secret("READINGS_URL").reveal()
    asked: dict[str, str | int] = {"day": day, "page": page}
    answer = requests.get(f"{url}/readings", params=asked, timeout=20)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


@task
def summarise(readings: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the mean and the highest value of each sensor, without what is broken."""
    frame = pl.DataFrame(readings, schema={"sensor": pl.String, "value": pl.Float64})
    return (
        frame.lazy()
        .filter(pl.col("value").is_not_null() & pl.col("value").is_finite())
        .group_by("sensor")
        .agg(pl.col("value").mean().alias("mean"), pl.col("value").max().alias("highest"))
        .sort("sensor")
        .collect()
    )


@task
def save(day: str, summary: pl.DataFrame) -> str:
    """Write the day's file, whole or not at all; writing it again is as good as once."""
    path = Path(f"{day}.parquet")
    unfinished = path.with_suffix(".part")
    summary.write_parquet(unfinished)
    unfinished.replace(path)
    return str(path)


@flow(on=cron("15 0 * * *"))
def summary_of_yesterday() -> str:
    """Fetch all pages of the day before, and save their summary."""
    day = (current().event.time - timedelta(days=1)).date().isoformat()
    first = fetch(day, 0)
    pages = [first, *(fetch(day, page) for page in range(1, first["pages"]))]
    return save(day, summarise([each for page in pages for each in page["readings"]]))

"""Group the sales of the day with pandas, save them and tell: each step has a policy of its own.

The service at `SALES_URL` answers `/data` with a JSON list of sales. `REPORT_URL` is told of each
report, `ALERT_URL` of a failure. A crash anywhere repeats only the step it cut off; the message may
arrive twice then, under one `Idempotency-Key`.
"""

# /// script
# dependencies = ["pandas>=2.3"]
# ///

from pathlib import Path

import httpx
import pandas as pd

from turnout import RunError, cron, flow, notify, retry, secret, task, webhook


@task(retry=retry(3, delay="1s", factor=2, max="1m", jitter=False), timeout="30s")
async def download() -> list[dict[str, object]]:
    """Return the sales of the day."""
    async with httpx.AsyncClient(base_url=secret("SALES_URL").reveal(), timeout=10) as http:
        answer = await http.get("data")
    sales: list[dict[str, object]] = answer.raise_for_status().json()
    return sales


@task
def process(sales: list[dict[str, object]]) -> pd.DataFrame:
    """Return the sums by category."""
    return pd.DataFrame(sales).groupby("category").sum()


@task
def save(sums: pd.DataFrame) -> str:
    """Write the report; writing it again is as good as once."""
    unfinished = Path("daily_report.csv.part")
    sums.to_csv(unfinished)
    return str(unfinished.rename("daily_report.csv"))


async def alert(error: RunError) -> None:
    """Tell people that there will be no report."""
    await notify(secret("ALERT_URL"), f"No report: {error.step} failed, {error.message}")


@flow(on=[cron("0 9 * * *"), webhook("/reports/daily", verify="none")], on_failure=alert)
async def daily() -> str:
    """Make the report of the day and say where it is."""
    path = await save.run(await process.run(await download()))
    await notify(secret("REPORT_URL"), f"Report ready: {path}")
    return path

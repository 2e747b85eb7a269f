"""Read a table off a web page with Playwright, download its file, and keep a screenshot.

`PRICES_URL` is the address of the page; the browser is Debian's (`apt-get install chromium`). It
runs in a worker process and ends with it: after `timeout=`, on a cancel, when the service dies.
"""

# /// script
# dependencies = ["playwright>=1.50"]
# ///

from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import sync_playwright

from turnout import current, flow, retry, secret, task, webhook


@dataclass(frozen=True)
class Seen:
    """What the page had."""

    rows: list[dict[str, str]]
    screenshot: bytes
    file: bytes


@task(pool="process", retry=retry(2, delay="5s"), timeout="2m")
def look() -> Seen:
    """Open the page; every request says which step it is of, whatever try that is."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(extra_http_headers={"Idempotency-Key": current().key()})
        page.goto(secret("PRICES_URL").reveal())
        names = page.locator("th").all_inner_texts()
        rows = [
            dict(zip(names, row.locator("td").all_inner_texts(), strict=True))
            for row in page.locator("tbody tr").all()
        ]
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        file = Path(download.value.path()).read_bytes()
        return Seen(rows, page.screenshot(full_page=True), file)


@task
def keep(seen: Seen) -> list[str]:
    """Attach what a person may want to look at; a task of a worker process cannot."""
    attach = current().attach
    return [attach("page.png", seen.screenshot), attach("prices.csv", seen.file)]


@flow(on=webhook("/prices", verify="none"))
async def prices() -> list[dict[str, str]]:
    """Return the rows of the table."""
    seen = await look.run()
    await keep.run(seen)
    return seen.rows

"""Flows that drive a browser: Debian's Chromium, by Playwright and by Selenium, as in the examples.

Both are in an environment of their own; the program under test finds it behind its own packages.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.support import CHECKOUT
from tests.support.boundaries import behind_ours, killed_at
from tests.support.processes import Mark
from tests.support.program import Program, supervised, turnout, until
from tests.support.stub_http import Reply, Stub, stubbed

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "browser"
TOKEN = "the-token-of-this-test"

PAGE = b"""<title>Prices</title><p role=status>All is well.</p>
<table><thead><tr><th>product</th><th>price</th></tr></thead>
<tbody><tr><td>pears</td><td>0.10</td></tr><tr><td>plums</td><td>0.30</td></tr></tbody></table>
<a href="/prices.csv" download>Download</a>"""
ROWS = [{"product": "pears", "price": "0.10"}, {"product": "plums", "price": "0.30"}]
CSV = b"product,price\npears,0.10\nplums,0.30\n"

ENDLESS = b"<title>Endless</title><script>while (true) {}</script>"
"""A page that is never loaded, and whose process answers nothing any more."""

POLICY = 'retry=retry(2, delay="5s"), timeout="2m"'


@pytest.fixture
def shop() -> Iterator[Stub]:
    """A shop with a page of prices; its requests are in `asked`."""
    with stubbed() as shop:
        shop.replies["/"] = [Reply(content=PAGE, headers={"content-type": "text/html"})]
        shop.replies["/prices.csv"] = [Reply(content=CSV, headers={"content-type": "text/csv"})]
        yield shop


class Site:
    """A shop, and turnout, whose browsers are known by a mark."""

    def __init__(self, folder: Path, shop: Stub, example: str, sabotage: str = "") -> None:
        self.mark, self.shop = Mark(), shop
        self.source = (EXAMPLES / f"{example}.py").read_text()
        self.flows = folder / f"{example}.py"
        if example == "notice":  # a tick of its own, on the hour, would be another visit
            self.change('every("1h")', 'every("1h", start="2090-01-01T00:00Z")')
        else:
            self.flows.write_text(self.source)
        self.program = Program(
            flows=self.flows,
            data=folder / "data",
            log=folder / "log",
            env={
                "PRICES_URL": shop.url, "SITE_URL": shop.url, "TURNOUT_API_TOKEN": TOKEN,
                "MARKER": str(folder / "marker"), **self.mark.env,
            },
            sabotage=behind_ours("browser") + sabotage,
        )  # fmt: skip

    def change(self, here: str, there: str) -> None:
        """Change the flow file."""
        assert here in self.source
        self.source = self.source.replace(here, there)
        self.flows.write_text(self.source)

    def begin(self) -> str:
        """Start a run; returns its id."""
        if self.flows.name == "prices.py":
            return self.program.post("prices", {})
        self.ask("/triggers/every%3A1h/fire")
        (run,) = until(self.runs, 60, "the run of the tick")
        return str(run["id"])

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs there are; none while it is down."""
        try:
            found: list[dict[str, Any]] = self.program.api("/runs")["items"]
        except (AssertionError, FileNotFoundError):
            return []
        return found

    def ask(self, path: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = self.program.ask(f"/api{path}", method="POST", headers=headers, timeout=30)
        assert answer is not None and answer.status in (200, 202), answer

    def ended(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run; returns it."""

        def look() -> dict[str, Any] | None:
            try:
                run: dict[str, Any] = self.program.api(f"/runs/{run_id}")
            except (AssertionError, FileNotFoundError):  # it is down
                return None
            return run if run["finished_at"] else None

        return until(look, 120, f"the end of {run_id}")

    def artefact(self, run_id: str, name: str) -> bytes:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = self.program.ask(f"/api/runs/{run_id}/artefacts/{name}", headers=headers)
        assert answer is not None and answer.status == 200
        return answer.body

    @property
    def visits(self) -> list[str]:
        """The key of each visit of the page."""
        return [
            each.headers.get("idempotency-key", "") for each in self.shop.asked if each.path == "/"
        ]

    def browsers(self) -> list[str]:
        """Return the browsers that run, and their drivers."""
        return [str(each) for each in self.mark.found() if _is_browser(each)]


def _is_browser(process: psutil.Process) -> bool:
    try:
        return bool(process.name().startswith(("chrom", "node")))
    except psutil.Error:
        return False


def test_rows_screenshot_and_download_of_a_page(tmp_path: Path, shop: Stub) -> None:
    site = Site(tmp_path, shop, "prices")
    with site.program.start() as program:
        program.ready()
        run = site.ended(site.begin())
        assert (run["state"], run["result"]) == ("succeeded", ROWS), run["error"]
        assert [each["name"] for each in run["artefacts"]] == ["page.png", "prices.csv"]
        assert site.artefact(run["id"], "page.png").startswith(b"\x89PNG\r\n")
        assert site.artefact(run["id"], "prices.csv") == CSV
        shown = turnout("show", run["id"], "--data", program.data).stdout
        assert "page.png" in shown and "prices.csv" in shown
        until(lambda: not site.browsers(), 20, "no browser")
        assert program.stop() == 0
    assert len(site.visits) == 1 and len(site.visits[0]) == 32


def test_selenium_reads_a_notice(tmp_path: Path, shop: Stub) -> None:
    site = Site(tmp_path, shop, "notice")
    with site.program.start() as program:
        program.ready()
        run = site.ended(site.begin())
        assert (run["state"], run["result"]) == ("succeeded", "All is well."), run["error"]
        assert site.artefact(run["id"], "page.png").startswith(b"\x89PNG\r\n")
        until(lambda: not site.browsers(), 20, "no browser")
        assert program.stop() == 0


@pytest.mark.parametrize("example", ["prices", "notice"])
@pytest.mark.parametrize("end", ["timeout", "cancel", "kill"])
def test_no_browser_is_left_of_a_page_that_never_ends(
    tmp_path: Path, shop: Stub, example: str, end: str
) -> None:
    shop.replies["/"] = [Reply(content=ENDLESS, headers={"content-type": "text/html"})]
    site = Site(tmp_path, shop, example)
    site.change(POLICY, 'timeout="25s"' if end == "timeout" else 'timeout="5m"')
    with site.program.start() as program:
        program.ready()
        run_id = site.begin()
        until(lambda: site.shop.asked, 60, "the request of the browser")
        assert site.browsers()
        if end == "kill":
            program.child.send_signal(signal.SIGKILL)
            program.ended(20)
        else:
            if end == "cancel":
                site.ask(f"/runs/{run_id}/cancel")
            run = site.ended(run_id)
            assert run["state"] == ("failed" if end == "timeout" else "cancelled")
        until(lambda: not site.browsers(), 20, f"no browser, but {site.browsers()}")


def test_in_a_thread_a_browser_would_be_left(tmp_path: Path, shop: Stub) -> None:
    """The control: what the worker process is for."""
    shop.replies["/"] = [Reply(content=ENDLESS, headers={"content-type": "text/html"})]
    site = Site(tmp_path, shop, "notice")
    site.change('pool="process", ', "")
    with site.program.start() as program:
        program.ready()
        site.begin()
        until(lambda: site.shop.asked, 60, "the request of the browser")
        program.child.send_signal(signal.SIGKILL)
        program.ended(20)
        with pytest.raises(AssertionError, match="no browser"):
            until(lambda: not site.browsers(), 5, "no browser")
        for process in site.mark.found():
            process.kill()


@pytest.mark.parametrize(
    ("boundary", "visits"), [("look#1 succeeded", 2), ("keep#1 succeeded", 1), ("run succeeded", 1)]
)
@pytest.mark.parametrize("example", ["prices", "notice"])
def test_a_kill_at_each_boundary_repeats_one_step_under_its_key(
    tmp_path: Path, shop: Stub, example: str, boundary: str, visits: int
) -> None:
    site = Site(tmp_path, shop, example, killed_at(boundary))
    with site.program.start() as program:
        program.ready()
        with supervised(program, most_restarts=2) as deaths:
            run = site.ended(site.begin())
        assert deaths == [-signal.SIGKILL]
        assert run["state"] == "succeeded", run["error"]
        names = ["page.png", "prices.csv"] if example == "prices" else ["page.png"]
        assert [each["name"] for each in run["artefacts"]] == names
        until(lambda: not site.browsers(), 20, "no browser")
    assert len(site.visits) == visits and len(set(site.visits)) == 1
    assert len(site.visits[0]) == (32 if example == "prices" else 0)

"""A real Prometheus that scrapes a program, and promtool, which judges metrics and rules."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from .ports import free_port
from .program import until

IN_CI = os.environ.get("CI") == "true"


def tool(name: str) -> str:
    """Return a tool's path; its absence is a failure in CI and a named skip elsewhere."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if IN_CI else pytest.skip)(f"{name} is not installed")
    return found


def promtool(*words: str | Path, given: bytes = b"") -> None:
    """Run promtool; fails with what it says unless it is content."""
    verdict = subprocess.run(
        [tool("promtool"), *words], input=given, capture_output=True, check=False, timeout=170
    )
    said = (verdict.stdout + verdict.stderr).decode()
    assert verdict.returncode == 0, said


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query?"

    def ask(self, query: str) -> float | None:
        """Return the value of a query that finds one series, None while it finds none."""
        found = self._values(query)
        assert len(found) < 2, f"{query} finds {len(found)} series"
        return found[0] if found else None

    def shows(self, query: str) -> bool:
        """Return whether a query finds a series with a number."""
        return any(not math.isnan(value) for value in self._values(query))

    def _values(self, query: str) -> list[float]:
        try:
            with urllib.request.urlopen(
                self._url + urllib.parse.urlencode({"query": query}), timeout=5
            ) as answer:
                found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        except urllib.error.HTTPError as refused:
            assert refused.code == 503, f"{query}: {refused.read().decode()}"
            return []  # it starts
        except OSError:
            return []
        return [float(each["value"][1]) for each in found]

    def until(self, query: str, timeout: float = 10) -> None:
        """Wait until a query, such as a comparison, finds a series."""
        until(lambda: self.ask(query) is not None, timeout, query)


@contextmanager
def prometheus(folder: Path, *, scrapes: int, rules: Path | None = None) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a port every 0.2 s; yields it once it has done so.

    `rules` are evaluated every second.
    """
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "200ms", "evaluation_interval": "1s"},
                "rule_files": [] if rules is None else [str(rules)],
                "scrape_configs": [
                    {
                        "job_name": "turnout",
                        "static_configs": [{"targets": [f"127.0.0.1:{scrapes}"]}],
                    }
                ],
            }
        )
    )
    with (folder / "prometheus.log").open("wb") as log:
        child = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(port)
        until(lambda: running.ask('up{job="turnout"}') == 1, 20, "a scrape by Prometheus")
        yield running
    finally:
        child.kill()
        child.wait(10)

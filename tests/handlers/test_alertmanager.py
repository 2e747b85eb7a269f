"""A real Alertmanager starts flows: by its token, again while turnout is down, once each alert."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench.peers import services
from tests.support import CHECKOUT
from tests.support.boundaries import killed_at
from tests.support.ports import free_port
from tests.support.program import Program, supervised, until
from tests.support.prometheus import tool
from tests.support.stub_http import Reply, Stub, stubbed

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

FLOWS = CHECKOUT / "handlers" / "examples" / "systems" / "alertmanager.py"
PATIENCE = 60.0
TOKEN = "the-token-of-both-sides"


class Watch:
    """An Alertmanager that tells turnout of alerts, and turnout, which tells people."""

    def __init__(
        self, folder: Path, people: Stub, lasts: str = "10m", token: str = TOKEN, sabotage: str = ""
    ) -> None:
        self.folder, self.people, self.token = folder, people, token
        source = FLOWS.read_text()
        assert source.count('timeout="10m"') == 1
        flows = folder / "alertmanager.py"
        flows.write_text(source.replace('timeout="10m"', f'timeout="{lasts}"'))
        self.program = Program(
            flows=flows,
            data=folder / "data",
            log=folder / "log",
            env={
                "ALERTS_TOKEN": TOKEN, "CHAT_URL": people.says("/chat", Reply()),
                "MARKER": str(folder / "marker"),
            },
            port=free_port(),
            sabotage=sabotage,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{free_port()}"

    @contextmanager
    def alertmanager(self) -> Iterator[None]:
        hook = {
            "url": f"http://127.0.0.1:{self.program.port}/hooks/alerts",
            "http_config": {"authorization": {"credentials": self.token}},
        }
        often = dict.fromkeys(("group_wait", "group_interval", "repeat_interval"), "1s")
        config = {
            "route": {"receiver": "turnout", "group_by": ["cluster"], **often},
            "receivers": [{"name": "turnout", "webhook_configs": [hook]}],
        }
        (self.folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
        command = [
            tool("prometheus-alertmanager"), "--config.file=alertmanager.yml",
            "--storage.path=alerts", "--cluster.listen-address=",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]  # fmt: skip
        with services.running(
            command, self.folder / "alertmanager.log",
            ready=lambda: services.answers(f"{self.url}/-/ready"), cwd=self.folder,
        ):  # fmt: skip
            yield

    def alert(self, name: str, *, over: bool = False) -> None:
        """Say that an alert fires, or is over."""
        now = datetime.now(UTC)
        ends = now if over else now + timedelta(hours=1)
        alert = {"labels": {"alertname": name}, "endsAt": ends.isoformat()}
        body = json.dumps([alert]).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v2/alerts", body, headers)
        urllib.request.urlopen(request, timeout=10).close()

    def runs(self, flow: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self.program.api(f"/runs?flow={flow}")["items"]
        except (AssertionError, FileNotFoundError):  # it is down
            return []
        return found

    def heard(self, count: int) -> bool:
        return [run["state"] for run in self.runs("heard")].count("succeeded") >= count


@pytest.fixture
def people() -> Iterator[Stub]:
    with stubbed() as people:
        yield people


def test_an_alert_is_one_run_however_often_it_is_told_and_over_when_it_is(
    tmp_path: Path, people: Stub
) -> None:
    watch = Watch(tmp_path, people)
    with watch.alertmanager():
        watch.alert("DiskFull")  # turnout is down: it is told again
        with watch.program.start() as program:
            program.ready(PATIENCE)
            until(lambda: watch.heard(3), PATIENCE, "the third time it is told")
            watch.alert("Slow")
            until(lambda: len(watch.runs("outlast")) == 2, PATIENCE, "another alert")
            watch.alert("DiskFull", over=True)
            until(
                lambda: [run["result"] for run in watch.runs("outlast")].count("over") == 1,
                PATIENCE, "the end of the alert",
            )  # fmt: skip
            assert len(watch.runs("outlast")) == 2
            assert {run["state"] for run in watch.runs("heard")} <= {"succeeded", "running"}
    assert people.asked == []


@pytest.mark.parametrize(
    "boundary",
    ["notify#1 succeeded", "run succeeded"],
)
def test_people_are_told_of_an_alert_that_lasts_over_a_kill(
    tmp_path: Path, people: Stub, boundary: str
) -> None:
    watch = Watch(tmp_path, people, lasts="2s", sabotage=killed_at(boundary))
    with watch.alertmanager(), watch.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            watch.alert("DiskFull")
            until(
                lambda: [run["result"] for run in watch.runs("outlast")] == ["told"],
                PATIENCE, "people are told",
            )  # fmt: skip
            until(lambda: deaths, PATIENCE, "the kill")
        assert deaths == [-signal.SIGKILL]
    told = [json.loads(asked.body)["text"] for asked in people.asked]
    assert told[0].startswith("DiskFull has lasted for ten minutes: ")
    assert len(told) == (2 if boundary.startswith("notify") else 1)
    assert len({asked.headers["idempotency-key"] for asked in people.asked}) == 1


def test_another_token_starts_nothing_and_the_log_says_why(tmp_path: Path, people: Stub) -> None:
    watch = Watch(tmp_path, people, token="that-of-nobody")
    with watch.alertmanager(), watch.program.start() as program:
        program.ready(PATIENCE)
        watch.alert("DiskFull")
        said = program.said(r'.*"webhook\.unverified".*', PATIENCE)[0]
        assert "ALERTS_TOKEN" in said and "the token does not match" in said
        assert watch.runs("heard") == []
        assert "that-of-nobody" not in program.log_text()

"""The page alone brings up turnout, Prometheus and Alertmanager; dashboards show its figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Say
from tests.support import CHECKOUT
from tests.support.ports import free_port
from tests.support.program import Program, environment, turnout, until
from tests.support.prometheus import prometheus, tool
from tests.support.stub_http import Reply, Stub, stubbed

pytestmark = pytest.mark.slow

DEPLOY = CHECKOUT / "deploy"
EXAMPLES = CHECKOUT / "handlers" / "examples"
GRAFANA = DEPLOY / "grafana"
FULL_HOTEL = {"traveller": "Ann", "flight": "LH1", "hotel": "Full House"}


# ---- the page


def commands() -> list[str]:
    """Return the commands of the page that bring everything up, one a line."""
    section = (DEPLOY / "README.md").read_text("utf-8").partition("\n## Watch it\n")[2]
    return section.partition("```console\n")[2].partition("```")[0].splitlines()


@contextmanager
def typed(folder: Path, ports: dict[str, int], pager: str) -> Iterator[None]:
    """Type the page's commands in a folder, but for the install; other ports are taken."""
    install, *rest = commands()
    for package in install.split()[3:]:
        tool(package)  # each has the name of its program
    script = "\n".join(rest)
    for port, own in ports.items():
        script = re.sub(rf"(127\.0\.0\.1:|--port ){port}\b", rf"\g<1>{own}", script)
    scripts = Path(sys.executable).parent
    env = environment({"PATH": f"{scripts}:{os.environ['PATH']}", "PAGER": pager})
    with (folder / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-euc", f"{script}\nwait"],
            cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(30)


def told(pager: Stub, alert: str) -> list[str]:
    """Return the states of an alert that a person was told, in order."""
    documents = [json.loads(asked.body) for asked in list(pager.asked)]
    return [
        each["status"]
        for document in documents
        for each in document["alerts"]
        if each["labels"]["alertname"] == alert
    ]


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_page_brings_up_what_tells_of_a_dead_letter_and_of_its_end(
    tmp_path: Path, say: Say
) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    shutil.copy(EXAMPLES / "trip.py", tmp_path / "flows.py")
    ports = {port: free_port() for port in ("8080", "9090", "9093")}
    data = tmp_path / "turnout-data"
    flows, log = tmp_path / "flows.py", tmp_path / "log"
    service = Program(flows=flows, data=data, log=log, port=ports["8080"])
    with stubbed() as pager:
        address = pager.says("/alerts", Reply())
        with typed(tmp_path, ports, address):
            for port, page in (("8080", "/readyz"), ("9090", "/-/ready"), ("9093", "/-/ready")):
                until(lambda: _answers(ports[port], page), 60, f"{port}{page}")  # noqa: B023  at once
            run = service.post("trips", FULL_HOTEL)
            began = time.monotonic()
            until(lambda: told(pager, "TurnoutDeadLetters"), 60, "told of the dead letter")
            say(f"told after {time.monotonic() - began:.0f} s")
            dropped = turnout("dead", "drop", run, env={"TURNOUT_DATA": str(data)})
            assert dropped.returncode == 0, dropped.stderr
            began = time.monotonic()
            until(
                lambda: told(pager, "TurnoutDeadLetters")[-1] == "resolved" or None,
                120,
                "told that it is over",
            )
            say(f"told of the end after {time.monotonic() - began:.0f} s")
    assert told(pager, "TurnoutDeadLetters") == ["firing", "resolved"]


def _answers(port: int, page: str) -> bool:
    answer = Program(flows=Path(), data=Path(), log=Path(), port=port).ask(page)
    return answer is not None and answer.status == 200


def test_alertmanager_accepts_its_configuration() -> None:
    subprocess.run(
        [tool("amtool"), "check-config", DEPLOY / "alertmanager.yml"], check=True, timeout=20
    )


# ---- dashboards


def panels() -> list[dict[str, Any]]:
    """Return the panels of all dashboards that show something."""
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    assert files
    return [
        panel
        for file in files
        for panel in json.loads(file.read_text())["panels"]
        if panel["type"] != "row"
    ]


def queries() -> list[str]:
    """Return the query of every panel, with a short interval for Grafana's own."""
    return [
        target["expr"].replace("$__rate_interval", "30s")
        for panel in panels()
        for target in panel["targets"]
    ]


def test_dashboards_are_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    known = {source["uid"] for source in sources["datasources"]}
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/turnout.yaml").read_text())
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounted = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    for provider in providers["providers"]:
        assert provider["options"]["path"] in mounted
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    for panel in panels():
        assert {panel["datasource"]["uid"]} | {
            target["datasource"]["uid"] for target in panel["targets"]
        } <= known
    files = (GRAFANA / "dashboards").glob("*.json")
    for file in files:
        drawn = json.loads(file.read_text())["panels"]
        assert len({panel["id"] for panel in drawn}) == len(drawn)


@pytest.mark.full
@pytest.mark.timeout(180)
def test_every_panel_shows_figures_of_the_examples(tmp_path: Path) -> None:
    flows = tmp_path / "flows"
    flows.mkdir()
    for name in ("trip", "approval", "six_lines"):
        shutil.copy(EXAMPLES / f"{name}.py", flows)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    rules = DEPLOY / "turnout.rules.yml"
    travel = {"traveller": "Ann", "hotel": "Ritz"}
    with (
        program.start(),
        prometheus(tmp_path, scrapes=program.port, rules=rules) as operator,
    ):
        program.ready()
        program.ask("/hooks/travel", method="POST", body=json.dumps(travel).encode())
        missing = queries()
        assert len(missing) > 20

        def all_answer() -> bool:
            for hotel in ("Full House", "Ritz"):
                program.post("trips", FULL_HOTEL | {"hotel": hotel})
            missing[:] = [query for query in missing if not operator.shows(query)]
            return not missing

        try:
            until(all_answer, 90, "data of every panel")
        except AssertionError:
            pytest.fail("no data: " + "\n".join(missing))

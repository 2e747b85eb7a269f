"""Kubernetes and AWS from a flow, over their own clients: S12, budgets, dry runs, recorded undo.

The API of Kubernetes is emulated by kmock and that of AWS by moto, both over HTTP; the service is
the real program, and is killed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import CHECKOUT
from tests.support.boundaries import behind_ours, killed_at
from tests.support.injected_clock import InjectedClock
from tests.support.peer_server import Stub, stub
from tests.support.ports import free_port
from tests.support.program import Program, environment, supervised, until
from tests.support.stand_ins import Cloud, Cluster, kubernetes
from tests.support.stub_http import Reply, stubbed

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "systems"
PATIENCE = 120.0
"""Seconds; the machine may be busy with other tests."""

TOKEN = "the-token-of-this-test"
SHOP = "production/web-app"
PATCH = "/apis/apps/v1/namespaces/production/deployments/web-app/scale"
TEN = ("PATCH", PATCH, {"spec": {"replicas": 10}})

LOOKS = "if found := await tagged(client, key):\n            return found"
LOOKS_AWAY = "if found := []:\n            return found"
"""Breaks the promise: what was started before a crash is not looked for."""


class Infrastructure:
    """The three examples, served together."""

    def __init__(
        self, folder: Path, env: dict[str, str], sabotage: str = "", **edited: tuple[str, str]
    ) -> None:
        self.folder = folder / "flows"
        self.folder.mkdir()
        self.clock = InjectedClock(folder)
        self.env = env | self.clock.env | {"TURNOUT_API_TOKEN": TOKEN, "MARKER": str(folder / "m")}
        # Ticks of its own would come between.
        edits = {"autoscale": ('every("30s")', 'every("30s", start="2090-01-01T00:00Z")')} | edited
        for name in ("autoscale", "aws_machines", "kubernetes_scale"):
            old, new = edits.get(name, ("", ""))
            text = (EXAMPLES / f"{name}.py").read_text()
            assert old in text
            (self.folder / f"{name}.py").write_text(text.replace(old, new) if old else text)
        self.program = Program(
            flows=self.folder,
            data=folder / "data",
            log=folder / "log",
            env=self.env,
            sabotage=behind_ours("clients") + sabotage,
        )

    def command(self, *words: str) -> str:
        """Run a `turnout` command to its end; returns what it printed."""
        code = behind_ours("clients") + "from turnout.service.cli import main\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=self.folder, env=environment(self.env), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def act(self, path: str) -> Any:
        """Do something over the operator's API."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = self.program.ask(f"/api{path}", method="POST", headers=headers)
        assert answer is not None and answer.status in (200, 202), answer
        return answer.json

    def look(self, run: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.program.api(f"/runs/{run}")
        except (AssertionError, FileNotFoundError):  # it is down
            return {"finished_at": None, "state": "unknown", "steps": []}
        return found

    def ended(self, run: str) -> dict[str, Any]:
        """Wait for the end of a run; returns it."""
        return until(
            lambda: found if (found := self.look(run))["finished_at"] else None,
            PATIENCE,
            f"{run} ended",
        )

    def autoscaled(self) -> str:
        """Have it look, and wait until all is done that it wants; returns what it said."""
        run = self.ended(self.program.post("alerts/health", {}))
        until(self.program.is_quiet, PATIENCE, "no unfinished run")
        assert run["state"] == "succeeded", run["error"]
        return str(run["result"])

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.program.api(f"/runs?flow={flow}")["items"]
        return found


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with kubernetes(tmp_path_factory.mktemp("kubernetes")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started_cluster: Cluster) -> Cluster:
    """A Kubernetes API with a shop of three pods."""
    started_cluster.begin({SHOP: 3})
    return started_cluster


@pytest.fixture
def web() -> Iterator[Stub]:
    """A shop that is down, and whose machines are busy; and who is told of it."""
    with stub() as web:
        web.statuses["/health"] = [500]
        web.bodies["/load"] = {"load": 81}
        yield web


@pytest.fixture
def env(web: Stub, cluster: Cluster, cloud: Cloud) -> dict[str, str]:
    there = {"HEALTH_URL": "/health", "LOAD_URL": "/load", "ALERT_URL": "/alert"}
    urls = {name: web.url + path for name, path in there.items()}
    return {**urls, **cluster.env, **cloud.env}


# ---------------------------------------------------------------- S12


def test_s12_a_shop_that_answers_is_left_alone(
    tmp_path: Path, env: dict[str, str], web: Stub, cluster: Cluster, cloud: Cloud
) -> None:
    web.statuses["/health"] = [200]
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        assert it.autoscaled() == "healthy"
    assert web.asked == ["/health"]
    assert cluster.changes() == [] and cloud.machines() == []


@pytest.mark.parametrize(("load", "machines"), [(81, 2), (80, 0)])
def test_s12_a_shop_that_refuses_three_times_is_scaled_and_under_load_gets_machines(
    tmp_path: Path,
    env: dict[str, str],
    web: Stub,
    cluster: Cluster,
    cloud: Cloud,
    load: int,
    machines: int,
) -> None:
    web.bodies["/load"] = {"load": load}
    refusing = {"HEALTH_URL": f"http://127.0.0.1:{free_port()}/health"}
    it = Infrastructure(tmp_path, env | refusing)
    with it.program.start() as program:
        program.ready(PATIENCE)
        assert it.autoscaled() == "Auto-scaling completed"
        (run,) = it.runs("autoscale")
        probed = program.api(f"/runs/{run['id']}")["steps"][0]
    assert (probed["key"], probed["tries"]) == ("healthy#1", 3)
    assert cluster.changes() == [TEN]
    assert [state for _, state, _ in cloud.machines()] == ["running"] * machines


def test_s12_a_tick_and_a_request_at_once_are_one_run(
    tmp_path: Path, env: dict[str, str], web: Stub, cluster: Cluster
) -> None:
    web.bodies["/load"] = {"load": 80}
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        it.act("/triggers/every%3A30s/fire")
        program.post("alerts/health", {})
        program.quiet(PATIENCE)
        states = sorted(run["state"] for run in it.runs("autoscale"))
    assert states == ["skipped", "succeeded"]
    assert cluster.changes() == [TEN] and web.count("/health") == 3


def test_s12_five_minutes_pass_before_it_scales_again(
    tmp_path: Path, env: dict[str, str], web: Stub, cluster: Cluster
) -> None:
    web.bodies["/load"] = {"load": 80}
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        assert it.autoscaled() == "Auto-scaling completed"
        web.statuses["/health"] = [200]
        assert it.autoscaled() == "healthy"
        cluster.scale(SHOP, 3)
        web.statuses["/health"] = [500]
        assert it.autoscaled().startswith("scaled already, the next time not before ")
        assert cluster.replicas(SHOP) == 3
        it.clock.set("+6m")
        assert it.autoscaled() == "Auto-scaling completed"
    assert [each for each in cluster.changes() if each[1] == PATCH] == [TEN, TEN]


@pytest.mark.parametrize(
    ("edited", "machines"),
    [({}, 2), ({"aws_machines": (LOOKS, LOOKS_AWAY)}, 4)],
    ids=["tagged", "control"],
)
def test_s12_a_kill_after_the_start_of_machines_starts_no_more(
    tmp_path: Path,
    env: dict[str, str],
    cluster: Cluster,
    cloud: Cloud,
    edited: dict[str, tuple[str, str]],
    machines: int,
) -> None:
    it = Infrastructure(tmp_path, env, killed_at("provision#1 succeeded"), **edited)
    with it.program.start() as program:
        program.ready(PATIENCE)
        with supervised(program, most_restarts=2) as deaths:
            assert it.autoscaled() == "Auto-scaling completed"
        assert len(deaths) == 1
        (run,) = it.runs("start_machines")
        assert run["state"] == "succeeded", run["error"]
        (scaling,) = (it.look(run["id"]) for run in it.runs("scale_deployment"))
    assert len(cloud.machines()) == machines
    assert len({key for _, _, key in cloud.machines()}) == 1, "one key over both tries"
    changes = cluster.changes()  # the kill may have cut off this run too, which then sets ten again
    assert changes in ([TEN], [TEN] * (1 + scaling["crashes"])) and cluster.replicas(SHOP) == 10


def test_s12_a_conflict_and_an_error_of_the_cluster_are_tried_again(
    tmp_path: Path, env: dict[str, str], web: Stub, cluster: Cluster
) -> None:
    web.bodies["/load"] = {"load": 80}
    cluster.begin({SHOP: 3}, refused=[409, 500])
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        assert it.autoscaled() == "Auto-scaling completed"
    assert cluster.changes() == [TEN] * 3 and cluster.replicas(SHOP) == 10
    assert web.texts == []


def test_s12_what_the_cluster_forbids_fails_at_once_and_is_told(
    tmp_path: Path, env: dict[str, str], web: Stub, cluster: Cluster
) -> None:
    web.bodies["/load"] = {"load": 80}
    cluster.begin({SHOP: 3}, refused=[403])
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        it.autoscaled()
        (run,) = it.runs("scale_deployment")
        (text,) = until(lambda: web.texts, PATIENCE, "the alert")
    assert run["state"] == "failed" and run["attempts"] == 1
    # The undo of the step looks, and finds nothing to put back.
    assert cluster.changes() == [TEN] and cluster.replicas(SHOP) == 3
    assert "Kubernetes refuses, 403" in text


def test_s12_a_dry_run_looks_and_changes_nothing(
    tmp_path: Path, env: dict[str, str], web: Stub, cluster: Cluster, cloud: Cloud
) -> None:
    it = Infrastructure(tmp_path, env)
    wanted = '{"deployment": "web-app", "namespace": "production", "replicas": 10}'
    machines = '{"image": "ami-1", "least": 2, "most": 5}'
    told = it.command("run", "autoscale.py:autoscale", "--dry-run")
    assert "pods.wanted" in told and "machines.wanted" in told, told
    assert web.asked == [*["/health"] * 3, "/load"], "what reads is tried as often as ever"
    told = it.command("run", "kubernetes_scale.py:scale_deployment", "--input", wanted, "--dry-run")
    assert re.search(r"scale.*web-app.*production.*3.*10", told), told
    told = it.command("run", "aws_machines.py:start_machines", "--input", machines, "--dry-run")
    assert re.search(r"provision.*ami-1", told), told
    assert cluster.changes() == [] and cloud.machines() == [] and web.texts == []


# ---------------------------------------------------------------- budgets and undo

FIVE = {"deployment": "web-app", "namespace": "production", "replicas": 5}


def test_a_scaling_that_is_cancelled_is_put_back(
    tmp_path: Path, env: dict[str, str], cluster: Cluster
) -> None:
    cluster.begin({SHOP: 3}, stuck=True)
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        run = program.post("scale", FIVE)
        until(lambda: it.look(run)["state"] == "waiting", PATIENCE, "a look")
        it.act(f"/runs/{run}/cancel")
        ended = it.ended(run)
    assert (ended["state"], ended["undo"]) == ("cancelled", "done")
    assert [body["spec"]["replicas"] for _, _, body in cluster.changes()] == [5, 3]
    assert cluster.replicas(SHOP) == 3


@pytest.mark.parametrize(("others", "left"), [(None, 3), (7, 7)])
def test_a_scaling_that_never_gets_ready_is_put_back_but_not_over_anothers(
    tmp_path: Path,
    env: dict[str, str],
    web: Stub,
    cluster: Cluster,
    others: int | None,
    left: int,
) -> None:
    cluster.begin({SHOP: 3}, stuck=True)
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        run = program.post("scale", FIVE)
        until(lambda: it.look(run)["state"] == "waiting", PATIENCE, "a look")
        if others is not None:
            cluster.scale(SHOP, others)
        it.clock.set("+6m")
        ended = it.ended(run)
        (text,) = until(lambda: web.texts, PATIENCE, "the alert")
    assert (ended["state"], ended["undo"]) == ("failed", "done")
    assert ended["error"]["type"] == "PollTimeout" and "PollTimeout" in text
    assert cluster.replicas(SHOP) == left


def test_a_machine_that_is_lost_takes_the_others_of_its_run_along(
    tmp_path: Path, env: dict[str, str], cloud: Cloud
) -> None:
    it = Infrastructure(tmp_path, env, killed_at("provision#1 succeeded", recorded=True))
    with it.program.start() as program:
        program.ready(PATIENCE)
        run = program.post("machines", {"image": "ami-1", "least": 3, "most": 3})
        program.ended(PATIENCE)
        ((lost, *_), *others) = cloud.machines()
        assert len(others) == 2
        cloud.ec2("TerminateInstances", **{"InstanceId.1": lost})
        program.start()
        program.ready(PATIENCE)
        ended = it.ended(run)
    assert ended["error"]["message"] == "a machine is terminated"
    assert ended["undo"] == "done" and ended["crashes"] == 1
    assert [state for _, state, _ in cloud.machines()] == ["terminated"] * 3


def test_more_machines_than_the_budget_has_are_not_started(
    tmp_path: Path, env: dict[str, str], cloud: Cloud
) -> None:
    it = Infrastructure(tmp_path, env)
    with it.program.start() as program:
        program.ready(PATIENCE)
        asked = {"image": "ami-1", "least": 5, "most": 5}
        ended = [it.ended(program.post("machines", asked | {"n": n})) for n in range(3)]
        assert re.search(r"ec2.*10", it.command("limits", "--data", str(program.data)))
    assert [run["state"] for run in ended] == ["succeeded", "succeeded", "failed"]
    assert ended[2]["error"]["type"] == "BudgetSpent"
    assert len(cloud.machines()) == 10


def test_what_aws_refuses_fails_at_once_and_a_busy_aws_is_asked_again(
    tmp_path: Path, env: dict[str, str]
) -> None:
    refused = (
        b"<Response><Errors><Error><Code>UnauthorizedOperation</Code></Error></Errors></Response>"
    )
    none = b"<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>"
    with stubbed() as amazon:
        amazon.replies["/"] = [Reply(503), Reply(403, refused), Reply(content=none)]
        it = Infrastructure(tmp_path, env | {"AWS_ENDPOINT_URL": amazon.url})
        with it.program.start() as program:
            program.ready(PATIENCE)
            ended = it.ended(program.post("machines", {"image": "ami-1", "least": 1, "most": 1}))
    assert ended["state"] == "failed" and "UnauthorizedOperation" in ended["error"]["message"]
    assert [step["tries"] for step in ended["steps"] if step["key"] == "provision#1"] == [1]
    assert ended["undo"] == "done" and len(amazon.asked) == 3, "twice, and once by the undo"

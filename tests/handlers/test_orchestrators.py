"""Flows hand work to Airflow, Prefect and Dagster, and these start a flow: with the real servers.

Each is in an environment of its own, that of the benchmarks, and is started once for this file.
What it starts loses the answer to its first request, so that its task is tried again.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.bench import orchestrators
from tests.bench.peers import python_of, services
from tests.support import CHECKOUT
from tests.support.boundaries import killed_at
from tests.support.ports import free_port
from tests.support.program import Program, supervised, until

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "systems"
PATIENCE_SECONDS = 600
SECRET = "the-secret-of-both-sides"
PASSWORD = "the-password-of-this-test"

LOSES = """

from pathlib import Path

honest = start_run


def start_run(data, key):
    if data["receipt"].startswith("receipt-unkeyed"):
        key += os.urandom(8).hex()
    run = honest(data, key)
    keys = Path({folder!r}, data["receipt"])
    with keys.open("a") as file:
        file.write(key + "\\n")
    if len(keys.read_text().splitlines()) == 1:
        raise OSError("the answer is lost")
    return run
"""
"""Behind `call_turnout.py`: notes each key, and loses the first answer of a receipt.

An order called `unkeyed…` breaks the promise: it has another key each time.
"""

KEY = "current().key()"
NO_KEY = "__import__('os').urandom(16).hex()"
"""Breaks the promise: each try asks under another key."""


class Orchestrator(Protocol):
    """What the tests ask of each."""

    name: str
    secrets: Mapping[str, str]

    def running(self) -> AbstractContextManager[object]:
        """Run it until left; what it has stored is there again the next time."""

    def orders(self) -> list[str]:
        """Return the number of the order of each run that was started in it."""


class Airflow:
    name = "airflow"

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        dags, home = folder / "theirs", folder / "home"
        home.mkdir()
        passwords = home / "simple_auth_manager_passwords.json.generated"
        passwords.write_text(json.dumps({"admin": PASSWORD}))
        patient = {"AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "120"}
        self.server = orchestrators.Airflow(home, dags, {**env, **patient})
        self.running = self.server.running
        self.secrets = {
            "AIRFLOW_URL": self.server.url,
            "AIRFLOW_USER": "admin",
            "AIRFLOW_PASSWORD": PASSWORD,
        }

    def orders(self) -> list[str]:
        runs = self.server.ask("/dags/bill/dagRuns?limit=100")["dag_runs"]
        return [run["conf"]["id"] for run in runs]


class Prefect:
    name = "prefect"

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env, self.port = folder, env, free_port()
        self.secrets = {"PREFECT_URL": f"http://127.0.0.1:{self.port}/api"}

    @contextmanager
    def running(self) -> Iterator[None]:
        log = self.folder / "served.log"
        log.write_text("")
        with services.prefect(self.folder, self.port) as server:
            env = {**self.env, **server.env, "PREFECT_LOGGING_LEVEL": "INFO"}
            command = [str(python_of("prefect")), "prefect_flow.py"]
            with services.running(
                command, log, ready=lambda: "orders" in log.read_text(),
                seconds=PATIENCE_SECONDS, env=env, cwd=self.folder / "theirs",
            ):  # fmt: skip
                yield

    def orders(self) -> list[str]:
        url = f"{self.secrets['PREFECT_URL']}/flow_runs/filter"
        return [run["parameters"]["order"]["id"] for run in orchestrators.call(url, {})]


class Dagster:
    name = "dagster"

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        home = folder / "home"
        home.mkdir()
        self.server = orchestrators.Dagster(home, folder / "theirs" / "dagster_job.py", env)
        self.running = self.server.running
        self.secrets = {"DAGSTER_URL": self.server.url}

    def orders(self) -> list[str]:
        runs = self.server.ask("{ runsOrError { ... on Runs { results { runConfig } } } }")
        results = runs["runsOrError"]["results"]
        return [run["runConfig"]["ops"]["charge"]["config"]["id"] for run in results]


@pytest.fixture(scope="module", params=[Airflow, Prefect, Dagster], ids=lambda each: each.name)
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """One of them, running, and a port on which it expects turnout."""
    folder = tmp_path_factory.mktemp(request.param.name)
    theirs, port = folder / "theirs", free_port()
    theirs.mkdir()
    for file in EXAMPLES.glob(f"{request.param.name}_*.py"):
        if not file.name.endswith("_orders.py"):
            shutil.copy(file, theirs)
    source = (EXAMPLES / "call_turnout.py").read_text()
    (theirs / "call_turnout.py").write_text(source + LOSES.format(folder=str(folder)))
    env = {"HOOK_URL": f"http://127.0.0.1:{port}/hooks/billed", "HOOK_SECRET": SECRET}
    found = request.param(folder, env)
    with ExitStack() as stack:
        yield Side(found, folder, port, stack)


class Side:
    """The other system: started when first asked for, and what it said to turnout."""

    def __init__(self, system: Orchestrator, folder: Path, port: int, stack: ExitStack) -> None:
        self.system, self.folder, self.port, self._stack = system, folder, port, stack
        self._running = False

    def start(self) -> None:
        if not self._running:
            self._stack.enter_context(self.system.running())
            self._running = True

    def stop(self) -> None:
        self._stack.close()
        self._running = False

    def keys(self, order: str) -> list[str]:
        """Return the key of each request that it made for an order."""
        noted = self.folder / f"receipt-{order}"
        return noted.read_text().split() if noted.exists() else []


class Service:
    """Turnout with the flows of both directions."""

    def __init__(self, folder: Path, side: Side, sabotage: str = "", key: str = KEY) -> None:
        flows = folder / "flows"
        flows.mkdir()
        shutil.copy(EXAMPLES / "called.py", flows)
        source = (EXAMPLES / f"{side.system.name}_orders.py").read_text()
        assert KEY in source
        (flows / "orders.py").write_text(source.replace(KEY, key))
        self.path = f"/hooks/orders/{side.system.name}"
        self.program = Program(
            flows=flows,
            data=folder / "data",
            log=folder / "log",
            env={**side.system.secrets, "HOOK_SECRET": SECRET, "MARKER": str(folder / "marker")},
            port=side.port,
            sabotage=sabotage,
        )

    def order(self, number: str, amount: float = 3.5) -> str:
        """Place an order; returns its run."""
        body = json.dumps({"id": number, "amount": amount}).encode()
        headers = {"Content-Type": "application/json"}
        answer = self.program.ask(self.path, method="POST", body=body, headers=headers)
        assert answer is not None and answer.status == 202, answer
        return str(answer.json["runs"][0])

    def reaches(self, run: str, state: str) -> dict[str, Any]:
        """Wait until a run is in a state; returns it."""

        def look() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self.program.api(f"/runs/{run}")
            except (AssertionError, FileNotFoundError):  # it is down
                return None
            assert found["state"] == state or found["finished_at"] is None, found
            return found if found["state"] == state else None

        return until(look, PATIENCE_SECONDS, f"{run} {state}")

    def billed(self, side: Side, order: str, requests: int, runs: int) -> None:
        """Wait for requests of the other side, and for the runs that they start."""
        until(lambda: len(side.keys(order)) >= requests, PATIENCE_SECONDS, "its second request")
        self.program.quiet(60)
        results = [
            self.program.api(f"/runs/{run['id']}")["result"]
            for run in self.program.api("/runs?flow=billed")["items"]
        ]
        assert results == [f"receipt-{order} is paid"] * runs
        assert len(side.keys(order)) == requests


@pytest.mark.parametrize(("order", "runs"), [("7", 1), ("unkeyed-7", 2)], ids=["keyed", "control"])
def test_the_result_comes_back_and_a_task_tried_again_starts_one_run(
    tmp_path: Path, other: Side, order: str, runs: int
) -> None:
    other.start()
    service = Service(tmp_path, other)
    with service.program.start() as program:
        program.ready()
        run = service.reaches(service.order(order), "succeeded")
        service.billed(other, order, requests=2, runs=runs)
    assert run["result"] == f"receipt-{order}"
    assert other.system.orders().count(order) == 1
    assert len(set(other.keys(order))) == runs


def test_what_fails_there_fails_the_run_with_the_reason(tmp_path: Path, other: Side) -> None:
    other.start()
    service = Service(tmp_path, other)
    with service.program.start() as program:
        program.ready()
        run = service.reaches(service.order("bad", amount=-1), "failed")
    assert "order bad has a negative amount" in run["error"]["message"]


@pytest.mark.parametrize(("key", "runs"), [(KEY, 1), (NO_KEY, 2)], ids=["keyed", "control"])
def test_a_kill_after_the_trigger_leaves_one_run_there(
    tmp_path: Path, other: Side, key: str, runs: int
) -> None:
    other.start()
    order = f"killed-{runs}"
    service = Service(tmp_path, other, killed_at("trigger#1 succeeded"), key)
    with service.program.start() as program:
        program.ready()
        with supervised(program, most_restarts=2) as deaths:
            run = service.reaches(service.order(order), "succeeded")
            until(lambda: len(other.keys(order)) > runs, PATIENCE_SECONDS, "the last request")
        assert deaths == [-signal.SIGKILL]
    assert run["result"] == f"receipt-{order}"
    assert other.system.orders().count(order) == runs


def test_a_server_that_is_down_is_waited_for(tmp_path: Path, other: Side) -> None:
    other.start()  # one that was never up does not know what to run, and says so
    other.stop()
    service = Service(tmp_path, other)

    def tries() -> int:
        steps = service.program.api(f"/runs/{run_id}")["steps"]
        return steps[0]["tries"] if steps else 0

    with service.program.start() as program:
        program.ready()
        run_id = service.order("late")
        until(lambda: tries() > 3, 60, "a fourth try")
        service.reaches(run_id, "retrying")
        other.start()
        run = service.reaches(run_id, "succeeded")
        service.billed(other, "late", requests=2, runs=1)
    assert run["result"] == "receipt-late"
    assert other.system.orders().count("late") == 1

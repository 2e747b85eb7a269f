"""Prefect, Dagster and Airflow on one machine: started, asked for one run, and waited for.

Each keeps its state in a fresh folder on SQLite, its default; where making the database is a step
of its own it is done before the start is timed. Each class is made in a folder, `running` yields
the processes its parts descend from, and `run_seconds` takes one run to its recorded success.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.support.ports import free_port
from tests.support.program import until

from .durable import ORDER
from .measure import Unavailable
from .peers import SCRIPTS, measured, program_of, services

PATIENCE_SECONDS = 600


class Orchestrator(Protocol):
    """What is asked of each."""

    def running(self) -> AbstractContextManager[Sequence[int]]:
        """Run it until left."""

    def run_seconds(self) -> float:
        """Start one run; returns how long it took until its success was seen."""


class Prefect:
    """Its server, and a process whose flow reports to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._env: Mapping[str, str] = {}

    @contextmanager
    def running(self) -> Iterator[Sequence[int]]:
        with services.prefect(self._folder) as server:
            self._env = server.env
            yield [server.pid]

    def run_seconds(self) -> float:
        figures = measured("prefect", "prefect_runs", "1", "1", "1", ORDER, env=self._env)
        return 1 / figures["rate"]


class Dagster:
    """Its web server, with the daemon that takes runs from its queue, for a file of jobs."""

    def __init__(
        self,
        folder: Path,
        jobs: Path = SCRIPTS / "dagster_job.py",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._jobs = jobs
        self._env = dict(env or {})
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")

    @contextmanager
    def running(self) -> Iterator[Sequence[int]]:
        env = {"DAGSTER_HOME": str(self._folder)} | self._env
        job = ["-f", str(self._jobs)]
        server = [program_of("dagster", "dagster-webserver"), "-p", str(self._port), *job]
        daemon = [program_of("dagster", "dagster-daemon"), "run", *job]
        url = f"{self.url}/server_info"
        with ExitStack() as stack:
            taker = stack.enter_context(
                services.running(
                    daemon, self._folder / "daemon.log", ready=_at_once, env=env,
                    cwd=self._jobs.parent,
                )
            )  # fmt: skip
            web = stack.enter_context(
                services.running(
                    server, self._folder / "web.log", ready=lambda: services.answers(url),
                    seconds=PATIENCE_SECONDS, env=env, cwd=self._jobs.parent,
                )
            )  # fmt: skip
            yield [web.pid, taker.pid]

    def run_seconds(self) -> float:
        started = time.perf_counter()
        launched = self.ask(
            "mutation { launchRun(executionParams: {selector: {"
            'repositoryLocationName: "dagster_job.py", repositoryName: "__repository__",'
            ' jobName: "orders"}, runConfigData: {}})'
            " { __typename ... on LaunchRunSuccess { run { runId } } } }"
        )["launchRun"]
        if "run" not in launched:
            raise Unavailable(f"Dagster launched nothing: {launched}")
        asked = (
            f'{{ runOrError(runId: "{launched["run"]["runId"]}") {{ ... on Run {{ status }} }} }}'
        )
        _ended("Dagster", lambda: self.ask(asked)["runOrError"]["status"], "SUCCESS")
        return time.perf_counter() - started

    def ask(self, query: str) -> Any:
        """Return the data that a GraphQL query or mutation is answered with."""
        return call(f"{self.url}/graphql", {"query": query})["data"]


class Airflow:
    """`airflow standalone`: API server, scheduler, triggerer and DAG processor; LocalExecutor."""

    def __init__(
        self,
        folder: Path,
        dags: Path = SCRIPTS / "airflow_dags",
        env: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        self._folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._token = ""
        self._env = {
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__PORT": str(port),
            "PATH": f"{Path(program_of('airflow', 'airflow')).parent}:{os.environ['PATH']}",
        } | dict(env or {})
        migrate = [program_of("airflow", "airflow"), "db", "migrate"]
        made = subprocess.run(
            migrate, env=os.environ | self._env, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise Unavailable(f"airflow db migrate failed: {made.stderr[-200:].strip()}")

    @contextmanager
    def running(self) -> Iterator[Sequence[int]]:
        command = [program_of("airflow", "airflow"), "standalone"]
        log = self._folder / "airflow.log"
        with services.running(
            command, log, ready=self._healthy, seconds=PATIENCE_SECONDS, env=self._env
        ) as child:
            self._token = call(f"{self.url}/auth/token")["access_token"]
            until(lambda: self.ask("/dags")["dags"], PATIENCE_SECONDS, "the DAG")
            yield [child.pid]

    def _healthy(self) -> bool:
        try:
            parts = call(f"{self.url}/api/v2/monitor/health")
        except OSError:
            return False
        return all(part["status"] == "healthy" for part in parts.values())

    def run_seconds(self) -> float:
        started = time.perf_counter()
        run = self.ask("/dags/orders/dagRuns", {"logical_date": None})
        path = f"/dags/orders/dagRuns/{urllib.parse.quote(run['dag_run_id'])}"
        _ended("Airflow", lambda: self.ask(path)["state"], "success")
        return time.perf_counter() - started

    def ask(self, path: str, document: Mapping[str, Any] | None = None) -> Any:
        """Return what its REST API answers to a GET, or to a POST of a document."""
        return call(f"{self.url}/api/v2{path}", document, self._token)


def _at_once() -> bool:
    return True


def _ended(who: str, state: Callable[[], str], success: str) -> None:
    """Wait for a run's success; raises `Unavailable` when it fails or takes too long."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (now := state()) != success:
        if now.lower() in ("failed", "failure", "canceled") or time.monotonic() > end:
            raise Unavailable(f"{who}'s run is {now}")
        time.sleep(0.02)


def call(url: str, document: Mapping[str, Any] | None = None, token: str = "") -> Any:
    """Return the JSON that a GET, or a POST of a document, is answered with."""
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)

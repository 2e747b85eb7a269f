"""A flow hands work to Celery, with a real Redis and real workers; all of them are killed.

Celery is in an environment of its own, that of the benchmarks; the program under test finds it
behind its own packages.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.peers import program_of, services
from tests.support import CHECKOUT
from tests.support.boundaries import behind_ours, killed_at
from tests.support.ports import free_port
from tests.support.program import Program, supervised, until

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "systems"

WORKER = """
import time
from pathlib import Path
from celery_worker import app, charge

app.conf.broker_transport_options = {"visibility_timeout": 2}
honest = charge.run

def noted(order):
    receipt = honest(order)
    with Path("deliveries").open("a") as file:
        file.write(charge.request.id + "\\n")
    while Path("hold").exists():
        time.sleep(0.05)
    return receipt

charge.run = noted
"""
"""The example's worker, which notes each delivery, and answers none while there is a file `hold`.

Redis gives what a killed worker has not answered to another one after `visibility_timeout`, an hour
by default.
"""

KEY = "key = self.request.id"
NO_KEY = "key = os.urandom(8).hex()"
"""Breaks the promise: the worker does not know a task that it has seen."""


class Shop:
    """A Redis, the workers that are running, and turnout, all in one folder."""

    def __init__(
        self, folder: Path, url: str, sabotage: str = "", key: str = KEY, waits: str = "12h"
    ) -> None:
        self.folder = folder
        self.env = {"CELERY_URL": url}
        orders = (EXAMPLES / "celery_orders.py").read_text()
        assert 'timeout="12h"' in orders
        (folder / "celery_orders.py").write_text(orders.replace("12h", waits))
        self.program = Program(
            flows=folder / "celery_orders.py",
            data=folder / "data",
            log=folder / "log",
            env={"CELERY_URL": url, "MARKER": str(folder / "marker")},
            sabotage=behind_ours("celery") + sabotage,
        )
        source = (EXAMPLES / "celery_worker.py").read_text()
        assert KEY in source
        (folder / "celery_worker.py").write_text(source.replace(KEY, key))
        (folder / "worker.py").write_text(WORKER)

    @contextmanager
    def worker(self) -> Iterator[Any]:
        """Run a worker until left."""
        command = [program_of("celery", "celery"), "-A", "worker", "worker", "--concurrency=1"]
        command += ["--without-gossip", "--without-mingle", "--loglevel=INFO"]
        log = self.folder / "worker.log"
        log.write_text("")
        with services.running(
            command, log, ready=lambda: "ready." in log.read_text(), env=self.env, cwd=self.folder
        ) as child:
            yield child

    def order(self) -> str:
        """Place an order; returns its run."""
        body = json.dumps({"id": "7", "amount": 3.5}).encode()
        headers = {"Content-Type": "application/json"}
        answer = self.program.ask("/hooks/paid-orders", method="POST", body=body, headers=headers)
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

        return until(look, 60, f"{run} {state}")

    @property
    def deliveries(self) -> list[str]:
        noted = self.folder / "deliveries"
        return noted.read_text().split() if noted.exists() else []

    @property
    def charges(self) -> list[tuple[str, float]]:
        with closing(sqlite3.connect(self.folder / "shop.db")) as shop:
            return shop.execute("SELECT key, amount FROM charges").fetchall()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    with services.redis(tmp_path) as url:
        yield url


def test_the_result_comes_back_under_the_key_of_the_step(tmp_path: Path, redis: str) -> None:
    shop = Shop(tmp_path, redis)
    with shop.worker(), shop.program.start() as program:
        program.ready()
        run = shop.reaches(shop.order(), "succeeded")
    assert run["result"] == "receipt-7"
    key = run["steps"][0]["result"]
    assert len(key) == 32
    assert shop.charges == [(key, 3.5)] and shop.deliveries == [key]


def test_without_a_worker_the_run_waits_over_a_kill(tmp_path: Path, redis: str) -> None:
    shop = Shop(tmp_path, redis)
    with shop.program.start() as program:
        program.ready()
        run_id = shop.order()
        until(lambda: "look 3" in str(shop.reaches(run_id, "waiting")["waiting"]), 30, "two looks")
        program.kill()
        program.start()
        program.ready()
        shop.reaches(run_id, "waiting")
        with shop.worker():
            run = shop.reaches(run_id, "succeeded")
    assert run["result"] == "receipt-7" and run["crashes"] == 0
    assert shop.deliveries == [run["steps"][0]["result"]] and len(shop.charges) == 1


def test_without_a_worker_the_run_fails_at_the_end_of_its_time(tmp_path: Path, redis: str) -> None:
    shop = Shop(tmp_path, redis, waits="3s")
    with shop.program.start() as program:
        program.ready()
        run_id = shop.order()
        shop.reaches(run_id, "waiting")
        run = shop.reaches(run_id, "failed")
    assert run["error"]["type"] == "PollTimeout" and "PENDING" in run["error"]["message"]


@pytest.mark.parametrize(("key", "charges"), [(KEY, 1), (NO_KEY, 2)], ids=["keyed", "control"])
def test_a_worker_killed_after_its_effect_has_it_once(
    tmp_path: Path, redis: str, key: str, charges: int
) -> None:
    shop = Shop(tmp_path, redis, key=key)
    hold = tmp_path / "hold"
    hold.touch()
    with shop.program.start() as program:
        program.ready()
        with shop.worker() as worker:
            run_id = shop.order()
            until(lambda: shop.deliveries, 30, "the effect")
            taken = time.monotonic()
            os.killpg(worker.pid, signal.SIGKILL)
            program.kill()
        hold.unlink()
        program.start()
        program.ready()
        shop.reaches(run_id, "waiting")
        until(lambda: time.monotonic() > taken + 3, 10, "the end of the visibility timeout")
        with shop.worker():
            run = shop.reaches(run_id, "succeeded")
    assert run["result"] == "receipt-7"
    assert shop.deliveries == [run["steps"][0]["result"]] * 2
    assert len(shop.charges) == charges


@pytest.mark.parametrize(
    ("boundary", "deliveries"),
    [
        ("hand_off#1 succeeded", 2),
        ("poll#1 waiting", 1),
        ("poll#1 succeeded", 1),
        ("run succeeded", 1),
    ],
)
def test_a_kill_at_each_boundary_leaves_one_effect(
    tmp_path: Path, redis: str, boundary: str, deliveries: int
) -> None:
    shop = Shop(tmp_path, redis, killed_at(boundary))
    with shop.program.start() as program:
        program.ready()
        with supervised(program, most_restarts=2) as deaths:
            run_id = shop.order()
            shop.reaches(run_id, "waiting")
            with shop.worker():
                run = shop.reaches(run_id, "succeeded")
                until(lambda: len(shop.deliveries) == deliveries, 30, "the last delivery")
        assert deaths == [-signal.SIGKILL]
    assert set(shop.deliveries) == {run["steps"][0]["result"]}
    assert len(shop.charges) == 1


def test_a_redis_that_is_down_is_tried_again(tmp_path: Path) -> None:
    port = free_port()
    shop = Shop(tmp_path, f"redis://127.0.0.1:{port}/0")

    def tried() -> bool:
        steps = program.api(f"/runs/{run_id}")["steps"]
        return bool(steps and steps[0]["tries"] > 1)

    with shop.program.start() as program:
        program.ready()
        run_id = shop.order()
        until(tried, 60, "a second try")
        with services.redis(tmp_path, port), shop.worker():
            run = shop.reaches(run_id, "succeeded")
    assert shop.deliveries == [run["steps"][0]["result"]]


def test_what_fails_in_celery_fails_the_run(tmp_path: Path, redis: str) -> None:
    shop = Shop(tmp_path, redis, key="raise ValueError('no such customer')")
    with shop.worker(), shop.program.start() as program:
        program.ready()
        run = shop.reaches(shop.order(), "failed")
    assert "ValueError('no such customer')" in run["error"]["message"]


TELLER = """
import os
from celery import Celery
from call_turnout import start_run

url = os.environ["CELERY_URL"]
app = Celery("shop", broker=url, backend=url)

@app.task(bind=True, name="shop.tell", autoretry_for=(OSError,), retry_backoff=1, max_retries=5)
def tell(self, receipt):
    run = start_run({"receipt": receipt}, self.request.id)
    if self.request.retries == 0:
        raise OSError("the answer is lost")
    return run
"""
"""A task that loses the answer to its first request."""


@pytest.mark.parametrize(
    ("key", "runs"), [("self.request.id", 1), ("os.urandom(8).hex()", 2)], ids=["keyed", "control"]
)
def test_a_task_that_is_tried_again_starts_one_run(
    tmp_path: Path, redis: str, key: str, runs: int
) -> None:
    env = {"HOOK_SECRET": "of both sides", "CELERY_URL": redis}
    (tmp_path / "call_turnout.py").write_text((EXAMPLES / "call_turnout.py").read_text())
    (tmp_path / "teller.py").write_text(TELLER.replace("self.request.id", key))
    celery = [program_of("celery", "celery"), "-A", "teller"]
    log = tmp_path / "worker.log"
    log.touch()
    with Program(
        flows=EXAMPLES / "called.py", data=tmp_path / "data", log=tmp_path / "log", env=env
    ).start() as program:
        program.ready()
        env["HOOK_URL"] = f"http://127.0.0.1:{program.port}/hooks/billed"
        with services.running(
            [*celery, "worker", "--concurrency=1", "--loglevel=INFO"], log,
            ready=lambda: "ready." in log.read_text(), env=env, cwd=tmp_path,
        ):  # fmt: skip
            call = [*celery, "call", "shop.tell", "--args", '["7"]']
            subprocess.run(call, cwd=tmp_path, env=os.environ | env, check=True, timeout=60)
            until(lambda: "succeeded in" in log.read_text(), 60, "the second try")
        program.quiet(30)
        results = [run["result"] for run in program.api("/runs")["items"]]
    assert results == ["7 is paid"] * runs

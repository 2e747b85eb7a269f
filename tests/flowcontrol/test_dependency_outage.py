"""A real program and a real HTTP server that is down, hangs, flaps or asks for time.

Runs wait for it without spending attempts, and one tries it again: also after `kill -9` in whatever
state the breaker was.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, turnout, until
from turnout.service.domain.units import utc_now

FLOWS = """
import asyncio
import os
import urllib.error
import urllib.request

from turnout import Retry, dependency, flow, retry, task, webhook

crm = dependency("crm", open_after="100% of 3", probe="PROBE", errors=OSError)

def ask(path):
    try:
        with urllib.request.urlopen(os.environ["CRM"] + path, timeout=TIMEOUT) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 429:
            raise Retry("asked to wait", after=error.headers["Retry-After"] + "ms", pause="crm")
        raise

@flow(on=webhook("/orders"), needs=crm, retry=retry(30, delay="30ms", jitter=False))
def order(order: dict) -> str:
    return ask(f"/order/{order['number']}")

@task(retry=retry(5, delay="10ms"), fallback="nothing")
def post(number: int) -> str:
    return ask(f"/invoice/{number}")

@flow(on=webhook("/invoices"), needs=[crm])
async def invoice(order: dict) -> str:
    return await post.run(order["number"])

@flow(on=webhook("/visits"), needs=crm)  # no retries: it fails for good if it fails once
async def visit(order: dict) -> str:
    return await asyncio.to_thread(ask, "/visit")

@flow(on=webhook("/letters"))
def letter(order: dict) -> str:
    return "sent"
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Crm:
    """An HTTP server in `mode` up, down, hanging or busy; it notes when it was asked."""

    def __init__(self) -> None:
        self.mode = "up"
        self.busy_milliseconds = 400
        self.asked: list[tuple[float, str, str]] = []
        self.released = threading.Event()
        crm = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mode = crm.mode
                crm.asked.append((utc_now().timestamp(), mode, self.path))
                if mode == "hanging":
                    crm.released.wait(30)
                self.send_response({"up": 200, "busy": 429}.get(mode, 503))
                if mode == "busy":
                    self.send_header("Retry-After", str(crm.busy_milliseconds))
                self.send_header("Content-Length", "2")
                with suppress(OSError):  # who asked may be dead
                    self.end_headers()
                    self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Crm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def times(self, *modes: str) -> list[float]:
        return [at for at, mode, _ in list(self.asked) if mode in modes]


class Shop:
    """The program, its customer system, and what the journal says, read from outside."""

    def __init__(self, folder: Path, crm: Crm, *, probe: str, timeout: float) -> None:
        self.crm = crm
        flows = folder / "flows.py"
        flows.write_text(FLOWS.replace("PROBE", probe).replace("TIMEOUT", str(timeout)))
        self.program = Program(
            flows=flows,
            data=folder / "data",
            log=folder / "log",
            env={"CRM": crm.url, "TURNOUT_GRACE": "2s"},
        )

    def send(self, numbers: Sequence[int], kind: str = "orders") -> None:
        for number in numbers:
            body = json.dumps({"number": number}).encode()
            headers = {"content-type": "application/json"}
            answer = self.program.ask(f"/hooks/{kind}", method="POST", body=body, headers=headers)
            assert answer is not None and answer.status == 202, answer

    def query(self, text: str) -> list[tuple[Any, ...]]:
        path = self.program.data / "journal" / "journal.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return journal.execute(text).fetchall()

    def breaker(self) -> tuple[Any, ...]:
        found = self.query("SELECT state, generation, until FROM breakers WHERE name = 'crm'")
        return found[0] if found else ("closed", 0, None)

    def is_in(self, state: str) -> None:
        until(lambda: self.breaker()[0] == state, 20, f"the breaker is {state}")

    def kill(self) -> None:
        self.program.child.kill()
        self.program.ended(10)
        self.program.start()
        self.program.ready()

    def all_succeed(self) -> None:
        self.program.quiet(30)
        assert self.query("SELECT DISTINCT state FROM runs") == [("succeeded",)]

    def waits(self) -> bool:
        """Whether nothing runs, and what is left waits."""
        states = self.program.metrics("turnout_runs")
        return not states.get('state="running"') and sum(states.values()) > 0


Open = Callable[..., AbstractContextManager[Shop]]


@pytest.fixture
def open_shop(tmp_path: Path) -> Open:
    @contextmanager
    def opened(*, probe: str = "300ms", timeout: float = 5) -> Iterator[Shop]:
        with Crm() as crm:
            shop = Shop(tmp_path, crm, probe=probe, timeout=timeout)
            with shop.program.start():
                shop.program.ready()
                yield shop

    return opened


def are_apart(times: Sequence[float], seconds: float) -> bool:
    """Whether requests were sent so many seconds apart; some come late, and nearer to the next."""
    return times[-1] - times[0] > (len(times) - 1) * seconds / 2


def test_while_it_is_down_runs_wait_and_spend_no_attempts(open_shop: Open) -> None:
    with open_shop() as shop:
        shop.crm.mode = "down"
        shop.send(range(25))
        shop.is_in("open")
        shop.send(range(25, 30), "visits")
        shop.send([1, 2, 3], "letters")
        shop.program.said("breaker.opened.*crm", 5)
        before = len(shop.crm.asked)
        until(lambda: len(shop.crm.asked) >= before + 4, 20, "some probes have failed")
        probes = [at for at, _, _ in shop.crm.asked[before + 1 :]]
        assert are_apart(probes, 0.3), "one at a time"
        assert shop.program.metrics("turnout_breaker_state")['dependency="crm"'] in (1, 2)
        waiting = {run["waits_for"] for run in shop.program.api("/runs?state=queued")["items"]}
        breaker = "for dependency crm, whose breaker is "
        assert waiting and all(text.startswith(breaker) for text in waiting), waiting
        shop.crm.mode = "up"
        shop.all_succeed()
        assert shop.program.metrics("turnout_breaker_state") == {'dependency="crm"': 0}
        ((attempts,),) = shop.query("SELECT sum(attempts) FROM runs WHERE flow <> 'letter'")
        probes_failed = shop.program.log_text().count("breaker.probing") - 1
        assert attempts == len(shop.crm.asked) - probes_failed
        starts = sorted(shop.crm.times("up"))
        assert len([at for at in starts if at < starts[0] + 1]) <= 12, "10 in a second"
        letters = shop.query("SELECT max(finished_at) FROM runs WHERE flow = 'letter'")
        assert letters < shop.query("SELECT min(finished_at) FROM runs WHERE flow = 'order'")


def test_a_probe_that_hangs_is_followed_by_another_and_recovery_is_seen(open_shop: Open) -> None:
    with open_shop(probe="400ms", timeout=20) as shop:
        shop.crm.mode = "down"
        shop.send(range(6))
        shop.is_in("open")
        shop.crm.mode = "hanging"
        until(lambda: len(shop.crm.times("hanging")) == 3, 20, "three probes hang")
        assert are_apart(shop.crm.times("hanging"), 0.4)
        assert shop.breaker()[0] == "probing"
        shop.crm.mode = "up"
        shop.is_in("closed")
        shop.crm.released.set()
        shop.all_succeed()


def test_one_that_flaps_opens_and_closes_and_every_run_succeeds(open_shop: Open) -> None:
    with open_shop(probe="100ms") as shop:
        for number in range(6):
            shop.crm.mode = "down"
            shop.send(range(number * 5, number * 5 + 5))
            shop.is_in("open")
            shop.crm.mode = "up"
            shop.is_in("closed")
        shop.all_succeed()
        states = shop.program.log_text()
        assert states.count("breaker.closed") >= 6
        assert shop.breaker()[1] == sum(
            states.count(f"breaker.{state}") for state in ("opened", "closed", "probing")
        ), "each change is a generation"


def test_a_server_that_asks_for_time_gets_it_from_all(open_shop: Open) -> None:
    with open_shop() as shop:
        shop.crm.mode = "busy"
        shop.send([0], "invoices")  # in a task: neither its retries nor its fallback are used
        shop.is_in("open")
        shop.send(range(1, 4))
        shop.send(range(4, 6), "invoices")
        until(lambda: len(shop.crm.asked) >= 4, 20, "it was asked four times")
        times = [at for at, _, _ in shop.crm.asked]
        assert are_apart(times, 0.4)
        shop.crm.mode = "up"
        shop.all_succeed()
        assert shop.query("SELECT DISTINCT attempts FROM runs") == [(1,)]
        results = {result for (result,) in shop.query("SELECT result FROM runs")}
        assert results == {b'"ok"'}
        shown = turnout("show", shop.query("SELECT id FROM runs")[0][0], "--json",
                        env={"TURNOUT_DATA": str(shop.program.data)})  # fmt: skip
        assert [step["task"] for step in json.loads(shown.stdout)["steps"]] == ["post"]


def test_a_run_pauses_it_twenty_times_and_then_retries_like_any_other(open_shop: Open) -> None:
    with open_shop(probe="50ms") as shop:
        shop.crm.mode, shop.crm.busy_milliseconds = "busy", 10
        shop.send([1], "invoices")
        for _ in range(2):  # the count survives
            asked = len(shop.crm.asked)
            until(lambda: len(shop.crm.asked) > asked + 2, 20, "it asks")  # noqa: B023
            shop.kill()
        shop.program.quiet(20)
        assert shop.query("SELECT state, attempts, result FROM runs") == [
            ("succeeded", 1, b'"nothing"')
        ], "then the task's own retries and its fallback are used"
        # Twenty pauses and six tries; each of the kills may repeat one, or cut off a try, which is
        # spent then: a machine that is slow to kill does so when the pauses are over.
        assert 24 <= len(shop.crm.asked) <= 28


def test_a_restart_keeps_it_open(open_shop: Open) -> None:
    with open_shop(probe="1m") as shop:
        shop.crm.mode = "down"
        shop.send(range(5))
        shop.is_in("open")
        before, asked = shop.breaker(), len(shop.crm.asked)
        shop.kill()
        shop.send(range(5, 8))
        assert shop.program.stop() == 0
        shop.program.start()
        shop.program.ready()
        assert shop.breaker() == before
        assert shop.program.metrics("turnout_breaker_state") == {'dependency="crm"': 2}
        assert shop.program.unfinished() == 8
        assert len(shop.crm.asked) == asked


def test_a_kill_during_the_probe_lets_another_one_go(open_shop: Open) -> None:
    with open_shop(probe="1s", timeout=20) as shop:
        shop.crm.mode = "down"
        shop.send(range(5))
        shop.is_in("open")
        shop.crm.mode = "hanging"
        until(lambda: shop.crm.times("hanging"), 10, "a probe hangs")
        assert shop.breaker()[0] == "probing", "on disk before the probe has asked"
        generation = shop.breaker()[1]
        shop.kill()
        shop.crm.mode = "up"
        shop.all_succeed()
        assert shop.breaker()[:2] == ("closed", generation + 1)
        assert shop.query("SELECT sum(crashes) FROM runs") == [(1,)]


def test_a_kill_while_closed_or_while_what_waited_is_released(open_shop: Open) -> None:
    with open_shop() as shop:
        shop.crm.mode = "down"
        shop.send([0, 1])
        until(lambda: len(shop.crm.asked) >= 1, 10, "it was asked")
        shop.kill()
        shop.send(range(2, 20))
        shop.is_in("open")
        shop.crm.mode = "up"
        shop.is_in("closed")
        generation = shop.breaker()[1]
        asked = len(shop.crm.times("up"))
        shop.kill()
        shop.all_succeed()
        assert shop.breaker()[:2] == ("closed", generation)
        times = shop.crm.times("up")[asked + 1 :]
        assert max(later - earlier for earlier, later in pairwise(times)) < 5
        for at in times:
            assert len([one for one in times if at <= one < at + 1]) <= 12


@pytest.mark.full
def test_a_probe_that_is_cancelled_lets_the_next_one_go(open_shop: Open) -> None:
    with open_shop(probe="500ms", timeout=20) as shop:
        shop.crm.mode = "down"
        shop.send(range(5))
        shop.is_in("open")
        shop.crm.mode = "hanging"
        until(lambda: shop.crm.times("hanging"), 10, "a probe hangs")
        for (run,) in shop.query("SELECT id FROM runs WHERE state = 'running'"):
            turnout("cancel", run, "--yes", env={"TURNOUT_DATA": str(shop.program.data)})
        shop.crm.mode = "up"
        shop.is_in("closed")
        shop.crm.released.set()
        shop.program.quiet(20)
        states = dict(shop.query("SELECT state, count(*) FROM runs GROUP BY state"))
        assert states == {"succeeded": 4, "cancelled": 1}


@pytest.mark.full
def test_a_flow_that_is_paused_or_gone_while_it_waits_holds_up_no_other(open_shop: Open) -> None:
    env = {}
    with open_shop() as shop:
        env["TURNOUT_DATA"] = str(shop.program.data)
        shop.crm.mode = "down"
        shop.send(range(4))
        shop.is_in("open")
        shop.send([7, 8], "visits")
        turnout("pause", "order", env=env)
        shop.crm.mode = "up"
        until(
            lambda: shop.query("SELECT 1 FROM runs WHERE flow = 'visit' AND state = 'succeeded'"),
            20,
            "the other flow's runs have tried it",
        )
        shop.is_in("closed")
        turnout("resume", "order", env=env)
        shop.all_succeed()
        shop.crm.mode = "down"
        shop.send(range(4))
        shop.is_in("open")
        flows = shop.program.flows
        flows.write_text(flows.read_text().replace("def order(", "def sale("))
        shop.send([9], "visits")
        shop.kill()
        shop.crm.mode = "up"
        shop.is_in("closed")


def test_pausing_what_a_flow_does_not_need_fails_by_name(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(
        "from turnout import Retry, dependency, flow\n\n"
        '@flow(needs=dependency("crm"))\n'
        "async def order() -> None:\n"
        '    raise Retry(pause="cmr")\n'
    )
    ran = turnout("run", f"{flows}:order", env={})
    assert ran.returncode != 0
    assert (
        "Retry(pause='cmr'): flow 'order' needs 'crm'; write needs=dependency('cmr') on the flow"
        in ran.stdout + ran.stderr
    )

"""`kill -9` while alerts are sent: each message arrives, under one key, with one text.

Many failures of one cause, over several deaths of the process, are few messages and one recovery.
The negative control ends a message before it is sent: the same check must notice that one is lost.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from tests.conftest import Say
from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, until
from tests.support.stub_http import Asked, Reply, Stub, stubbed

pytestmark = [pytest.mark.timeout(300), pytest.mark.full]

FLOWS = """
import os
from turnout import flow, notify, webhook

@flow(on=webhook("/order"), on_failure=notify(os.environ["CHAT"]), owner="shop")
async def bill(order: dict[str, int]) -> None:
    if order["amount"] < 0:
        raise ConnectionError(f"no answer for {order['amount']}")
"""

FORGETFUL = """
from turnout.service.alerts.outbox import Outbox

take = Outbox._take
async def at_most_once(self, name):
    taken = await take(self, name)
    if taken.message is not None:
        await self._journal.message_sent(taken.message.seq, now=self._now())
    return taken
Outbox._take = at_most_once
"""


class Killed:
    """A program that dies while a message is on its way to people, as often as it is told."""

    def __init__(self, program: Program, stub: Stub, deaths: int) -> None:
        self.program = program
        self.stub = stub
        self.left = deaths
        self.cut_off: list[Asked] = []
        stub.when_asked = self._asked

    def _asked(self, asked: Asked) -> None:
        if self.left:
            self.left -= 1
            self.cut_off.append(asked)
            dying = self.program.process()
            os.killpg(dying.pid, signal.SIGKILL)
            dying.wait(30)

    def post(self, amount: int) -> None:
        """Post an order, again under its key if the service dies before it answers."""
        body = json.dumps({"amount": amount}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"order-{amount}"}
        while True:
            self.restart()
            answer = self.program.ask("/hooks/order", method="POST", body=body, headers=headers)
            if answer is not None:
                assert answer.status == 202, answer
                return
            until(lambda: not self.program.alive, 30, f"an answer to order {amount}, or a death")

    def restart(self) -> None:
        """Start the program again if it has been killed; it may be killed again as it starts."""
        while not self.program.alive:
            assert self.program.child.returncode == -signal.SIGKILL, "it has ended by itself"
            left = self.left
            self.program.start()
            try:
                self.program.ready()
            except AssertionError:
                if self.left == left:
                    raise

    def alive_with(self, table: str, where: str) -> int:
        """Return how many such rows there are, with the program alive."""
        self.restart()
        return count(self, table, where)


@contextmanager
def killed(folder: Path, deaths: int, sabotage: str = "") -> Iterator[tuple[Killed, InjectedClock]]:
    (folder / "flows.py").write_text(FLOWS)
    clock = InjectedClock(folder)
    with stubbed() as stub:
        env = {"CHAT": stub.says("/chat", Reply()), "TURNOUT_LOG_FORMAT": "json", **clock.env}
        program = Program(
            flows=folder / "flows.py", data=folder / "data", log=folder / "log",
            env=env, sabotage=sabotage,
        )  # fmt: skip
        with program.start():
            program.ready()
            yield Killed(program, stub, deaths), clock


def fail_and_recover(one: Killed, clock: InjectedClock, failures: int) -> None:
    """Let many runs fail for one cause, and then let the flow recover."""
    for amount in range(1, failures + 1):
        one.post(-amount)
    unfinished = "state NOT IN ('succeeded', 'failed')"
    until(lambda: one.alive_with("runs", unfinished) == 0, 60, "all have failed")
    until(lambda: one.alive_with("alert_messages", "ended IS NULL") == 0, 60, "all is sent")
    clock.set("+6m")
    one.post(1)
    until(lambda: one.alive_with("alerts", "ended = 'recovered'") == 1, 60, "a recovery")
    until(lambda: one.alive_with("alert_messages", "ended IS NULL") == 0, 60, "it is sent")
    until(lambda: recoveries(one), 60, "it has arrived")  # later: a broken promise ends it before


def count(one: Killed, table: str, where: str) -> int:
    path = str(one.program.data / "journal" / "journal.db")
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").get)
    finally:
        connection.close()


def messages(one: Killed, where: str) -> int:
    return count(one, "alert_messages", where)


def arrived(one: Killed) -> dict[str, set[str]]:
    """Return the texts that people got, by key: not those in which the process died."""
    found: dict[str, set[str]] = {}
    for asked in one.stub.asked:
        if any(asked is each for each in one.cut_off):
            continue  # what is sent again is equal to it
        text = json.loads(asked.body)["text"]
        found.setdefault(asked.headers["idempotency-key"], set()).add(text)
    return found


def recoveries(one: Killed) -> list[str]:
    return [text for texts in arrived(one).values() for text in texts if "has recovered" in text]


def lost(one: Killed) -> int:
    """Return how many messages nobody got."""
    return messages(one, "true") - len(arrived(one))


def test_each_message_arrives_over_kills(tmp_path: Path, say: Say) -> None:
    failures, deaths = 10_000, 4
    with killed(tmp_path, deaths) as (one, clock):
        fail_and_recover(one, clock, failures)
        told = arrived(one)
        assert all(len(texts) == 1 for texts in told.values()), "one key, one text"
        assert len(told) <= 1 + math.floor(math.log10(failures)) + 1
        assert lost(one) == 0
        assert one.left == 0, "it has died as often as it was to"
        assert len(one.stub.asked) <= len(told) + deaths
        (recovered,) = recoveries(one)
        assert f"{failures} times since" in recovered
        assert count(one, "alerts", "true") == 1
        say(
            f"{failures} failures, {deaths} kills: {len(told)} messages, {len(one.stub.asked)} sent"
        )


def test_the_check_notices_a_message_that_is_lost(tmp_path: Path) -> None:
    with killed(tmp_path, 1, FORGETFUL) as (one, clock):
        fail_and_recover(one, clock, 20)
        assert one.left == 0
        assert lost(one) == 1

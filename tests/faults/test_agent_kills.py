"""`kill -9` at every boundary of an agent's run: a recorded call is never made again.

The model server lies outside the program, in the test, and keeps what it was asked. The program
dies before a model call is sent, when the server has it, when the answer is there and not recorded,
between parallel calls of tools, while a person is asked, and when each of these is recorded. What
was in flight may be repeated, with the same key, and counts; no connection, file and process is
left.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.model_server import ModelServer, Request, Said, model_server
from tests.support.program import until

from .crash_battery import CrashBattery, crashing
from .crash_points import forgetting, plans_of

pytestmark = pytest.mark.timeout(900)

FLOWS = Path(__file__).parent / "flows" / "agents.py"
TURNS = 3
TOOLS = {
    "lookup1": "agent#1[1]/gather#1[0]/lookup#1",
    "lookup2": "agent#1[1]/gather#1[1]/lookup#1",
    "refund": "agent#1[2]/gather#1[0]/refund#1",
}
"""By what a tool writes: the step that records it."""

POINTS = """
from turnout.handlers.actions import agent_framework

sent = agent_framework.sent

async def watched_model(model, asked, **options):
    turn = 1 + sum(type(each).__name__ == "ModelResponse" for each in asked.messages)
    passed(f"before model {turn}")
    answer = await sent(model, asked, **options)
    passed(f"model {turn} is answered")
    return answer

agent_framework.sent = watched_model
"""

OTHER_KEY = """
import uuid
from turnout.handlers.actions import agent_run
tried = agent_run._Conversation._try
agent_run._Conversation._try = lambda self, model, asked, reserved, key: tried(
    self, model, asked, reserved, uuid.uuid4().hex
)
"""
UNCOUNTED = """
from turnout.handlers.actions import agent_run
agent_run._Tries.lost = property(lambda self: agent_run.Spent())
"""


@dataclass
class Battery(CrashBattery):
    """A program whose agent works."""

    server: ModelServer
    path = "/hooks/agents"
    _plan: str = ""

    def is_by_the_test(self, number: int, plan: str) -> bool:
        """Prepare the server: it kills the program at its call n of "server|n"."""
        self._plan = plan
        self.server.asked.clear()
        return not plan or plan in BY_THE_TEST

    def while_it_waits(self, run_id: str, plan: str) -> None:
        """Say yes for the person who is asked, or kill the program while it waits."""
        if plan == "waits":
            self.program.kill()
        else:
            self._approve(run_id)

    def says(self, request: Request) -> Said:
        """Answer by the conversation; as planned it kills the program instead."""
        number = int(request.messages[0]["content"])
        if self._plan == f"server|{request.turn + 1}":
            self._plan = ""
            self.program.kill()
        return [
            Said(calls=[("lookup", {"run": number, "order": order}) for order in (1, 2)]),
            Said(calls=[("refund", {"run": number})]),
            Said("It is paid."),
        ][request.turn]

    def _approve(self, run_id: str) -> None:
        """Say yes; it may be said already, or die with the program."""
        answer = self.ask(f"/api/runs/{run_id}/approve", method="POST", body=b'{"approve": true}')
        assert answer is None or answer.status in (200, 202, 409), answer

    def check(self, number: int, run: dict[str, Any], recorded: set[str]) -> None:
        """Compare what a run came to, and what was asked and done, with what is promised."""
        assert run["result"]["output"] == "It is paid."
        assert run["result"]["tools"] == len(TOOLS)
        keys = defaultdict[str, list[str]](list)
        steps = dict(TOOLS)
        for request in self.server.asked:
            what = f"model{request.turn + 1}"
            keys[what].append(request.key)
            steps[what] = f"agent#1[{request.turn + 1}]/model#1"
        for line in (self.folder / "done").read_text().splitlines():
            run_number, what, key = line.split()
            if int(run_number) == number:
                keys[what].append(key)
        assert len(keys) == TURNS + len(TOOLS), f"only {[*keys]}"
        for what, used in keys.items():
            times = 1 if steps[what] in recorded else 2
            assert len(used) <= times, f"{what}: {len(used)} times"
            assert len({*used}) == 1, f"{what} had several keys"
        assert len({used[0] for used in keys.values()}) == len(keys)
        again = {what for what, used in keys.items() if len(used) == 2}
        assert len(again) <= 1 or again == {"lookup1", "lookup2"}, f"{again} were not in flight"
        sent, counted = len(self.server.asked), run["result"]["calls"]
        assert sent <= counted <= TURNS + 1, f"{sent} model calls were sent, {counted} count"
        self._check_nothing_is_left()

    def _check_nothing_is_left(self) -> None:
        program = self.program.process()
        port = int(self.server.url.split(":")[2].split("/")[0])

        def to_the_model() -> list[Any]:
            found = program.net_connections(kind="tcp")
            return [each for each in found if each.raddr and each.raddr.port == port]

        until(lambda: not to_the_model(), 10, "no connection to the model is left")
        assert not [*self.blobs("*.part")], "a part of a file is left"
        assert not self.open_blobs(), "a file is open"


@contextmanager
def served(folder: Path, sabotage: str = "") -> Iterator[Battery]:
    with model_server([]) as server:
        env = {"MODEL": server.url, "DONE": str(folder / "done"), "OPENAI_API_KEY": "sk-none"}
        program = crashing(folder, FLOWS, POINTS + sabotage, env)
        battery = Battery(folder, program, server)
        server.script = battery.says
        with program.start():
            program.ready()
            yield battery


BY_THE_TEST = ["server|1", "server|2", "server|3", "waits"]


def test_killed_at_any_point_no_recorded_call_is_made_again(
    tmp_path: Path, full: bool, seed: int, say: Say
) -> None:
    with served(tmp_path) as battery:
        battery.one_run()
        plans = plans_of(battery.points())
        chosen = plans + BY_THE_TEST
        if not full:
            chosen = [random.Random(seed).choice(chosen)]  # each start imports the framework
        for plan in chosen:
            battery.one_run(plan)
        assert battery.program.stop() == 0
        battery.program.check_journal()
        assert battery.server.url not in battery.program.log_text(), "addresses are not logged"
    say(f"{len(chosen)} of {len(plans) + len(BY_THE_TEST)} points, each killed at once")


@pytest.mark.full
@pytest.mark.parametrize(
    ("sabotage", "plan", "words"),
    [
        (forgetting("agent#1[1]/model#1"), "before model 2|1", r"model1: \d times"),
        (OTHER_KEY, "server|1", "model1 had several keys"),
        (UNCOUNTED, "server|2", "4 model calls were sent, 3 count"),
    ],
    ids=["a forgotten answer", "another key", "a call that does not count"],
)
def test_the_battery_notices(
    tmp_path: Path, sabotage: str, plan: str, words: str, full: bool
) -> None:
    if not full and sabotage != UNCOUNTED:
        pytest.skip("with --full")
    with served(tmp_path, sabotage) as battery, pytest.raises(AssertionError, match=words):
        battery.one_run(plan)

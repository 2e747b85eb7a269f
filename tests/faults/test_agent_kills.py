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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.model_server import ModelServer, Request, Said, model_server
from tests.support.program import Program, until

from .crash_points import SABOTAGE, forgetting, plans_of
from .test_http_kills import processes_of, recorded_steps

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
class Battery:
    """A program whose agent works, killed at planned points, one run after the other."""

    folder: Path
    program: Program
    server: ModelServer
    runs: int = 0
    asked: dict[int, list[Request]] = field(default_factory=dict)
    _plan: str = ""

    def one_run(self, plan: str = "") -> dict[str, Any]:
        """Run the flow once, killed as planned; returns its run.

        By the server, when it is asked: "server|2" is at the second model call. While a person is
        asked: "waits".
        """
        self.runs += 1
        number, died, run_id, recorded = self.runs, False, "", set[str]()
        self._plan = plan
        self.server.asked.clear()
        if "#" in plan or " " in plan:
            (self.folder / "plan").write_text(plan)

        def finished() -> dict[str, Any] | None:
            nonlocal died, run_id, recorded
            if not self.program.alive:
                assert plan and not died, "died unplanned"
                assert not processes_of(self.program.pid), "a process is left"
                died, recorded = True, recorded_steps(self.program.data, number)
                self.program.start().ready()
            if not run_id:  # the first answer may die with the process
                run_id = self._accepted(number)
            run = self._run(run_id) if run_id else None
            if run is not None and run["state"] == "waiting":
                if plan == "waits" and not died:
                    self.program.kill()
                else:
                    self._approve(run_id)
            return run if run is not None and run["finished_at"] else None

        run = until(finished, 60, f"the end of run {number}, killed at {plan}")
        assert died == bool(plan), f"never came by {plan}"
        self._check(number, run, recorded)
        return run

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

    def _accepted(self, number: int) -> str:
        """Send the event of a run; returns the run's id, empty without an answer."""
        body = f'{{"number": {number}}}'.encode()
        headers = {"content-type": "application/json", "idempotency-key": f"event-{number}"}
        answer = self.program.ask("/hooks/agents", method="POST", body=body, headers=headers)
        return str(answer.json["runs"][0]) if answer is not None and answer.status == 202 else ""

    def _approve(self, run_id: str) -> None:
        """Say yes; it may be said already, or die with the program."""
        answer = self._ask(f"/api/runs/{run_id}/approve", method="POST", body=b'{"approve": true}')
        assert answer is None or answer.status in (200, 202, 409), answer

    def _run(self, run_id: str) -> dict[str, Any] | None:
        answer = self._ask(f"/api/runs/{run_id}")
        found: dict[str, Any] | None = None if answer is None else answer.json
        return found

    def _ask(self, path: str, **options: Any) -> Any:
        token = (self.program.data / "api-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return self.program.ask(path, headers=headers, **options)

    def _check(self, number: int, run: dict[str, Any], recorded: set[str]) -> None:
        """Compare what a run came to, and what was asked and done, with what is promised."""
        assert run["state"] == "succeeded", run["error"]
        assert run["attempts"] == 1, "a death of the process spends no attempt"
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
        assert processes_of(self.program.pid) == [self.program.pid], "it has no child"
        port = int(self.server.url.split(":")[2].split("/")[0])

        def to_the_model() -> list[Any]:
            found = program.net_connections(kind="tcp")
            return [each for each in found if each.raddr and each.raddr.port == port]

        until(lambda: not to_the_model(), 10, "no connection to the model is left")
        blobs = self.program.data / "journal" / "results"
        assert not [*blobs.glob("*.part")], "a part of a file is left"
        opened = [each.path for each in program.open_files() if "/results/" in each.path]
        assert not opened, "a file is open"

    def points(self) -> list[str]:
        """Return the points passed since the last call."""
        log = self.folder / "passed"
        found = log.read_text().splitlines()
        log.unlink()
        return found


@contextmanager
def served(folder: Path, sabotage: str = "") -> Iterator[Battery]:
    with model_server([]) as server:
        program = Program(
            flows=FLOWS, data=folder / "data", log=folder / "log",
            sabotage=SABOTAGE + POINTS + sabotage,
            env={
                "CRASH_PLAN": str(folder / "plan"), "CRASH_LOG": str(folder / "passed"),
                "MODEL": server.url, "DONE": str(folder / "done"), "OPENAI_API_KEY": "sk-none",
            },
        )  # fmt: skip
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

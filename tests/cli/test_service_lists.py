"""What only a running service knows: addresses, what comes next, who is asked, live log lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.program import Program, environment, until
from turnout.service.cli import cli

pytestmark = pytest.mark.slow

FLOWS = """
    import asyncio
    from pathlib import Path
    from turnout import approval, current, event, every, flow, task, webhook

    @flow(on=webhook("/github"))
    def hello(data: dict) -> int:
        return 1

    @flow(on=[webhook("/t/{tenant}/orders"), every("1d", name="daily")])
    def order() -> None: ...

    @flow(on=event("asked"))
    async def asked() -> None:
        await approval("ops", timeout="2d")

    @task
    def talks(n: int) -> None:
        current().log.info("talk.said", n=n)

    @flow(on=event("talked"))
    async def talked(data: dict) -> None:
        for n in range(3):
            await talks.run(n)
        while not Path(data["stop"]).exists():
            await asyncio.sleep(0.02)
        current().log.info("talk.ended")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("served")
    flows = folder / "flows.py"
    flows.write_text(dedent(FLOWS).lstrip())
    with Program(flows=flows, data=folder / "data", log=folder / "log").start() as program:
        program.ready()
        yield program


def typed(program: Program, *words: str) -> str:
    done = CliRunner().invoke(cli, [*words, "--data", str(program.data)])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def lines(program: Program, *words: str) -> list[Any]:
    return [json.loads(line) for line in typed(program, *words, "--json").splitlines()]


def emitted(program: Program, kind: str, **data: str) -> str:
    words = ("emit", "--type", kind, "--input", json.dumps(data))
    return str(lines(program, *words)[0]["runs"][0])


def test_serve_says_each_address_once(program: Program) -> None:
    said = [json.loads(line) for line in program.log.read_text().splitlines()]
    ready = {each["trigger"]: each for each in said if each["message"] == "webhook.ready"}
    base = f"http://127.0.0.1:{program.port}"
    assert {name: each["url"] for name, each in ready.items()} == {
        "webhook:/github": f"{base}/hooks/github",
        "webhook:/t/{tenant}/orders": f"{base}/hooks/t/{{tenant}}/orders",
    }
    assert ready["webhook:/github"]["flows"] == ["hello"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/github", "/hooks/github"),
        ("/webhooks/github", "/hooks/github"),
        ("/t/acme/orders", "/hooks/t/acme/orders"),
    ],
)
def test_a_webhook_without_its_prefix_is_told_where_it_is(
    program: Program, path: str, meant: str
) -> None:
    answer = program.ask(path, method="POST", body=b"{}")
    assert answer is not None and answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["detail"] == f"no page has this path; did you mean {meant}?"


@pytest.mark.parametrize("path", ["/githu", "/", "/api/github", "/hooks/nothing"])
def test_what_is_no_webhook_without_a_prefix_is_only_not_found(program: Program, path: str) -> None:
    answer = program.ask(path, method="POST", body=b"{}")
    assert answer is not None and answer.status in (401, 404, 405)
    assert b"did you mean" not in answer.body


def test_triggers_say_where_they_are_called_when_they_fire_and_what_they_refused(
    program: Program,
) -> None:
    program.ask("/hooks/github", method="POST", body=b"{}")
    program.ask("/hooks/github", method="POST", body=b"{ no JSON")
    rows = {row["name"]: row for row in lines(program, "triggers")}
    webhook, timer = rows["webhook:/github"], rows["daily"]
    assert webhook["address"] == f"http://127.0.0.1:{program.port}/hooks/github"
    assert webhook["refused"] == 1 and webhook["rejected"] == {"undecodable": 1}
    assert webhook["last_event_at"].endswith("Z") and webhook["next_at"] is None
    assert timer["next_at"].endswith("T00:00:00Z") and timer["address"] is None
    text = typed(program, "triggers")
    assert webhook["address"] in text


def test_next_lists_ticks_and_runs_in_the_order_they_are_due(program: Program) -> None:
    run_id = emitted(program, "asked")
    until(lambda: run_id in typed(program, "next"), 10, "the approval's end is listed")
    tick, wait = lines(program, "next")[:2]
    assert (tick["kind"], tick["trigger"], tick["flows"]) == ("tick", "daily", ["order"])
    assert (wait["kind"], wait["run"], wait["flows"]) == ("wait", run_id, ["asked"])
    assert wait["detail"].startswith("for the approval of ops, until ")


def test_approvals_list_who_is_asked_and_the_link_answers(program: Program) -> None:
    run_id = emitted(program, "asked")
    until(lambda: lines(program, "approvals", run_id), 10, "the approval is listed")
    [asked] = lines(program, "approvals", run_id)
    assert (asked["approval"], asked["flow"], asked["step"]) == ("ops", "asked", "approval#1")
    assert asked["link"] in typed(program, "approvals", run_id[-8:])
    path = asked["link"].removeprefix(f"http://127.0.0.1:{program.port}")
    answer = program.ask(path, method="POST", body=b'{"approve": true}')
    assert answer is not None and answer.json == {"run": run_id, "answer": "approved"}
    assert lines(program, "approvals", run_id) == []


def test_a_short_form_answers_an_approval(program: Program) -> None:
    run_id = emitted(program, "asked")
    until(lambda: lines(program, "approvals", run_id), 10, "the approval is listed")
    assert run_id in typed(program, "approve", run_id[-8:])


def test_logs_follow_a_run_to_its_end(program: Program, tmp_path: Path) -> None:
    run_id = emitted(program, "talked", stop=str(tmp_path / "stop"))
    command = [sys.executable, "-m", "turnout.service.cli", "logs", run_id[-8:], "--follow"]
    with subprocess.Popen(
        [*command, "--data", program.data], stdout=subprocess.PIPE, text=True, env=environment({})
    ) as follower:
        assert follower.stdout is not None
        first = [follower.stdout.readline() for _ in range(3)]
        assert ["n=0" in first[0], "n=1" in first[1], "n=2" in first[2]] == [True] * 3
        (tmp_path / "stop").touch()
        rest = follower.stdout.read()
        assert follower.wait(15) == 0
    assert rest.count("talk.ended") == 1 and "talk.said" not in rest
    kept = lines(program, "logs", run_id)
    assert [line["message"] for line in kept] == ["talk.said"] * 3 + ["talk.ended"]
    assert {(line["run"], line["flow"], line["attempt"]) for line in kept} == {
        (run_id, "talked", 1)
    }
    of_flow = typed(program, "logs", "--flow", "talked", "--lines", "1").splitlines()
    assert len(of_flow) == 1 and "talk.ended" in of_flow[0]
    shown = typed(program, "show", run_id, "--logs", "--task", "talks")
    assert "talk.said" in shown and "talk.ended" not in shown

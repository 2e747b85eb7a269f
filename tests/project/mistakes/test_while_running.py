"""What the log says of mistakes that show when flows run, and what those who call are answered.

One real program for all of them: each is asked for once, and the line is waited for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from tests.support.program import Program, until

from .while_running import ASKED, FLOWS, WHILE_RUNNING, Asked, WhileRunning

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("mistakes")
    flows = folder / "flows.py"
    flows.write_text(FLOWS)
    env = {
        "ORDERS_HMAC": "sixteen-letters!",
        "TURNOUT_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "TURNOUT_BLOCKED_LOOP": "60s",
    }
    with Program(flows=flows, data=folder / "data", log=folder / "log", env=env) as program:
        program.start()
        until(lambda: program.ask("/healthz"), 20, "the service")
        yield program


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("mistake", WHILE_RUNNING, ids=lambda each: each.title)
def test_the_log_names_the_place_and_the_fix(mistake: WhileRunning, program: Program) -> None:
    wanted = {
        name: in_words(said, mistake, program) if isinstance(said, str) else said
        for name, said in mistake.says.items()
    }
    if mistake.path:
        program.ask(f"/hooks/{mistake.path}", method="POST", body=b"{}", headers=JSON)

    def told() -> Mapping[str, object] | None:
        lines = [json.loads(line) for line in program.log_text().splitlines() if line[:1] == "{"]
        return next(
            (
                line
                for line in lines
                if line["message"] == mistake.message
                and {name: line.get(name) for name in wanted} == wanted
            ),
            None,
        )

    line = until(told, 20, f"{mistake.message} {wanted}")
    said = " ".join(map(str, line.values()))
    assert in_words(mistake.place, mistake, program) in said
    assert in_words(mistake.fix, mistake, program) in said
    if mistake.path and mistake.message != "webhook.unverified":
        assert line["run"], "it names the run"


def in_words(text: str, mistake: WhileRunning, program: Program) -> str:
    return text.replace("FILE", str(program.flows)).replace("LINE", str(mistake.line))


@pytest.mark.parametrize("asked", ASKED, ids=lambda each: each.title)
def test_who_calls_is_told_what_is_wrong(asked: Asked, program: Program) -> None:
    answer = program.ask(
        asked.path, method=asked.method, body=asked.body, headers={**JSON, **asked.headers}
    )
    assert answer is not None and answer.status == asked.status
    problem = answer.json
    refusals = "; ".join(f"{flow}: {why}" for flow, why in problem.get("refusals", {}).items())
    assert problem["detail"] + (f": {refusals}" if refusals else "") == asked.says
    assert asked.fix in asked.says


def test_a_dead_letter_at_intake_is_counted_as_a_run(program: Program) -> None:
    def counted(flow: str) -> float:
        ended = program.metrics("turnout_runs_total")
        return ended.get(f'flow="{flow}",outcome="failed"', 0.0)

    before = counted("counts"), counted("asks")
    program.ask("/hooks/shared", method="POST", body=b"{}", headers=JSON)
    program.ask("/hooks/filter", method="POST", body=b"{}", headers=JSON)
    assert (counted("counts"), counted("asks")) == (before[0] + 1, before[1] + 1)


def test_refused_signatures_are_told_once_a_minute_and_counted(program: Program) -> None:
    for _ in range(3):
        program.ask("/hooks/signed", method="POST", body=b"{}", headers=JSON)
    assert program.log_text().count('"webhook.unverified"') == 1
    counted = program.metrics("turnout_events_total")
    assert any("/signed" in labels and "unverified" in labels for labels in counted)


def test_a_block_is_told_once(program: Program) -> None:
    assert program.log_text().count('"loop.blocked"') <= 1

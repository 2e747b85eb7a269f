"""`turnout doctor --verdict`: whether a service is ok, degraded or down, and why."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import Program, turnout, until
from turnout.service.operate.verdict import Health, judge

FLOWS = """
from turnout import flow, notify, webhook

@flow(on=webhook("/fails", verify="none"), on_failure=notify("http://127.0.0.1:9/x"))
async def fails(data: dict) -> None:
    raise ValueError("no")
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "flows.py").write_text(FLOWS)
    with Program(
        flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log"
    ) as program:
        yield program


def verdict(program: Program) -> tuple[int, str, str]:
    """Return the exit code, the verdict and its reasons, the same for people and for programs."""
    asked = turnout("doctor", "--verdict", "--json", "--data", program.data)
    document = json.loads(asked.stdout)
    shown = turnout("doctor", "--verdict", "--data", program.data)
    assert shown.returncode == asked.returncode
    assert shown.stdout.splitlines()[0] == document["verdict"]
    for reason in document["reasons"]:
        assert reason in shown.stdout
    return asked.returncode, document["verdict"], "; ".join(document["reasons"])


def test_a_service_is_ok_degraded_or_down(program: Program) -> None:
    code, said, why = verdict(program)
    assert (code, said) == (2, "down") and "data" in why
    program.start().ready()
    assert verdict(program) == (0, "ok", "")

    program.ask("/hooks/fails", method="POST", body=b"{}")
    alerts = ("alerts", "--json", "--data", program.data)
    until(lambda: turnout(*alerts).stdout.strip(), 20, "an open alert")
    program.flows.write_text("this is no flow file")
    reload(program)
    (program.data / "journal" / ".journal.db-litestream").mkdir()
    code, said, why = verdict(program)
    assert (code, said) == (1, "degraded")
    for reason in ("1 open alert", "the flow files of before are served", "Litestream"):
        assert reason in why
    examined = turnout("doctor", "--data", program.data)
    assert examined.returncode == 1 and "stop Litestream" in examined.stdout

    assert program.stop() == 0
    code, said, why = verdict(program)
    assert (code, said) == (2, "down") and "no service uses" in why


def reload(program: Program) -> None:
    program.signal(signal.SIGHUP)
    program.said("reload.failed", 20)


@pytest.mark.parametrize(
    ("not_ready", "troubles", "health"),
    [
        ([], [], Health.OK),
        ([], ["a warning"], Health.DEGRADED),
        (["trigger kafka:a: no broker"], [], Health.DEGRADED),
        (["the service is stopping"], [], Health.DOWN),
        (["trigger kafka:a: no broker", "the journal cannot be written: full"], [], Health.DOWN),
    ],
)
def test_down_is_what_accepts_no_events(
    not_ready: list[str], troubles: list[str], health: Health
) -> None:
    found = judge(not_ready, troubles)
    assert found.health is health
    assert set(found.reasons) == {*not_ready, *troubles}

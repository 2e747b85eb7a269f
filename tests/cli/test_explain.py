"""`turnout explain`: what an author is told of a flow, without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from turnout import flow
from turnout.service.cli import cli
from turnout.service.domain.errors import SetupError

FLOWS = """
import requests_like as requests
from pydantic import BaseModel

from turnout import (
    Event, approval, by_input, current, emit, event, flow, gather, limit, patched, retry, sleep,
    task, webhook,
)

paid = webhook("/paid", verify="none")


class Order(BaseModel):
    id: str
    amount: float = 1.0


async def refund(id: str) -> None: ...


@task(retry=retry(3), timeout="90s", undo=refund)
async def charge(id: str) -> str:
    return id


@task(cache=by_input(ttl="1h"), fallback="none")
def label(id: str) -> str:
    return id


@flow
async def child(id: str) -> None: ...


async def tell(order: Order) -> None:
    await child(order.id)
    requests.post("https://example.com", order.id)


@flow(
    on=[webhook("/orders", verify="none"), event("order.placed")],
    awaits=paid,
    when=lambda event: event.data["amount"] > 0,
    concurrency=limit(8, per=lambda event: event.data["id"]),
    retry=2,
    owner="payments team",
    version="3",
)
async def bill(order: Order, event: Event) -> list[str]:
    \"\"\"Bill an order.\"\"\"
    current().log.info("order.seen", key=current().key("x"))
    texts = await gather(charge(order.id), label.run(order.id.strip()))
    await charge.map([order.id])
    if patched("told"):
        await tell(order)
    await sleep("1d")
    said = await approval("ops")
    await emit("order.billed", {"id": order.id})
    print(len(texts), ", ".join(texts), said)
    return list(texts)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "_requests_like.py").write_text("")
    (tmp_path / "orders.py").write_text(
        FLOWS.replace("import requests_like as requests", "import _requests_like as requests")
    )
    (tmp_path / "_requests_like.py").write_text("def post(*words: object) -> None: ...\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def explained(*words: str) -> str:
    done = CliRunner().invoke(cli, ["explain", *words], prog_name="turnout")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def document(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explained(*words, "--json"))
    return found


def test_what_is_a_step_and_what_runs_again_is_told_by_line(project: Path) -> None:
    shown = document("orders.py:bill")
    lines = FLOWS.splitlines()
    steps = [(each["name"], each["kind"]) for each in shown["steps"]]
    assert steps == [
        ("charge", "step"), ("label", "step"), ("charge", "step for each item"),
        ("child", "child run"), ("sleep", "wait"), ("approval", "wait"), ("emit", "event"),
    ]  # fmt: skip
    for each in (*shown["steps"], *shown["runs_again"]):
        assert each["call"] in lines[each["line"] - 1]
    assert [each["call"].partition("(")[0] for each in shown["runs_again"]] == [
        "current", "order.id.strip", "requests.post", "print",
    ]  # fmt: skip
    assert shown["steps"][0] | {"line": 0, "call": ""} == {
        "line": 0, "call": "", "name": "charge", "kind": "step", "retries": 3, "timeout": "1m30s",
        "undo": "refund",
    }  # fmt: skip
    assert (shown["steps"][1]["cached"], shown["steps"][1]["fallback"]) == ("1h", True)


def test_triggers_policy_parameters_owner_and_version_are_told(project: Path) -> None:
    shown = document("bill")
    assert shown["triggers"] == ["webhook:/orders", "event:order.placed"]
    assert shown["awaits"] == ["webhook:/paid"]
    assert shown["options"] == {
        "when": 'lambda event: event.data["amount"] > 0',
        "concurrency": 'limit(8, per=lambda event: event.data["id"])',
        "retry": "2",
    }
    assert (shown["owner"], shown["version"]) == ("payments team", "3")
    order, event = shown["parameters"]
    assert (order["type"], order["from"], order["required"]) == ("Order", "data", True)
    assert order["schema"]["properties"]["id"]["type"] == "string"
    assert event == {"name": "event", "type": "Event", "from": "event", "required": True}


def test_people_read_the_same_as_text_with_the_schema_when_asked(project: Path) -> None:
    text = explained("bill")
    assert "order: Order  from the event's data (id, amount?)" in text
    assert "charge         step (retries 3, timeout 1m30s, undo refund)" in text
    assert "runs again, after each wait, retry and restart" in text
    assert "belongs in a @task" in text
    assert '"properties"' not in text
    assert '"properties"' in explained("bill", "--schema")


def test_a_take_from_a_budget_is_recorded_however_it_is_declared(tmp_path: Path) -> None:
    (tmp_path / "scaling.py").write_text(
        "from turnout import budget, flow\n\n"
        "scaling = budget('scale', max_changes=3, per='1h')\n\n\n"
        "@flow\nasync def scales() -> None:\n"
        "    await scaling.take()\n"
        "    await budget('mails', max_changes=3, per='1h').take()\n"
    )
    told = CliRunner().invoke(cli, ["explain", f"{tmp_path}/scaling.py:scales", "--json"])
    steps = json.loads(told.stdout)["steps"]
    assert [(each["name"], each["line"]) for each in steps] == [("budget", 8), ("budget", 9)]


def test_a_window_is_told_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loads.py").write_text(
        """
from turnout import batch, flow, http, webhook


@flow(on=batch(webhook("/load"), 50, "10s"))
async def scale(loads: list[dict]) -> None:
    (await http.get("https://example.com")).json()
"""
    )
    monkeypatch.chdir(tmp_path)
    shown = document("loads.py:scale")
    assert shown["options"] == {"on": 'batch(webhook("/load"), 50, "10s")'}
    assert [each["name"] for each in shown["steps"]] == ["http.get"]
    assert shown["runs_again"] == []


def test_an_unknown_flow_is_answered_with_those_there_are(project: Path) -> None:
    with pytest.raises(SetupError, match=r"no flow 'bil' in this folder; there are: bill, child"):
        explained("bil")


def test_an_owner_is_a_name() -> None:
    with pytest.raises(SetupError, match="owner='': an owner is 1 to 200 printable characters"):
        flow(name="bill", owner="")(lambda: None)


def test_commands_and_requests_are_steps(project: Path) -> None:
    (project / "asks.py").write_text(
        "from turnout import flow, http, shell\n\n\n@flow\nasync def asks() -> None:\n"
        "    await shell(['ls'])\n    await http.get('https://a.example/')\n\n\n"
        "@flow\ndef lists() -> None:\n    shell.blocking(['ls'])\n"
    )
    asked = [(each["name"], each["kind"]) for each in document("asks.py:asks")["steps"]]
    assert asked == [("shell", "step"), ("http.get", "step")]
    assert [each["name"] for each in document("asks.py:lists")["steps"]] == ["shell"]

"""The fields of every JSON document, from a real program: its HTTP API and its commands."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from turnout.service.cli import cli

from .program import Program, turnout, until

FLOWS = """
from datetime import timedelta
from pydantic import BaseModel
from turnout import approval, current, event, every, flow, limit, task, webhook

class Budget(BaseModel):
    euros: int

@task
def charge() -> int:
    current().log.info("order.charged")
    current().attach("receipt.txt", b"5")
    return 5

@task
def ship() -> None:
    raise ValueError("no such street")

@flow(on=webhook("/order", respond=True), concurrency=limit(2, per=lambda event: "key"))
def order() -> int:
    return charge()

@flow(on=event("shipped"), retry=0)
def shipped() -> None:
    charge()
    ship()

@flow(on=event("shipped"), when=lambda event: False, expect_every="1s")
def audited() -> None: ...

@flow(on=event("asked"))
async def asked() -> int:
    return (await approval("budget", fields=Budget)).fields.euros

@flow(on=event("kept"), concurrency=1)
def keeps() -> None:
    current().state.set(1)

@flow(on=every("1d", name="daily"))
def daily() -> int:
    return 1
"""

FREE = {"data", "extensions", "facts", "figures", "headers", "lag", "log", "params", "query"}
FREE |= {"read", "rejected", "result"}
"""What is below these is the author's, or differs from trigger to trigger."""


def fields_of(document: Any, name: str = "") -> Iterator[str]:
    """Return the path of every field of a document; `[]` is each of a list."""
    if name.rpartition(".")[2] in FREE:
        return
    if isinstance(document, list):
        for each in document:
            yield from fields_of(each, f"{name}[]")
    elif isinstance(document, dict):
        for key, value in document.items():
            path = f"{name}.{key}" if name else str(key)
            yield path
            yield from fields_of(value, path)


@dataclass
class Session:
    """An operator at a served program: notes the fields of each document that is answered."""

    program: Program
    fields: dict[str, set[str]] = field(default_factory=dict)

    def ask(self, document: str, path: str = "", *, body: Any = None, **headers: str) -> Any:
        """Make the request `METHOD /path`; `path` is the real one where that has a variable."""
        method, _, named = document.partition(" ")
        token = (self.program.data / "api-token").read_text().strip()
        answer = self.program.ask(
            path or named,
            method=method,
            body=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", **headers},
        )
        assert answer is not None, document
        assert (answer.status >= 400) == document.endswith("(refused)"), (document, answer)
        self.note(document, answer.json)
        return answer.json

    def type(self, *words: str, code: int = 0, data: bool = True, named: int = 1) -> list[Any]:
        """Run a command with --json; the first `named` words are its name."""
        where = ["--data", str(self.program.data)] if data else []
        done = CliRunner().invoke(cli, [*words, "--json", *where])
        assert done.exit_code == code, (words, done.output, done.exception)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            self.note(" ".join(["turnout", *words[:named]]), line)
        return lines

    def started(self, kind: str, state: str) -> str:
        """Emit an event of this type; returns its run once that is in `state`."""
        event = {"specversion": "1.0", "id": uuid.uuid4().hex, "source": "/desk", "type": kind}
        event["data"] = "a word"
        headers = {"Content-Type": "application/cloudevents+json"}
        run_id = str(self.ask("POST /api/events", body=event, **headers)["runs"][0])
        self.reached(run_id, state)
        return run_id

    def reached(self, run_id: str, state: str) -> None:
        """Wait until a run is in `state`."""
        until(lambda: self.run(run_id)["state"] == state, 10, f"{run_id} {state}")

    def run(self, run_id: str) -> Any:
        """Return a run."""
        return self.ask("GET /api/runs/{run_id}", f"/api/runs/{run_id}")

    def note(self, document: str, answer: Any) -> None:
        """Keep the fields of a document under its name."""
        self.fields.setdefault(document, set()).update(fields_of(answer))


def fields_of_documents(folder: Path) -> dict[str, set[str]]:
    """Serve a few flows in `folder`, do what an operator can do, and return the fields seen."""
    flows = folder / "flows.py"
    flows.write_text(FLOWS)
    with Program(flows=flows, data=folder / "data", log=folder / "log").start() as program:
        program.ready()
        session = Session(program)
        _by_http(session)
        _by_command(session, flows)
    return session.fields


def _by_http(session: Session) -> None:
    ask = session.ask
    ask("GET /healthz")
    ask("GET /readyz")
    ask("POST /hooks/{path}", "/hooks/order", body={})
    ask("POST /hooks/{path} (refused)", "/hooks/nowhere", body={})
    failed, dropped, waiting, approved = (
        session.started("shipped", "failed"),
        session.started("shipped", "failed"),
        session.started("asked", "waiting"),
        session.started("asked", "waiting"),
    )
    session.started("kept", "succeeded")
    answer = {"approve": True, "fields": {"euros": 5}}
    ask("POST /api/runs/{run_id}/approve", f"/api/runs/{approved}/approve", body=answer)
    ask("POST /api/runs/{run_id}/cancel", f"/api/runs/{waiting}/cancel")
    for listed in ("runs", "dead", "events", "flows", "triggers"):
        ask(f"GET /api/{listed}")
    event = session.run(failed)["event"]["id"]
    ask("GET /api/runs/{run_id}/graph", f"/api/runs/{failed}/graph")
    ask("GET /api/events/{event_id}", f"/api/events/{event}?source=/desk")
    ask("GET /api/why/{name}", f"/api/why/{event}")
    ask("GET /api/why/{name}", f"/api/why/{failed}")
    for listed in ("approvals", "logs", "next"):
        ask(f"GET /api/{listed}")
    ask("GET /api/waits", f"/api/waits?run={session.started('asked', 'waiting')}")
    known = "source=/desk&not_undone=true"
    ask("POST /api/events/{event_id}/replay", f"/api/events/{event}/replay?{known}")
    ask("POST /api/dead/{run_id}/replay", f"/api/dead/{failed}/replay?not_undone=true")
    ask("POST /api/dead/{run_id}/drop", f"/api/dead/{dropped}/drop")
    ask("POST /api/runs/{run_id}/retry", f"/api/runs/{failed}/retry")
    ask("POST /api/runs/retry", "/api/runs/retry?flow=shipped")
    ask("POST /api/runs/cancel", "/api/runs/cancel?flow=asked")
    ask("POST /api/triggers/{name}/fire", "/api/triggers/daily/fire")
    ask("POST /api/triggers/{name}/seek", "/api/triggers/daily/seek", body={"to": "now"})
    ask("POST /api/pauses", body={"name": "order"})
    ask("GET /api/pauses")
    ask("DELETE /api/pauses/{name}", "/api/pauses/order")
    limit = {"count": 3, "for": "1h"}
    ask("PUT /api/limits/{name}", "/api/limits/order", body=limit)
    ask("GET /api/limits")
    ask("DELETE /api/limits/{name}", "/api/limits/order")
    ask("DELETE /api/cache")
    until(lambda: ask("GET /api/alerts")["items"], 10, "an alert")
    ask("POST /api/alerts/{alert}/mute", "/api/alerts/1/mute", body={"for": "1h"})
    ask("GET /api/state")
    ask("DELETE /api/state/{flow}", "/api/state/keeps?key=")
    ask("POST /api/runs/cancel", "/api/runs/cancel?flow=asked&dry_run=true")


def _by_command(session: Session, flows: Path) -> None:
    command = session.type
    failed, dropped, waiting, approved = (
        session.started("shipped", "failed"),
        session.started("shipped", "failed"),
        session.started("asked", "waiting"),
        session.started("asked", "waiting"),
    )
    event = session.run(failed)["event"]["id"]
    command("check", str(flows), data=False)
    session.note("turnout run", json.loads(turnout("run", f"{flows}:daily", "--json").stdout))
    asked = turnout("run", f"{flows}:shipped", "--dry-run", "--json").stdout
    session.note("turnout run --dry-run", json.loads(asked))
    to, data = flows.parent / "backups", session.program.data
    made = json.loads(turnout("backup", "--to", to, "--json", "--data", data).stdout)
    session.note("turnout backup", made)
    checked = turnout("restore", made["file"], "--check", "--json").stdout
    session.note("turnout restore", json.loads(checked))
    for name, option in (("doctor", "--verdict"), ("next", "--wake"), ("upgrade", "--plan")):
        said = turnout(name, option, "--json", "--data", data).stdout
        session.note(f"turnout {name} {option}", json.loads(said))
    for listed in ("runs", "events", "flows", "triggers", "doctor"):
        command(listed)
    command("dead", "list", named=2)
    command("show", failed)
    command("graph", failed)
    command("why", event)
    command("why", waiting)
    command("emit", "--type", "asked")
    command("approvals", waiting)
    command("logs", failed)
    command("next")
    command("fire", "daily")
    command("approve", approved, "--fields", '{"euros": 5}')
    command("cancel", waiting)
    command("replay", event, "--yes")
    command("dead", "replay", failed, "--yes", named=2)
    command("dead", "drop", dropped, named=2)
    command("retry", failed, "--yes")
    command("pause", "order")
    command("resume", "order")
    command("alerts")
    command("alerts", "mute", "1", named=2)
    command("limits", "set", "order", "3", "--for", "1h", named=2)
    command("limits")
    command("limits", "reset", "order", named=2)
    command("trigger", "seek", "daily", "--to", "now", "--yes", named=2)
    command("cache", "clear", "--yes", named=2)
    session.started("kept", "succeeded")
    for words in (("list",), ("show", "keeps"), ("clear", "keeps", "--yes")):
        command("state", *words, named=2)
    command("pause", "order", "--dry-run")

"""Webhooks whose sender asks something in the query, against the served program."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.program import Program, turnout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FLOWS = """
from pydantic import BaseModel

from turnout import Event, flow, webhook

@flow(on=webhook("/meta", methods=("GET", "POST"), respond=True))
def meta(event: Event) -> str | None:
    return event.query.get("hub.challenge")

@flow(on=webhook("/graph", respond="20s"))
def graph(event: Event) -> str | int:
    return event.query.get("validationToken", 7)

class Call(BaseModel):
    number: str
    tags: list[str] = []

@flow(on=webhook("/call", methods=("GET",), respond=True))
def call(call: Call) -> dict:
    return call.model_dump()

@flow(on=webhook("/kept"))
def kept(event: Event) -> dict:
    return {"query": dict(event.query), "data": event.data}

@flow(on=webhook("/dead", respond=True), when=lambda event: event.data["missing"])
def dead(event: Event) -> None: ...
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("handshakes")
    (folder / "flows.py").write_text(FLOWS)
    program = Program(flows=folder / "flows.py", data=folder / "data", log=folder / "log")
    with program.start():
        program.ready()
        yield program


def test_a_challenge_is_answered_as_it_came(program: Program) -> None:
    answer = program.ask("/hooks/meta?hub.mode=subscribe&hub.challenge=1158%3Cb%3E201444")
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"1158<b>201444")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_so_is_one_that_is_posted(program: Program) -> None:
    answer = program.ask("/hooks/graph?validationToken=a+b", method="POST")
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"a b")
    answer = program.ask("/hooks/graph", method="POST")
    assert answer is not None
    assert (answer.status, answer.headers["content-type"], answer.body) == (
        200, "application/json", b"7"
    )  # fmt: skip


def test_a_query_is_validated_as_a_form_is(program: Program) -> None:
    answer = program.ask("/hooks/call?number=7&tags=a")
    assert answer is not None
    assert (answer.status, answer.json) == (200, {"number": "7", "tags": ["a"]})
    answer = program.ask("/hooks/call?tags=a")
    assert answer is not None
    assert answer.status == 422
    assert "number" in answer.json["refusals"]["call"]


def test_a_query_is_in_the_journal(program: Program) -> None:
    answer = program.ask("/hooks/kept?a=1&a=2&wait=monday&access_token=hush", method="POST")
    assert answer is not None
    assert answer.status == 202
    event = answer.json["event"]
    told = turnout("replay", event, "--data", program.data, "--json")
    assert told.returncode == 0, told.stderr
    shown = json.loads(turnout("why", event, "--data", program.data, "--json").stdout)
    assert shown["query"] == {"a": ["1", "2"], "wait": "monday"}
    kept = [path for path in program.data.rglob("*") if path.is_file()]
    assert not any(b"hush" in path.read_bytes() for path in kept)


def test_a_run_that_is_dead_from_the_start_is_told_at_once(program: Program) -> None:
    sent: dict[str, Any] = {
        "method": "POST",
        "body": b"{}",
        "headers": {"content-type": "application/json"},
    }
    began = time.monotonic()
    answer = program.ask("/hooks/dead?wait=20s", timeout=25, **sent)
    assert answer is not None
    assert (answer.status, answer.json["error"]) == (500, "filter_error")
    assert time.monotonic() - began < 10


def test_a_sender_that_leaves_in_the_middle_leaves_no_traceback(program: Program) -> None:
    token = (program.data / "api-token").read_text().strip()
    head = f"POST /api/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
    for framing in ("content-length: 100", "transfer-encoding: chunked"):
        with socket.create_connection(("127.0.0.1", program.port), 5) as peer:
            peer.sendall(f"{head}{framing}\r\n\r\n5".encode())
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b"", "the service has noticed"
    assert program.ask("/healthz") is not None
    assert "Traceback" not in program.log_text()

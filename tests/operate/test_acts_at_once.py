"""When a verb answers, the service has acted: seen from outside, while events keep coming."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, turnout, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ROUNDS = 8

FLOWS = """
import asyncio
import time
from pathlib import Path
from turnout import current, flow, limit, webhook

def note(name, what):
    with (Path(__file__).parent / name).open("a") as lines:
        lines.write(f"{time.monotonic()} {what}\\n")

@flow(on=webhook("/orders"), concurrency=limit(8))
async def bill(data: dict) -> None:
    note("bill", current().run.id)
    await asyncio.sleep(0.03)

@flow(on=webhook("/endless"), concurrency=limit(50))
async def endless(data: dict) -> None:
    while True:
        note("endless", data["n"])
        await asyncio.sleep(0.001)

@flow(on=webhook("/keyed"), ordered_by=lambda event: event.data["key"], on_dead="block")
async def keyed(data: dict) -> None:
    note("keyed", data["n"])
    if data["n"] < 0 and not (Path(__file__).parent / "mended").exists():
        raise ValueError("not today")
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.ready()
        yield program


def post(program: Program, path: str, body: Any) -> Any:
    """Send an event; returns the decoded answer, or its status if it is refused."""
    answer = program.ask(path, method="POST", body=json.dumps(body).encode())
    assert answer is not None
    return answer.json if answer.status == 202 else answer.status


def do(program: Program, method: str, path: str, body: Any = None) -> Any:
    """Do a verb over HTTP."""
    token = (program.data / "api-token").read_text().strip()
    answer = program.ask(
        f"/api{path}",
        method=method,
        body=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer is not None and answer.status == 200, answer
    return answer.json


def noted(program: Program, name: str) -> list[tuple[float, str]]:
    """Return what a flow has noted: when, and what."""
    file = program.flows.parent / name
    lines = file.read_text().splitlines() if file.exists() else []
    return [(float(at), what) for at, _, what in (line.partition(" ") for line in lines)]


def longer(listed: Sequence[object], count: int) -> Callable[[], bool]:
    """Whether a list is longer than that by now."""
    return lambda: len(listed) > count


def goes_on(program: Program, count: int) -> Callable[[], bool]:
    """Whether the endless runs have noted more than that by now."""
    return lambda: len(noted(program, "endless")) > count


def has_failed(program: Program, run_id: str) -> Callable[[], bool]:
    """Whether a run has failed by now."""
    return lambda: bool(program.api(f"/runs/{run_id}")["state"] == "failed")


@contextmanager
def sending(program: Program) -> Iterator[list[str]]:
    """Send orders all the while, by four senders; yields their runs."""
    accepted: list[str] = []
    leaving = threading.Event()

    def send(first: int) -> None:
        number = first
        while not leaving.is_set():
            answer = post(program, "/hooks/orders", {"n": number})
            if isinstance(answer, dict):
                accepted.extend(answer["runs"])
            number += 4

    senders = [threading.Thread(target=send, args=(first,)) for first in range(4)]
    for sender in senders:
        sender.start()
    try:
        yield accepted
    finally:
        leaving.set()
        for sender in senders:
            sender.join()


def test_no_run_of_a_flow_starts_after_its_pause_has_answered(program: Program) -> None:
    with sending(program) as accepted:
        for number in range(ROUNDS):
            until(lambda: len(queued(program)) > 20, 10, "runs that wait")
            if number == 0:
                assert turnout("pause", "bill", "--data", program.data).returncode == 0
            else:
                do(program, "POST", "/pauses", {"name": "bill"})
            waiting, count = queued(program), len(accepted)
            until(longer(accepted, count + 20), 10, "more events")
            assert not waiting & {run_id for _, run_id in noted(program, "bill")}, number
            assert do(program, "DELETE", "/pauses/bill")["name"] == "flow:bill"
    program.quiet(60)
    assert sorted(run_id for _, run_id in noted(program, "bill")) == sorted(accepted)


def queued(program: Program) -> set[str]:
    """Return the runs of the flow that have not started, the newest thousand of them."""
    found = program.api("/runs?flow=bill&state=queued&limit=1000")
    return {run["id"] for run in found["items"]}


def test_a_paused_webhook_accepts_nothing_once_its_pause_has_answered(program: Program) -> None:
    with sending(program) as accepted:
        for _ in range(ROUNDS):
            count = len(accepted)
            until(longer(accepted, count), 10, "events are accepted")
            do(program, "POST", "/pauses", {"name": "webhook:/orders"})
            assert post(program, "/hooks/orders", {"n": -1}) == 503
            do(program, "DELETE", "/pauses/webhook:/orders")
            assert isinstance(post(program, "/hooks/orders", {"n": -2}), dict)


def test_a_cancelled_run_does_nothing_more_once_its_cancel_has_answered(program: Program) -> None:
    runs = [post(program, "/hooks/endless", {"n": n})["runs"][0] for n in range(ROUNDS)]
    until(lambda: len({what for _, what in noted(program, "endless")}) == ROUNDS, 10, "all run")
    for number, run_id in enumerate(runs):
        assert do(program, "POST", f"/runs/{run_id}/cancel")["state"] == "cancelled"
        cancelled_at = time.monotonic()
        after = len(noted(program, "endless"))
        if number < ROUNDS - 1:
            until(goes_on(program, after), 10, "others go on")
        late = [
            at
            for at, what in noted(program, "endless")
            if what == str(number) and at > cancelled_at
        ]
        assert not late
    program.quiet(10)


def test_a_retried_run_keeps_its_place_before_events_that_come_after(program: Program) -> None:
    first = post(program, "/hooks/keyed", {"n": -1, "key": "k"})["runs"][0]
    until(has_failed(program, first), 10, "a dead letter")
    (program.flows.parent / "mended").touch()
    assert do(program, "POST", f"/runs/{first}/retry")["state"] == "queued"
    for number in range(ROUNDS):
        post(program, "/hooks/keyed", {"n": number, "key": "k"})
    program.quiet(20)
    order = [int(what) for _, what in noted(program, "keyed")]
    assert order == [-1, -1, *range(ROUNDS)]


def test_a_dropped_dead_letter_lets_the_runs_behind_it_start(program: Program) -> None:
    for number in range(-ROUNDS, 0):
        key = str(number)
        dead = post(program, "/hooks/keyed", {"n": number, "key": key})["runs"][0]
        until(has_failed(program, dead), 10, "it failed")
        post(program, "/hooks/keyed", {"n": number, "key": key})
    assert len(noted(program, "keyed")) == ROUNDS
    (program.flows.parent / "mended").touch()
    for letter in program.api("/dead")["items"]:
        do(program, "POST", f"/dead/{letter['id']}/drop")
    program.quiet(20)
    assert len(noted(program, "keyed")) == 2 * ROUNDS

"""`turnout backtest`: of a journal at rest and of a running service."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import orjson
import pytest

from tests.conftest import Say
from tests.support.program import Program, turnout
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import Outcome, RunState
from turnout.service.domain.units import utc_now
from turnout.service.intake.router import route
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Claim, ClaimedRun, Entry, NewRun
from turnout.service.project import AnyFlow
from turnout.service.project.loader import load
from turnout.service.telemetry.metrics import Metrics

FLOWS = """
from turnout import flow, webhook

@flow(on=webhook("/orders", verify="none"), when=lambda event: event.data["amount"] > {least})
def bill(order: dict[str, int]) -> None: ...
"""


def asked(data: Path, *words: str, code: int = 0, timeout: float = 120) -> str:
    done = turnout("backtest", *words, "--data", str(data), timeout=timeout)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.timeout(120)
def test_the_past_is_asked_with_the_service_running_and_down(tmp_path: Path) -> None:
    flows, new = tmp_path / "flows.py", tmp_path / "new.py"
    flows.write_text(FLOWS.format(least=1))
    new.write_text(FLOWS.format(least=2))
    data = tmp_path / "data"
    program = Program(flows=flows, data=data, log=tmp_path / "log")
    with program.start():
        program.ready()
        for amount in (1, 2, 3):
            body = json.dumps({"amount": amount}).encode()
            headers = {"content-type": "application/json"}
            answer = program.ask("/hooks/orders", method="POST", body=body, headers=headers)
            assert answer is not None and answer.status == 202
        live = json.loads(asked(data, "bill", "--json"))
        program.stop()
    assert (live["did"], live["would"], live["different"]) == (
        {"filtered": 1, "started": 2}, {"filtered": 1, "started": 2}, 0,
    )  # fmt: skip
    at_rest = json.loads(asked(data, "bill", "--file", str(new), "--json"))
    assert at_rest["would"] == {"filtered": 2, "started": 1}
    [difference] = at_rest["differences"]
    assert (difference["did"], difference["would"]) == ("started", "filtered")
    text = asked(data, f"{new}:bill", "--since", "1h")
    for words in ("backtest of bill", "different", "webhook:/orders", "filtered", "started"):
        assert words in text
    assert "no flow 'bil' in" in asked(data, f"{new}:bil", code=78)


def test_what_cannot_be_meant_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "--since" in asked(tmp_path / "data", "bill", "--since", "yesterday", code=2)


RULES = """
from turnout import Event, batch, count, debounce, flow, rate_limit, unique, webhook

orders = webhook("/orders", verify="none")

def customer(event):
    return event.data["customer"]

@flow(
    on=orders, when=lambda event: event.data["amount"] > 1,
    key=customer, mode="skip", timeout="1h",
    unique=unique(lambda event: event.data["id"], until="1h"), rate=rate_limit("1000/1m"),
)
def bill(order: dict[str, object]) -> None: ...

@flow(on=debounce(orders, "20s", per=lambda event: event.data["id"] % 50, keep="all"))
def bursts(orders: list[Event]) -> None: ...

@flow(on=batch(orders, 20, "1m", per=lambda event: event.data["id"] % 5), unique=unique(customer))
def batches(orders: list[Event]) -> None: ...

@flow(on=count(orders, 4, "15m", per=customer))
def counts(orders: list[Event]) -> None: ...
"""


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_a_hundred_thousand_events_take_half_a_minute(tmp_path: Path, say: Say) -> None:
    flows, data, slow = tmp_path / "flows.py", tmp_path / "data", []
    flows.write_text(RULES)
    project = await asyncio.to_thread(load, [flows])
    await _filled(data, list(project.flows.values()), 100_000)
    for name in project.flows:
        began, before = time.monotonic(), os.times()
        words = (name, "--file", str(flows), "--json")
        done = await asyncio.to_thread(asked, data, *words, timeout=900)
        took, after = time.monotonic() - began, os.times()
        found = json.loads(done)
        assert found["events"] == 100_000 and found["different"] == 0, found["differences"][:3]
        windows = found["windows"] or {"different": 0, "did": {}}
        assert windows["different"] == 0, windows["differences"][:3]
        spent = after.children_user + after.children_system
        spent -= before.children_user + before.children_system
        say(f"{name}: {took:.1f} s, {spent:.1f} s of processor: {found['did']} {windows['did']}")
        if spent > 30:
            slow.append(name)
    assert slow == []


async def _filled(data: Path, flows: Sequence[AnyFlow], count: int) -> None:
    """Fill a journal with events half a second apart; what is due ends together, every 200."""
    dice, began = random.Random(1), utc_now() - timedelta(days=1)
    journal = await open_journal(
        data, metrics=Metrics(), synchronous="normal", max_unfinished_runs=10**9, min_free_bytes=0
    )
    firings = {flow.name: flow.firing for flow in flows}
    for first in range(0, count, _TOGETHER):
        instants = [began + timedelta(seconds=each / 2) for each in range(first, first + _TOGETHER)]
        entries = [_entry(flows, dice, at) for at in instants]
        stored = await asyncio.gather(
            *(journal.append([entry], now=at) for entry, at in zip(entries, instants, strict=True))
        )
        ended = instants[-1] + timedelta(milliseconds=400)
        runs = [
            _claimed(run, answer.event_seq, entry.event)
            for entry, (answer,) in zip(entries, stored, strict=True)
            for run in entry.runs
            if run.id not in answer.refused
        ]
        fired = [run.queued.seq for (answer,) in stored for run in answer.fired]
        closed = await journal.close_due(firings, now=ended, limit=10**6)
        fired += [run.queued.seq for run in closed.fired]
        runs += await journal.claim(fired, now=ended)
        outcome = Outcome(state=RunState.SUCCEEDED)
        await asyncio.gather(
            *(journal.record(run, outcome, started_at=run.due_at, now=ended) for run in runs)
        )
    await journal.close()


_TOGETHER = 200


def _entry(flows: Sequence[AnyFlow], dice: random.Random, at: datetime) -> Entry:
    order = {
        "customer": dice.randrange(2000), "id": dice.randrange(10**6),
        "amount": dice.randrange(10), "text": "x" * 200,
    }  # fmt: skip
    event = Event(
        id=mint_id(), source="/hooks/orders", type="turnout.webhook", time=at,
        body=orjson.dumps(order), trigger="webhook:/orders", minted=True,
    )  # fmt: skip
    entry = route(event, flows).entry
    for run in entry.runs:
        run.state = RunState.RUNNING
    return entry


def _claimed(run: NewRun, event_seq: int, event: Event) -> ClaimedRun:
    return ClaimedRun(
        claim=Claim(run.seq, run.id, 1), flow=run.flow, event_seq=event_seq, event=event,
        attempt=1, crashes=0, replay=0, order_key=None, keys=run.keys, due_at=event.time,
    )  # fmt: skip

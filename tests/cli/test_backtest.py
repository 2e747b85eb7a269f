"""`turnout backtest`: of a journal at rest and of a running service."""

from __future__ import annotations

import asyncio
import json
import random
import time
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


def asked(data: Path, *words: str, code: int = 0) -> str:
    done = turnout("backtest", *words, "--data", str(data), timeout=120)
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
from turnout import flow, rate_limit, unique, webhook

@flow(
    on=webhook("/orders", verify="none"), when=lambda event: event.data["amount"] > 1,
    key=lambda event: event.data["customer"], mode="skip", timeout="1h",
    unique=unique(lambda event: event.data["id"], until="1h"), rate=rate_limit("1000/1m"),
)
def bill(order: dict[str, object]) -> None: ...
"""


@pytest.mark.full
@pytest.mark.timeout(1200)
async def test_a_hundred_thousand_events_take_half_a_minute(tmp_path: Path, say: Say) -> None:
    flows, data = tmp_path / "flows.py", tmp_path / "data"
    flows.write_text(RULES)
    (bill,) = (await asyncio.to_thread(load, [flows])).flows.values()
    await _filled(data, bill, 100_000)
    began = time.monotonic()
    text = await asyncio.to_thread(asked, data, "bill", "--file", str(flows), "--json")
    took = time.monotonic() - began
    found = json.loads(text)
    assert found["events"] == 100_000 and found["different"] == 0
    say(f"{took:.1f} s for {found['events']:,} events: {found['did']}")
    assert took < 30


async def _filled(data: Path, bill: AnyFlow, count: int) -> None:
    """Fill a journal with events half a second apart; runs end together, every 200 events."""
    dice, began = random.Random(1), utc_now() - timedelta(days=1)
    journal = await open_journal(
        data, metrics=Metrics(), synchronous="normal", max_unfinished_runs=10**9, min_free_bytes=0
    )
    for first in range(0, count, _TOGETHER):
        instants = [began + timedelta(seconds=each / 2) for each in range(first, first + _TOGETHER)]
        entries = [_entry(bill, dice, at) for at in instants]
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
        outcome = Outcome(state=RunState.SUCCEEDED)
        await asyncio.gather(
            *(journal.record(run, outcome, started_at=run.due_at, now=ended) for run in runs)
        )
    await journal.close()


_TOGETHER = 200


def _entry(bill: AnyFlow, dice: random.Random, at: datetime) -> Entry:
    order = {
        "customer": dice.randrange(2000), "id": dice.randrange(10**6),
        "amount": dice.randrange(10), "text": "x" * 200,
    }  # fmt: skip
    event = Event(
        id=mint_id(), source="/hooks/orders", type="turnout.webhook", time=at,
        body=orjson.dumps(order), trigger="webhook:/orders", minted=True,
    )  # fmt: skip
    entry = route(event, [bill]).entry
    for run in entry.runs:
        run.state = RunState.RUNNING
    return entry


def _claimed(run: NewRun, event_seq: int, event: Event) -> ClaimedRun:
    return ClaimedRun(
        claim=Claim(run.seq, run.id, 1), flow=run.flow, event_seq=event_seq, event=event,
        attempt=1, crashes=0, replay=0, order_key=None, keys=run.keys, due_at=event.time,
    )  # fmt: skip

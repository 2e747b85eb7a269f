"""A journal with thirty mixed runs, the same each time: what lists are looked at with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome, RunError, RunState
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import (
    REGISTERED,
    ClaimedRun,
    Decision,
    Entry,
    NewRun,
    Opening,
    StepRecord,
    approval_topic,
)
from turnout.service.telemetry.metrics import Metrics

NOW = datetime(2026, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)
"""The instant at which the lists are looked at."""

TRACEBACK = """Traceback (most recent call last):
  File "/opt/turnout/service/dispatch/executor.py", line 120, in _call
    return await flow.function(**arguments)
  File "/srv/flows/billing.py", line 41, in bill
    await charge(order)
  File "/srv/flows/billing.py", line 17, in charge
    raise ValueError("card declined")
ValueError: card declined
"""

_FLOWS = ("bill", "nightly_report", "import_customer_addresses", "notify")
_TRIGGERS = ("webhook:/orders", "cron:0 9 * * *", "files:/srv/inbox/*.csv", "kafka:orders/billing")
_ERRORS = (
    ("ValueError", "card declined"),
    ("InvalidData", "amount: Input should be a valid number, unable to parse string as a number"),
    (
        "ConnectionError",
        "no answer from payments.example.com:443 within 30 s, tried 4 times\nand on",
    ),
    ("KeyError", "'kundennummer 東京 €'"),
)


def run_id(number: int) -> str:
    """Return the id of a run: it begins with the time, as one that turnout has made."""
    return _minted(number, 0x5EED)


def event_id(number: int) -> str:
    """Return the id of an event: every third is a sender's."""
    if number % 6 == 1:
        return f"order-{number}"
    if number % 6 == 4:
        return f"{number:02x}d3162e-cc78-11e3-81ab-4c9367dc0958"
    return _minted(number, 0xE7E47)


def _minted(number: int, salt: int) -> str:
    ms = int(queued_at(number).timestamp() * 1000)
    chance = (salt + number) * 0x9E3779B97F4A7C15 % 2**48
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{number:03x}-8{number:03x}-{chance:012x}"


def queued_at(number: int) -> datetime:
    """Return when a run was queued: the first ones the day before."""
    return NOW - timedelta(minutes=37 * (30 - number), seconds=7 * number, milliseconds=430)


def make(folder: Path) -> None:
    """Write the journal into a data folder."""
    asyncio.run(_make(folder))


async def _make(folder: Path) -> None:
    journal = await open_journal(
        folder, metrics=Metrics(), max_unfinished_runs=1000, min_free_bytes=0
    )
    try:
        for number in range(30):
            await _add(journal, number)
    finally:
        await journal.close()


async def _add(journal: OpenJournal, number: int) -> None:
    at = queued_at(number)
    kind = number % 10
    flow = _FLOWS[number % 4]
    event = Event(
        id=event_id(number),
        source=("/hooks/orders", "turnout:timers/nightly", "kafka://main/orders/3")[number % 3],
        type=("turnout.webhook.received", "order.placed", "turnout.timer.tick")[number % 3],
        subject=f"customer/{number}" if number % 4 == 0 else None,
        time=at,
        body=b'{"id": "7", "amount": 3, "customer": "acme"}',
        trigger=_TRIGGERS[number % 4],
        minted=number % 6 not in (1, 4),
    )
    state, error = RunState.QUEUED, None
    if kind == 9:  # refused as it came
        state, error = RunState.FAILED, RunError(*_ERRORS[1])
    elif kind == 8:
        state = RunState.SCHEDULED
    run = NewRun(
        id=run_id(number), flow=flow, state=state, error=error, code_version="4f1c02aa",
        due_at=NOW + timedelta(hours=2) if kind == 8 else None,
    )  # fmt: skip
    decisions = [Decision("audit", Reason.FILTERED, "amount is 3")] if kind == 0 else []
    await journal.append([Entry(event=event, runs=[run], decisions=decisions)], now=at)
    if kind < 7:
        stored = await journal.run(run.id)
        assert stored is not None
        claimed = (await journal.claim([stored.seq], now=at + timedelta(seconds=1)))[0]
        await _play(journal, claimed, kind, number, at + timedelta(seconds=1))


def _outcome(kind: int, number: int) -> Outcome:
    log = b'{"at":"2026-03-14T08:00:00.120Z","level":"info","message":"order.priced","net":5}\n'
    error = RunError(*_ERRORS[number % 4], "charge#1", TRACEBACK)
    outcomes = {
        0: Outcome(state=RunState.SUCCEEDED, result=b'{"receipt": "r-17"}', log=log),
        1: Outcome(state=RunState.FAILED, error=error, log=log),
        2: Outcome(state=RunState.SUCCEEDED, result=b"null"),
        3: Outcome(state=RunState.RETRYING, error=error, due_at=NOW + timedelta(seconds=90)),
        4: Outcome(state=RunState.WAITING, waits={"approval#1": 0}, counts=False),
        5: Outcome(state=RunState.FAILED, error=error, undo="failed"),
        6: Outcome(state=RunState.SKIPPED, reason="there was nothing to do"),
    }
    return outcomes[kind]


async def _play(
    journal: OpenJournal, claimed: ClaimedRun, kind: int, number: int, began: datetime
) -> None:
    """Run one attempt, as a service would have."""
    ended = began + timedelta(milliseconds=350 * (number + 1) ** 2)
    for record in _steps(kind, began) if number != 22 else _branched(began):
        await journal.record_step(claimed.claim, record)
    if kind == 4:
        asked = b'{"approval": "the budget of %d", "until": "2026-03-16T08:00:00+00:00"}' % number
        question = StepRecord(
            key="approval#1", task="approval", state="waiting", tries=1, started_at=began,
            result=asked,
        )  # fmt: skip
        topic = approval_topic(claimed.claim.run_id, "approval#1")
        await journal.record_with(claimed.claim, question, opening=Opening(topic=topic), now=began)
    await journal.record(claimed, _outcome(kind, number), started_at=began, now=ended)


def _branched(began: datetime) -> Sequence[StepRecord]:
    """Return the steps of a run with branches that overlap, and with a child."""

    def done(key: str, begin: float, end: float, state: str = "succeeded") -> StepRecord:
        error = RunError("KeyError", "'street'") if state == "failed" else None
        child = key.startswith("notify")
        return StepRecord(
            key=key, task=key.rpartition("/")[2].partition("#")[0].removesuffix(".map"),
            state=state,  # type: ignore[arg-type]
            tries=1, started_at=began + timedelta(seconds=begin), error=error,
            finished_at=began + timedelta(seconds=end), result=b"1",
            origin=run_id(1) if child else None,
        )  # fmt: skip

    return [
        done("read_file#1", 0, 2),
        done("gather#1[0]/pick#1", 2, 4),
        done("gather#1[1]/pick#1", 2, 5),
        done("gather#1[0]/pack#1", 4, 6.5),
        done("gather#1[1]/pack#1", 5.2, 7, "failed"),
        *(done(f"label.map#1[{each}]", 7 + each / 2, 8 + each / 2) for each in range(14)),
        done("notify#1", 15, 20),
        done("total#1", 20, 20.5),
    ]


def _steps(kind: int, began: datetime) -> Sequence[StepRecord]:
    price = StepRecord(
        key="price#1", task="price", state="succeeded", tries=2, started_at=began,
        finished_at=began + timedelta(seconds=1.5), result=b'{"net": 5}',
    )  # fmt: skip
    charge = StepRecord(
        key="charge#1", task="charge", state="failed", tries=1,
        started_at=began + timedelta(seconds=1.6), finished_at=began + timedelta(seconds=1.9),
        error=RunError("ValueError", "card declined", "charge#1"),
    )  # fmt: skip
    if kind in (1, 3):
        return [price, charge]
    if kind == 5:
        undone = StepRecord(
            key="~undo[0]/release#1", task="release", state="failed", tries=4,
            started_at=began + timedelta(seconds=2), finished_at=began + timedelta(seconds=9),
            error=RunError("TimeoutError", "the warehouse does not answer"),
        )  # fmt: skip
        kept = StepRecord(
            key="~on_undo#1", task=REGISTERED, state="succeeded", tries=1, started_at=began
        )
        return [price, charge, undone, kept]
    return [price]

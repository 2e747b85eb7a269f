"""An id that was used: the same event again is a duplicate, another one under it is told so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from tests.support.running import Running, running
from turnout import Fail, current, emit, event, flow, sleep
from turnout.service.domain import cloudevents
from turnout.service.domain.duplicates import digest
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import Entry
from turnout.service.telemetry.metrics import Metrics

ATTRIBUTES = {
    "specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.placed", "subject": "7",
    "partitionkey": "a",
}  # fmt: skip


def binary(data: str, content_type: str = "application/json", **attributes: str) -> Event:
    headers = {f"ce-{name}": [text.encode()] for name, text in (ATTRIBUTES | attributes).items()}
    headers["content-type"] = [content_type.encode()]
    return cloudevents.parse(headers, data.encode(), now=utc_now())


def structured(**members: Any) -> Event:
    document = {name: value for name, value in (ATTRIBUTES | members).items() if value is not None}
    headers = {"content-type": [cloudevents.STRUCTURED.encode()]}
    return cloudevents.parse(headers, json.dumps(document, indent=1).encode(), now=utc_now())


DATA = {"b": [1, 2.5, "ü"], "a": None}


@pytest.mark.parametrize(
    "again",
    [
        binary(json.dumps(DATA)),
        binary(json.dumps(DATA, indent=2, ensure_ascii=False), "Application/JSON; charset=utf-8"),
        structured(data=DATA),
        structured(data=dict(reversed(DATA.items())), datacontenttype="application/json"),
        structured(data=DATA, traceparent="00-1-2-03", time="2026-01-31T09:00:00Z"),
    ],
)
def test_a_cloudevent_is_the_same_in_every_mode(again: Event) -> None:
    assert digest(again) == digest(structured(data=DATA))


@pytest.mark.parametrize(
    "other",
    [
        structured(data={**DATA, "a": 0}),
        structured(data=DATA, type="order.paid"),
        structured(data=DATA, subject="8"),
        structured(data=DATA, subject=None),
        structured(data=DATA, partitionkey="b"),
        structured(data=json.dumps(DATA), datacontenttype="text/plain"),
        structured(),
        structured(data=[1, 2.5, "ü", None]),
    ],
)
def test_another_one_is_not(other: Event) -> None:
    assert digest(other) != digest(structured(data=DATA))


def test_integers_past_64_bits_are_compared_exactly() -> None:
    events = [structured(data=2**64), binary(str(2**64)), structured(data=2**64 + 1)]
    assert digest(events[0]) == digest(events[1]) != digest(events[2])


def plain(**changes: Any) -> Event:
    made = Event(id="d-1", source="/hooks/a", type="t", time=utc_now(), body=b"{}", trigger="w")
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("again", "is_same"),
    [({}, True), ({"body": b"{ }"}, False), ({"type": "u"}, False), ({"subject": "s"}, True)],
)
async def test_other_events_are_compared_by_type_and_bytes(
    tmp_path: Path, again: Mapping[str, Any], is_same: bool
) -> None:
    async with opened(tmp_path) as journal:
        await journal.append([Entry(event=plain())], now=utc_now())
        (appended,) = await journal.append([Entry(event=plain(**again))], now=utc_now())
    assert (appended.duplicate, appended.conflict) == (is_same, not is_same)


@pytest.mark.parametrize(
    ("again", "is_same"), [({}, True), ({"body": b"[]"}, False), ({"type": "u"}, True)]
)
async def test_what_a_journal_kept_before_types_were_compared_stays_a_duplicate(
    tmp_path: Path, again: Mapping[str, Any], is_same: bool
) -> None:
    async with opened(tmp_path) as journal:
        await journal.append([Entry(event=plain())], now=utc_now())
    by_body = blake2b(b"{}", digest_size=16).digest()
    _rewrite(tmp_path, by_body)
    async with opened(tmp_path) as journal:
        (appended,) = await journal.append([Entry(event=plain(**again))], now=utc_now())
    assert (appended.duplicate, appended.conflict) == (is_same, not is_same)


def _rewrite(folder: Path, digest: bytes) -> None:
    connection = apsw.Connection(str(next(folder.rglob("journal.db"))))
    connection.execute("UPDATE dedupe SET body = ?", (digest,))
    connection.close()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[OpenJournal]:
    journal = await open_journal(
        folder, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    try:
        yield journal
    finally:
        await journal.close()


# ---------------------------------------------------------------- emitted by a run


@flow(on=event("order.paid"))
async def paid(data: dict[str, int]) -> int:
    return data["n"]


@flow(on=event("order.sent"))
async def sent() -> None: ...


@flow(name="shop")
async def shop(data: dict[str, Any]) -> str:
    return await emit(
        data.get("type", "order.paid"), {"n": data["n"]}, id="o-1", subject=data.get("subject")
    )


async def emitted(service: Running, **data: Any) -> tuple[Any, Any]:
    """Run `shop`; returns the run and its step."""
    service.emitter.flows = lambda _event: (shop,)
    run = await service.finished((await service.send(data)).runs[0])
    (step,) = await service.process.journal.steps(run.seq)
    return run, step


FLOWS: list[Flow[..., Any]] = [shop, paid, sent]


async def test_the_same_event_emitted_again_is_a_duplicate_and_the_step_says_so(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, FLOWS) as service:
        run, step = await emitted(service, n=1)
        assert (run.result, step.result) == (b'"o-1"', b'"o-1"')
        run, step = await emitted(service, n=1)
        assert (run.state, run.result) == (RunState.SUCCEEDED, b'"o-1"')
        assert orjson.loads(step.result) == {"event": "o-1", "duplicate": True}
        runs = await service.all_finished()
    assert [run.flow for run in runs].count("paid") == 1


@pytest.mark.parametrize(
    "other", [{"n": 2}, {"n": 1, "type": "order.sent"}, {"n": 1, "subject": "s"}]
)
async def test_another_event_under_a_used_id_fails_the_step_by_name(
    tmp_path: Path, other: Mapping[str, Any]
) -> None:
    async with running(tmp_path, FLOWS) as service:
        await emitted(service, n=1)
        run, step = await emitted(service, **other)
        assert (run.state, step.state, step.key) == (RunState.FAILED, "failed", "emit#1")
        assert run.error.type == "failed" and run.error.step == "emit#1"
        assert "o-1" in run.error.message and "used before" in run.error.message
        runs = await service.all_finished()
        (stored,) = await service.process.journal.event("o-1")
    assert [run.flow for run in runs].count("paid") == 1
    assert "sent" not in [run.flow for run in runs]
    assert [made["reason"] for made in stored.decisions] == ["conflict"]


async def test_a_flow_may_go_on_after_it_and_does_so_again_when_it_is_resumed(
    tmp_path: Path,
) -> None:
    heard: list[str] = []
    ahead = timedelta(0)

    @flow(name="shop")
    async def careful(data: dict[str, int]) -> str:
        first = await emit("order.paid", {"n": 1}, id="o-1")
        again = await emit("order.paid", {"n": 1}, id="o-1")
        try:
            await emit("order.paid", {"n": 2}, id="o-1")
        except Fail as error:
            heard.append(str(error))
        await sleep("1h")
        current().log.info("went on")
        return f"{first} {again}"

    async with running(tmp_path, [careful, paid], now=lambda: utc_now() + ahead) as service:
        service.emitter.flows = lambda _event: (careful,)
        run_id = (await service.send({})).runs[0]
        await service.until(run_id, RunState.WAITING)
        ahead = timedelta(hours=1)
        service.process.clock_set()
        run = await service.finished(run_id)
    assert run.result == b'"o-1 o-1"'
    assert len(heard) == 2 and len(set(heard)) == 1

"""Each verb has a handler and a route, and travels over HTTP without a loss."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx

from turnout.service.cli.session import ServiceSession
from turnout.service.client import Client
from turnout.service.domain.alerts import AlertRule
from turnout.service.domain.event import NO_BODY, Event
from turnout.service.domain.run import Run, RunError, RunState
from turnout.service.domain.trigger import Receipt, Seek, SeekPlan
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.governance.links import Links
from turnout.service.http.rest.application import create_rest
from turnout.service.http.rest.routes import ROUTES, route_of
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.records import (
    Filter,
    StoredAlert,
    StoredOverride,
    StoredPause,
    StoredWindow,
)
from turnout.service.operate import operator, verbs
from turnout.service.operate.operator import Operator
from turnout.service.operate.parts import HANDLERS, PLANNERS
from turnout.service.operate.verbs import (
    Answer,
    Cancel,
    CancelAll,
    ClearCache,
    ClearState,
    Drop,
    DropWindow,
    Emit,
    Fire,
    FireWindow,
    MuteAlert,
    Pause,
    Replay,
    ReplayDead,
    ResetLimit,
    Resume,
    Resumed,
    Retry,
    RetryAll,
    SeekTrigger,
    SetLimit,
    Verb,
)
from turnout.service.project import Project
from turnout.service.settings import Settings

NOW = datetime(2026, 1, 31, 9, 0, 0, 123456, tzinfo=UTC)

RUN = Run(
    seq=1, arrival=1, id="r", flow="bill", state=RunState.QUEUED, attempts=0, crashes=0,
    event_id="e", event_source="/s", trigger="t", tenant="default", queued_at=NOW, due_at=None,
    started_at=None, finished_at=None, result=None, error=None, reason=None, dead=False, replay=0,
    order_key=None, keys=None, code_version="",
)  # fmt: skip

OVERRIDE = StoredOverride(name="limit:db", count=3, since=NOW, until=NOW, note="why", by="ada")
ALERT = StoredAlert(
    id=7, flow="bill", rule=AlertRule.FAILURE, cause="OSError in charge", opened_at=NOW,
    last_at=NOW, count=3, error=RunError("OSError", "no answer"), run_id="r", told_count=1,
    told_at=NOW, messages=1, muted_until=NOW, muted_by="ada", note="why", ended_at=None, ended=None,
)  # fmt: skip
PAUSED = StoredPause(name="flow:bill", since=NOW, until=NOW, note="why", by="ada")

WINDOW = StoredWindow(
    seq=1, id="w", flow="bill", key="", settings=WindowSettings(kind="count", count=5, within=60),
    state="fired", opened_at=NOW, due_at=NOW, remaining_seconds=None, closed_at=NOW, members=3,
    bytes=17, run="r",
)  # fmt: skip


def an_event(**changed: Any) -> Event:
    event = Event(
        id="order/7 ä", source="/shop?x=1", type="order.placed", time=NOW, specversion="1.0",
        datacontenttype="application/json", body=b'{"b": 1.0e5, "a": 123456789012345678901234}',
        subject="a \u2028 b", extensions={"traceparent": "00-1", "n": "5"},
    )  # fmt: skip
    return replace(event, **changed)


EXAMPLES: list[tuple[Verb[Any], Any]] = [
    (Cancel("run 1?#ä"), RUN),
    (Cancel("r", "ordered twice", "ada"), RUN),
    (CancelAll(Filter(flow="a & b", state=RunState.WAITING), "sale over", "ada"), [RUN]),
    (CancelAll(Filter(trigger="webhook:/x", event="e/1", since=NOW, until=NOW)), []),
    (Retry("r"), RUN),
    (Retry("r", "~undo[0]/charge#1 &?"), RUN),
    (Retry("r", force=True), RUN),
    (RetryAll(Filter(since=NOW)), [RUN, RUN]),
    (Answer("r", approved=False, by="ada"), RUN),
    (Answer("r", approved=True, fields={"n": 2**70}, reason="why", by="ada", step="a[1]#1"), RUN),
    (Drop("r"), RUN),
    (ReplayDead("r"), ["a"]),
    (ReplayDead("r", True), ["a"]),
    (Replay("orders/7 ?#%2F"), ["a", "b"]),
    (Replay("e", "/shop?x=1&y", True), []),
    (Replay("e", force=True), []),
    (Emit(an_event()), Receipt(event="e", runs=("r",))),
    (Emit(an_event(body=NO_BODY, datacontenttype=None, subject=None)), Receipt(event="e")),
    (Emit(an_event(body=b"", datacontenttype="text/plain", encoding="text")), Receipt(event="e")),
    (
        Emit(an_event(body=b"\xff\x00", datacontenttype="image/png", encoding="bytes")),
        Receipt(event="e"),
    ),
    (Emit(an_event(extensions={}, body=b"null")), Receipt(event="e", duplicate=True)),
    (Pause("trigger:webhook:/orders/{id}", by="api"), PAUSED),
    (Pause("*", timedelta(hours=1, milliseconds=1), "why ä & so", "ada"), PAUSED),
    (Resume("webhook:/orders/{id}", by="api"), Resumed("trigger:webhook:/orders/{id}")),
    (Resume("*", discard=True, by="ada & bob"), Resumed("*", True, 3, NOW, 2, (PAUSED,))),
    (Resume("bill", by=""), Resumed("flow:bill", was_paused=False)),
    (SetLimit("db & co", 3, timedelta(hours=2), by="api"), OVERRIDE),
    (SetLimit("bill/limit.2", 1, timedelta(milliseconds=1), "why ä", "ada"), OVERRIDE),
    (ResetLimit("limit:db", by="api"), "limit:db"),
    (MuteAlert("7", by="api"), ALERT),
    (MuteAlert("8", timedelta(hours=2), "why ä", "ada"), ALERT),
    (ResetLimit("flow:bill/limit.2", "ada"), "flow:bill/limit.2"),
    (FireWindow("w 1?", by="api"), WINDOW),
    (FireWindow("w", "ada & bob"), WINDOW),
    (DropWindow("w", by="ada"), WINDOW),
    (Fire("cron:0 9 * * *"), Receipt(event="e")),
    (Fire("webhook:/orders", b'{"n": 1.0e5}', force=True), Receipt(event="e")),
    (SeekTrigger("kafka:orders/billing", Seek(to="end", asked_at=NOW)), SeekPlan(
        positions={}, sentences=["moved"]
    )),
    (SeekTrigger("n", Seek(to="4711", partition="3", rerun=True, asked_at=NOW), dry_run=True),
     SeekPlan(positions={}, sentences=[])),
    (ClearCache(), 3),
    (ClearCache("fetch & more"), 0),
    (ClearState("a/b & c", by="api"), 3),
    (ClearState("poll", "", "ada"), 1),
    (ClearState("orders", "ä & b/c", "ada"), 1),
]  # fmt: skip


def every_verb() -> set[type[Verb[Any]]]:
    return {
        kind
        for kind in vars(verbs).values()
        if isinstance(kind, type) and issubclass(kind, Verb) and kind is not Verb
    }


def test_every_verb_has_a_handler_a_plan_a_route_and_an_example() -> None:
    assert operator.SUBJECTS
    assert set(HANDLERS) == set(PLANNERS) == every_verb()
    assert {route.verb for route in ROUTES} == every_verb()
    assert {type(verb) for verb, _ in EXAMPLES} == every_verb()


class Listener:
    """Notes the verbs it is asked for, and returns what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Verb[Any]] = []
        self.planned: list[Verb[Any]] = []
        self.returns: Any = None

    async def do(self, verb: Verb[Any]) -> Any:
        self.asked.append(verb)
        return self.returns

    async def plan(self, verb: Verb[Any]) -> list[str]:
        self.planned.append(verb)
        return ["do this", "and that"]


@dataclass
class Served:
    """A service that has nothing but an operator."""

    settings: Settings
    operator: Operator
    uses: Any = tuple
    now: Any = lambda: NOW
    project: Project = field(default_factory=Project)
    journal: Any = None
    emitters: Mapping[str, TriggerEmitter] = field(default_factory=dict)
    links: Links = field(default_factory=lambda: Links(b"k" * 32, "http://desk"))
    waits_for: Any = None
    suspended: Any = dict


async def test_the_service_reads_the_verb_that_the_command_sends(tmp_path: Path) -> None:
    listener = Listener()
    chosen: dict[str, Any] = {"data": tmp_path, "api_token": "a-token-of-enough-length"}
    served = Served(Settings(**chosen), cast("Operator", listener))
    transport = httpx.ASGITransport(await to_thread(create_rest, served))
    headers = {"Authorization": "Bearer a-token-of-enough-length"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://desk", headers=headers
    ) as http:
        session = ServiceSession(Client(http), served.settings)
        for verb, returned in EXAMPLES:
            listener.returns = returned
            document = await session.do(verb)
            assert listener.asked[-1] == verb
            assert document == route_of(verb).document(verb, returned)
            planned = await session.plan(verb)
            assert (listener.planned[-1], len(listener.asked)) == (verb, len(listener.planned))
            assert planned == {"dry_run": True, "done": ["do this", "and that"]}

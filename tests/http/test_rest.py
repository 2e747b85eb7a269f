"""The operators' API over a real journal: who may call it, what it answers, how it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Outcome, Run, RunError, RunState, Undo
from turnout.service.domain.units import utc_now
from turnout.service.domain.waiting import Waiting
from turnout.service.flowcontrol.use import Use
from turnout.service.governance import guesses
from turnout.service.governance.links import Links
from turnout.service.http.clients import Proxies
from turnout.service.http.rest.application import create_rest
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import (
    ClaimedRun,
    Decision,
    Entry,
    Filter,
    Move,
    NewRun,
    StepRecord,
)
from turnout.service.operate import documents
from turnout.service.operate.operator import Operator
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.kafka import kafka
from turnout.triggers.timers import every

TOKEN = "a-token-of-enough-length"


def bill() -> None: ...


PROJECT = Project.of([Flow(function=bill, name="bill", file=__file__, line=30)])


@dataclass
class Desk:
    """A journal at rest with the API in front of it."""

    journal: OpenJournal
    operator: Operator
    settings: Settings
    project: Project = PROJECT
    emitters: Mapping[str, TriggerEmitter] = field(default_factory=dict)
    now: Any = utc_now
    links: Links = field(default_factory=lambda: Links(b"k" * 32, "http://desk"))
    app: FastAPI = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    uses: Callable[[], Sequence[Use]] = tuple
    suspended: Callable[[], Mapping[str, str]] = dict

    def waits_for(self, run: Run) -> Waiting | None:
        """No service runs here."""

    async def append(
        self, state: RunState = RunState.QUEUED, *, flow: str = "bill", body: bytes = b"{}",
        source: str = "/shop", event_id: str = "", error: RunError | None = None,
    ) -> str:  # fmt: skip
        """Store an event with one run; returns the run's id."""
        run = NewRun(id=mint_id(), flow=flow, state=state, error=error)
        event = Event(
            id=event_id or mint_id(), source=source, type="order.placed", time=utc_now(),
            body=body, trigger="webhook:/orders", minted=not event_id,
        )  # fmt: skip
        await self.journal.append(
            [
                Entry(
                    event=event,
                    runs=[run],
                    decisions=[Decision("audit", Reason.FILTERED, "amount")],
                )
            ],
            now=utc_now(),
        )
        return run.id

    async def fail(self, *, undo: Undo | None = None) -> str:
        """Store a run that failed in its step `charge#1`, one step recorded, two lines logged."""
        run_id = await self.append()
        run = await self.journal.run(run_id)
        assert run is not None
        claimed: ClaimedRun = (await self.journal.claim([run.seq], now=utc_now()))[0]
        at = utc_now()
        await self.journal.record_step(
            claimed.claim,
            StepRecord(
                key="price#1", task="price", state="succeeded", tries=1, started_at=at,
                finished_at=at + timedelta(seconds=2), result=b'{"net": 5}',
            ),
        )  # fmt: skip
        outcome = Outcome(
            state=RunState.FAILED,
            error=RunError("ValueError", "no such card", "charge#1", "Traceback: line 7"),
            undo=undo,
            log=b'{"level":"info","message":"order.priced"}\n{"level":"error","message":"x"}\n',
        )
        await self.journal.record(claimed, outcome, started_at=at, now=utc_now())
        return run_id

    async def end(self, result: bytes) -> None:
        """Store a run that succeeded with a result."""
        run = await self.journal.run(await self.append())
        assert run is not None
        claimed: ClaimedRun = (await self.journal.claim([run.seq], now=utc_now()))[0]
        outcome = Outcome(state=RunState.SUCCEEDED, result=result)
        await self.journal.record(claimed, outcome, started_at=utc_now(), now=utc_now())

    async def get(self, path: str, **params: str) -> Any:
        answer = await self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **params: str) -> Any:
        answer = await self.http.post(path, params=params)
        assert answer.is_success, answer.text
        return answer.json()


@asynccontextmanager
async def open_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    journal = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=1000, min_free_bytes=0
    )
    chosen: dict[str, Any] = {"data": tmp_path, "api_token": TOKEN, "max_body_bytes": 2000}
    settings = Settings(**chosen)
    try:
        desk = Desk(journal, Operator(journal=journal, now=utc_now), settings)
        desk.app = await to_thread(create_rest, desk)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(desk.app),
            base_url="http://desk",
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as desk.http:
            yield desk
    finally:
        await journal.close()


def assert_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    for word in words:
        assert word in problem["detail"]
    return problem


# ---------------------------------------------------------------- the token


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x",
     "Bearer \u00e9\u00e9"],
)  # fmt: skip
async def test_without_the_token_nothing_is_told(tmp_path: Path, authorization: str | None) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.append()
        del desk.http.headers["Authorization"]
        headers = [] if authorization is None else [(b"Authorization", authorization.encode())]
        for method, path in (
            ("GET", "/api/runs"), ("GET", f"/api/runs/{run_id}"), ("POST", "/api/events"),
            ("POST", f"/api/runs/{run_id}/cancel"), ("DELETE", "/api/pauses/flow:bill"),
        ):  # fmt: skip
            answer = await desk.http.request(method, path, headers=headers)
            assert_problem(answer, 401, "Authorization: Bearer")
            assert answer.headers["www-authenticate"] == "Bearer"
        run = await desk.journal.run(run_id)
        assert run is not None
        assert run.state is RunState.QUEUED


async def test_two_tokens_are_none(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        del desk.http.headers["Authorization"]
        right, wrong = f"Bearer {TOKEN}".encode(), b"Bearer wrong"
        for both in ([right, wrong], [wrong, right], [right, right]):
            headers = [(b"Authorization", one) for one in both]
            assert_problem(await desk.http.get("/api/runs", headers=headers), 401)


async def test_who_guesses_waits_and_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "FREE", 0)
    held, four_wait, waits = asyncio.Event(), asyncio.Event(), count(1)

    async def hold(_seconds: float) -> None:
        if next(waits) == 4:
            four_wait.set()
        await held.wait()

    async with open_desk(tmp_path) as desk:
        desk.app.state.guesses = guesses.Guesses(sleep=hold)
        desk.app.state.proxies = Proxies(["127.0.0.1"])

        async def ask(client: str, token: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": client}
            return await desk.http.get("/api/runs", headers=headers)

        async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
            waiting = [tasks.create_task(ask("203.0.113.7", "wrong")) for _ in range(4)]
            await four_wait.wait()
            flooded = await ask("203.0.113.7", "wrong")
            assert flooded.headers["retry-after"] == "1"
            assert_problem(flooded, 429)
            assert (await ask("203.0.113.8", TOKEN)).status_code == 200
            held.set()
        assert [one.result().status_code for one in waiting] == [401] * 4
        assert (await ask("203.0.113.7", TOKEN)).status_code == 200


async def test_every_answer_is_taken_for_what_it_says_it_is(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        for path in ("/docs", "/openapi.json", "/api/runs", "/approvals/x", "/nothing"):
            answer = await desk.http.get(path)
            assert answer.headers["x-content-type-options"] == "nosniff", path


async def test_the_scheme_is_read_in_any_case(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        answer = await desk.http.get("/api/runs", headers={"Authorization": f"bearer {TOKEN}"})
        assert answer.status_code == 200


# ---------------------------------------------------------------- reading


async def test_runs_come_newest_first_page_by_page(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        made = [await desk.append() for _ in range(5)]
        seen: list[str] = []
        cursor: str | None = None
        pages = 0
        while True:
            page = await desk.get("/api/runs", limit="2", **({"cursor": cursor} if cursor else {}))
            seen += [run["id"] for run in page["items"]]
            cursor, pages = page["next"], pages + 1
            if cursor is None:
                break
        assert seen == made[::-1]
        assert pages == 3


async def test_an_event_and_a_run_are_explained(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.append(event_id="order-9")
        (event,) = (await desk.get("/api/why/order-9"))["items"]
        (run,) = (await desk.get(f"/api/why/{run_id}"))["items"]
        assert (await desk.get("/api/waits", run=run_id))["items"] == []
        assert (await desk.http.get("/api/why/none")).status_code == 404
    answers = {flow["flow"]: flow["answer"] for flow in event["flows"]}
    assert answers == {"bill": "started", "audit": "filtered"}
    assert (run["id"], run["because"]) == (run_id, "it is queued")


async def test_a_run_in_a_list_is_the_public_object(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = await desk.journal.run(await desk.fail())
        assert run is not None
        assert (await desk.get("/api/runs"))["items"] == [run.as_dict() | {"waits_for": None}]


async def test_a_list_leaves_out_large_results_and_says_how_large(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        for size in (4096, 4097, 2**20):
            await desk.end(b'"' + b"x" * (size - 2) + b'"')
        for path in ("/api/runs", "/api/runs?state=succeeded", "/api/runs?flow=bill"):
            listed = (await desk.get(path))["items"]
            assert [run["result_bytes"] for run in listed] == [2**20, 4097, 4096]
            assert [run["result"] for run in listed] == [None, None, "x" * 4094]
        for run in listed:
            assert len((await desk.get(f"/api/runs/{run['id']}"))["result"]) > 4000


async def test_a_list_of_events_does_not_read_what_they_carry(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.append(body=b'{"a": 1}')
        (stored,) = await desk.journal.events(Filter())
        assert not stored.event.body
        (listed,) = (await desk.get("/api/events"))["items"]
        told = await desk.get(f"/api/events/{listed['id']}")
        assert told["data"] == {"a": 1}
        assert listed.items() <= told.items()


async def test_a_run_leaves_out_results_of_steps_past_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "SHOWN_STEPS_BYTES", 10)
    async with open_desk(tmp_path) as desk:
        run_id = await desk.append()
        run = await desk.journal.run(run_id)
        assert run is not None
        claimed = (await desk.journal.claim([run.seq], now=utc_now()))[0]
        for key, result in (("a#1", b'"1234"'), ("b#1", b"1234"), ("c#1", b"1")):
            step = StepRecord(
                key=key, task="a", state="succeeded", tries=1, started_at=utc_now(),
                finished_at=utc_now(), result=result,
            )  # fmt: skip
            await desk.journal.record_step(claimed.claim, step)
        steps = (await desk.get(f"/api/runs/{run_id}"))["steps"]
        assert [(step["result"], step["left_out"]) for step in steps] == [
            ("1234", False), (1234, False), (None, True),
        ]  # fmt: skip
        assert [step.result for step in await desk.journal.steps(run.seq)][2] == b"1"


async def test_filters_select(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.append(flow="other")
        failed = await desk.fail()
        for filters in ({"flow": "bill"}, {"state": "failed"}, {"flow": "bill", "since": "1h"}):
            items = (await desk.get("/api/runs", **filters))["items"]
            assert [run["id"] for run in items] == [failed]
        assert (await desk.get("/api/runs", until="1h"))["items"] == []
        assert (await desk.get("/api/runs", trigger="files:x"))["items"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("state=broken", "state"), ("since=yesterday", "since"), ("limit=0", "limit"),
     ("limit=x", "limit"), ("cursor=-1", "cursor"), ("flw=bill", "flw")],
)  # fmt: skip
async def test_a_filter_that_cannot_be_read_is_named(
    tmp_path: Path, query: str, field: str
) -> None:
    async with open_desk(tmp_path) as desk:
        answer = await desk.http.get(f"/api/runs?{query}")
        assert assert_problem(answer, 422, field)["field"] == field


async def test_a_run_is_told_in_full(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.fail()
        run = await desk.get(f"/api/runs/{run_id}")
        assert run["error"] == {
            "type": "ValueError", "message": "no such card", "step": "charge#1",
            "traceback": "Traceback: line 7",
        }  # fmt: skip
        step = run["steps"][0]
        assert (step["key"], step["state"], step["seconds"]) == ("price#1", "succeeded", 2.0)
        assert step["result"] == {"net": 5}
        assert [line["message"] for line in run["history"][0]["log"]] == ["order.priced", "x"]
        assert run["event"]["type"] == "order.placed"
        assert run["dead"] is True


async def test_unknown_things_are_404(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        assert_problem(await desk.http.get("/api/runs/nope"), 404, "nope")
        assert_problem(await desk.http.get("/api/events/nope"), 404, "nope")
        assert_problem(await desk.http.post("/api/runs/nope/retry"), 404, "nope")
        assert_problem(await desk.http.get("/api/nothing"), 404)
        assert_problem(await desk.http.put("/api/runs"), 405)


async def test_an_event_has_its_payload_runs_and_reasons(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.append(event_id="orders/7", body=b'{"n": 18446744073709551616}')
        event = await desk.get("/api/events/orders%2F7")
        assert event["runs"] == [run_id]
        assert event["data"] == {"n": 2**64}
        assert event["decisions"][0]["flow"] == "audit"
        assert event["decisions"][0]["reason"] == "filtered"
        listed = (await desk.get("/api/events"))["items"]
        assert [one["id"] for one in listed] == ["orders/7"]
        assert "data" not in listed[0]


async def test_an_event_that_does_not_decode_is_shown_as_bytes(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.append(event_id="e1", body=b"\xff{")
        assert (await desk.get("/api/events/e1"))["data_base64"] == "/3s="


async def test_one_id_from_two_sources_asks_which(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.append(event_id="7", source="/a")
        await desk.append(event_id="7", source="/b")
        assert_problem(await desk.http.get("/api/events/7"), 409, "/a, /b")
        assert (await desk.get("/api/events/7", source="/a"))["source"] == "/a"


async def test_an_id_that_many_sources_share_fills_no_memory(tmp_path: Path) -> None:
    large = b'"%s"' % (b"x" * 9 * 2**20)
    async with open_desk(tmp_path) as desk:
        runs = [
            await desk.append(event_id="1", source=f"/s/{number}", body=body)
            for number, body in enumerate([b'"12345"', large, large])
        ]
        assert len(await desk.journal.event("1")) == 2
        assert_problem(await desk.http.get("/api/events/1"), 409, "several sources")
        assert (await desk.get("/api/events/1", source="/s/0"))["data"] == "12345"
        told = await desk.get(f"/api/runs/{runs[0]}")
        assert told["event"]["source"] == "/s/0"


async def test_flows_say_what_they_declare(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.http.post("/api/pauses", json={"name": "flow:bill"})
        [flow] = (await desk.get("/api/flows"))["items"]
        assert (flow["name"], flow["line"], flow["retries"]) == ("bill", 30, 0)
        assert flow["paused_at"] is not None
        assert (await desk.get("/api/triggers"))["items"] == []


# ---------------------------------------------------------------- acting


async def test_retry_and_cancel_move_a_run(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.fail()
        assert (await desk.post(f"/api/runs/{run_id}/retry"))["state"] == "queued"
        assert (await desk.post(f"/api/runs/{run_id}/cancel"))["state"] == "cancelled"
        assert_problem(await desk.http.post(f"/api/runs/{run_id}/cancel"), 409, "cancelled")


async def test_a_cancel_keeps_why_and_who(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        said = {"reason": "ordered twice", "by": "ada"}
        path = f"/api/runs/{await desk.append()}/cancel"
        run = (await desk.http.post(path, json=said)).json()
        assert (run["reason"], run["cancelled_by"]) == ("ordered twice", "ada")
        run = await desk.post(f"/api/runs/{await desk.append()}/cancel")
        assert (run["reason"], run["cancelled_by"]) == (None, "api")
        await desk.append()
        many = await desk.http.post("/api/runs/cancel?flow=bill", json=said)
        [run_id] = many.json()["runs"]
        assert (await desk.get(f"/api/runs/{run_id}"))["cancelled_by"] == "ada"
        path = f"/api/runs/{await desk.append()}/cancel"
        wrong: Any
        for wrong in ([], {"why": "x"}, {"reason": 3}):
            assert (await desk.http.post(path, json=wrong)).status_code == 422, wrong


async def test_a_replay_beside_what_is_not_undone_says_that_it_knows(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.fail(undo="failed")
        event_id = (await desk.get(f"/api/runs/{run_id}"))["event_id"]
        for path in (f"/api/events/{event_id}/replay", f"/api/dead/{run_id}/replay"):
            assert_problem(await desk.http.post(path), 409, '"not_undone": true')
            assert_problem(await desk.http.post(path, json={"not_undone": False}), 409, "retry")
            assert (await desk.http.post(path, json={"not_undone": 1})).status_code == 422
            again = await desk.http.post(path, json={"not_undone": True})
            assert again.status_code == 200 and len(again.json()["runs"]) == 1
        assert run_id in [run["id"] for run in (await desk.get("/api/dead"))["items"]]
        assert (await desk.post(f"/api/runs/{run_id}/retry"))["state"] == "queued"


async def test_retry_from_a_step_forgets_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.fail()
        await desk.post(f"/api/runs/{run_id}/retry", **{"from": "price#1"})
        assert (await desk.get(f"/api/runs/{run_id}"))["steps"] == []


async def test_bulk_actions_take_what_fits_and_nothing_else(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        failed = {await desk.fail(), await desk.fail()}
        other = await desk.append(flow="other")
        answer = await desk.post("/api/runs/retry", flow="bill", state="failed")
        assert (answer["count"], set(answer["runs"])) == (2, failed)
        answer = await desk.post("/api/runs/cancel", flow="bill")
        assert set(answer["runs"]) == failed
        assert (await desk.get(f"/api/runs/{other}"))["state"] == "queued"


@pytest.mark.parametrize("query", ["", "?flw=bill", "?flow=", "?flow=bill&limit=1"])
async def test_a_bulk_action_without_a_sound_filter_does_nothing(
    tmp_path: Path, query: str
) -> None:
    async with open_desk(tmp_path) as desk:
        run_id = await desk.append()
        assert_problem(await desk.http.post(f"/api/runs/cancel{query}"), 422)
        assert (await desk.get(f"/api/runs/{run_id}"))["state"] == "queued"


async def test_dead_letters_are_replayed_or_dropped(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        first, second = await desk.fail(), await desk.fail()
        assert [run["id"] for run in (await desk.get("/api/dead"))["items"]] == [second, first]
        [new] = (await desk.post(f"/api/dead/{first}/replay"))["runs"]
        assert (await desk.get(f"/api/runs/{new}"))["replay"] == 1
        await desk.post(f"/api/dead/{second}/drop")
        assert (await desk.get("/api/dead"))["items"] == []
        assert_problem(await desk.http.post(f"/api/dead/{second}/drop"), 409)


async def test_an_event_is_replayed(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.append(event_id="orders/7")
        [new] = (await desk.post("/api/events/orders%2F7/replay"))["runs"]
        assert (await desk.get(f"/api/runs/{new}"))["event_id"] == "orders/7"


async def test_pauses_are_made_listed_and_undone(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        name = "trigger:webhook:/orders"
        asked = {"name": name, "for": "1h", "note": "why", "by": "ada"}
        paused = (await desk.http.post("/api/pauses", json=asked)).json()
        assert paused.pop("paused") is True
        assert (await desk.get("/api/pauses"))["items"] == [paused]
        assert (paused["name"], paused["note"], paused["by"]) == (name, "why", "ada")
        length = datetime.fromisoformat(paused["until"]) - datetime.fromisoformat(
            paused["paused_at"]
        )
        assert length == timedelta(hours=1)
        resumed = (await desk.http.delete(f"/api/pauses/{name}")).json()
        assert (resumed["name"], resumed["was_paused"], resumed["waiting"]) == (name, True, 0)
        assert (await desk.get("/api/pauses"))["items"] == []
        assert_problem(await desk.http.post("/api/pauses", content=b"[]"), 422, "name")
        assert_problem(await desk.http.post("/api/pauses", content=b"{"), 422, "not JSON")
        for odd, words in (
            ({"name": name, "for": "soon"}, "cannot read the duration"),
            ({"name": name, "for": 3600}, 'for is a duration such as "1h"'),
            ({"name": name, "for": "0s"}, "longer than 0s"),
            ({"name": name, "until": "1h"}, "there are name, for, note, by"),
            ({"name": name, "note": 7}, "note is text"),
        ):
            assert_problem(await desk.http.post("/api/pauses", json=odd), 422, words)


async def test_everything_is_paused_and_what_waited_is_discarded(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.http.post("/api/pauses", json={"name": "*"})
        [flow] = (await desk.get("/api/flows"))["items"]
        assert flow["pause"]["name"] == "*"
        run_id = await desk.append()
        resumed = (await desk.http.delete("/api/pauses/*", params={"discard": "true"})).json()
        assert (resumed["waiting"], resumed["discarded"], resumed["still"]) == (1, 1, [])
        run = await desk.get(f"/api/runs/{run_id}")
        assert run["reason"] == "dropped: api discarded what waited"


async def test_limits_are_listed_set_and_reset(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.uses = lambda: [
            Use(
                kind="limit", name="bill", full_name="flow:bill/limit", rule="limit(2)",
                flows=("bill",), used=1, max=5, declared=2,
            )
        ]  # fmt: skip
        await desk.append()
        asked = {"count": 5, "for": "2h", "note": "month end", "by": "ada"}
        made = (await desk.http.put("/api/limits/flow:bill/limit", json=asked)).json()
        assert (made["name"], made["count"], made["note"]) == ("flow:bill/limit", 5, "month end")
        [row] = (await desk.get("/api/limits"))["items"]
        assert (row["name"], row["used"], row["max"], row["declared"]) == ("bill", 1, 5, 2)
        assert (row["queued"], row["override"]) == (1, made)
        assert (await desk.http.delete("/api/limits/flow:bill")).json() == {"name": made["name"]}
        [row] = (await desk.get("/api/limits"))["items"]
        assert row["override"] is None
        for odd, status, words in (
            ({"count": 5}, 422, "say for how long"),
            ({"count": "5", "for": "2h"}, 422, "count is a whole number"),
            ({"count": True, "for": "2h"}, 422, "count is a whole number"),
            ({"count": 0, "for": "2h"}, 422, "turnout pause"),
            ({"count": 5, "for": "0s"}, 422, "longer than 0s"),
            ({"count": 5, "for": "2h", "until": "x"}, 422, "there are count, for, note, by"),
        ):
            answer = await desk.http.put("/api/limits/flow:bill", json=odd)
            assert_problem(answer, status, words)
        assert_problem(await desk.http.delete("/api/limits/flow:bill"), 409, "not overridden")


async def test_what_needs_the_service_says_so(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        assert_problem(await desk.http.post("/api/triggers/every:5m/fire"), 404, "every:5m")
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
        answer = await desk.http.post(
            "/api/events", content=json.dumps(event),
            headers={"Content-Type": "application/cloudevents+json"},
        )  # fmt: skip
        assert_problem(answer, 409, "running service")


async def test_an_event_that_is_no_cloudevent_is_refused_by_field(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        answer = await desk.http.post(
            "/api/events", content=b'{"specversion": "1.0", "id": "1", "source": "/s"}',
            headers={"Content-Type": "application/cloudevents+json"},
        )  # fmt: skip
        assert assert_problem(answer, 422, "type")["field"] == "type"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_past_the_limit_is_refused(tmp_path: Path, declared: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    async with open_desk(tmp_path) as desk:
        body = b"x" * 3000 if declared else chunks()
        answer = await desk.http.post(
            "/api/events", content=body, headers={"Content-Type": "application/cloudevents+json"}
        )
        assert_problem(answer, 413)


async def test_brokers_that_a_seek_cannot_reach_are_named(tmp_path: Path) -> None:
    reads = Flow(
        function=bill, name="bill", file=__file__, line=30, triggers=(kafka("t", group="g"),)
    )
    with socket.socket() as taken:  # and nobody listens there
        taken.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{taken.getsockname()[1]}"
        chosen: dict[str, Any] = {"kafka_bootstrap_servers": server}
        async with open_desk(tmp_path) as desk:
            desk.operator = Operator(
                journal=desk.journal,
                now=utc_now,
                project=lambda: Project.of([reads]),
                connection=Settings(**chosen).connection,
            )
            answer = await desk.http.post("/api/triggers/kafka:t/g/seek", json={"to": "end"})
            assert_problem(answer, 503, f"cannot reach Kafka at {server}")


async def test_a_timer_is_sought_to_now_from_a_tick_far_ahead(tmp_path: Path) -> None:
    timer = every("1m", name="minutely")
    flow = Flow(function=bill, name="bill", file=__file__, line=30, triggers=(timer,))
    async with open_desk(tmp_path) as desk:
        ahead = {"tick": "2999-01-01T00:00:00Z", "ahead": "2999-01-01T00:00:00Z"}
        moves = {each: Move(None, to) for each, to in ahead.items()}
        await desk.journal.append([], trigger="minutely", positions=moves, now=utc_now())
        desk.operator = Operator(
            journal=desk.journal,
            now=utc_now,
            project=lambda: Project.of([flow]),
            connection=desk.settings.connection,
        )
        path = "/api/triggers/minutely/seek"
        before = utc_now()
        tried = await desk.http.post(path, json={"to": "now", "dry_run": True})
        assert "2999" in tried.json()["done"][0]
        assert await desk.journal.positions("minutely") == ahead
        assert (await desk.http.post(path, json={"to": "now"})).status_code == 200
        stored = await desk.journal.positions("minutely")
        assert stored.keys() == {"tick"}
        assert before <= datetime.fromisoformat(stored["tick"]) <= utc_now()
        assert_problem(await desk.http.post(path, json={"to": "end"}), 409, "use now")


# ---------------------------------------------------------------- the page


async def test_the_page_needs_no_other_host(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        page = await desk.http.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "/api/runs/{run_id}/retry" in page.text
        for word in ("<script", "https://", "//cdn"):
            assert word not in page.text


async def test_openapi_lists_every_path_behind_the_token(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        document = await desk.get("/openapi.json")
        for path, methods in document["paths"].items():
            assert path.startswith("/api/")
            for operation in methods.values():
                assert operation["security"], path
                assert operation["description"], path

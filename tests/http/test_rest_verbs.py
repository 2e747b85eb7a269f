"""What an operator does through the API: retry, cancel, replay, pause, limits, seek."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.flow import Flow
from turnout.service.domain.units import utc_now
from turnout.service.flowcontrol.use import Use
from turnout.service.journal.records import (
    Move,
)
from turnout.service.operate.operator import Operator
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.triggers.kafka import kafka
from turnout.triggers.timers import every

from .desk import assert_problem, bill, open_desk


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

"""The operator's API: who may ask, and what it tells."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import httpx
import pytest

from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.governance import guesses
from turnout.service.http.clients import Proxies
from turnout.service.journal.records import (
    Filter,
    StepRecord,
)
from turnout.service.operate import documents

from .desk import TOKEN, assert_problem, open_desk

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

"""What a sender is answered, at once or after the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.errors import (
    JournalBroken,
    JournalFull,
    Overloaded,
    TurnoutError,
)
from turnout.service.domain.event import Event
from turnout.service.domain.run import Outcome, RunError, RunState
from turnout.service.domain.trigger import Receipt, Reply
from turnout.triggers.webhook import WebhookTrigger, webhook

from .requests import accepted, hook_key, refused, request

__all__ = ["hook_key"]  # the fixture


class Answering(RecordingEmitter):
    """An emitter that answers as it is told."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__()
        self._receipt = receipt

    async def __call__(
        self, events: Sequence[Event], positions: Any = None, **_more: Any
    ) -> Sequence[Receipt]:
        await super().__call__(events, positions)
        return [self._receipt]


class TestAnswers:
    async def test_202_names_event_runs_and_duplicate(self) -> None:
        emit = RecordingEmitter()
        inbound = request(headers={"idempotency-key": "k"})
        first = await webhook("/orders").receive(inbound, emit)
        again = await webhook("/orders").receive(inbound, emit)
        assert json.loads(first.body) == {"event": "k", "runs": ["run-of-k"], "duplicate": False}
        assert (again.status, json.loads(again.body)["duplicate"]) == (202, True)

    async def test_the_same_id_with_another_body_is_409(self) -> None:
        emit = RecordingEmitter()
        key = {"idempotency-key": "k"}
        await webhook("/orders").receive(request(b"1", key), emit)
        reply = await webhook("/orders").receive(request(b"2", key), emit)
        assert reply.status == 409
        assert json.loads(reply.body)["event"] == "k"

    async def test_data_no_flow_takes_is_422_saying_why(self) -> None:
        refusals = {"bill": "amount: must be a number"}
        emit = Answering(Receipt(event="e", stored=False, refusals=refusals))
        reply = await webhook("/orders").receive(request(), emit)
        assert reply.status == 422
        assert json.loads(reply.body)["refusals"] == refusals

    @pytest.mark.parametrize(
        ("error", "least", "most"),
        [
            (Overloaded("full", retry_after_seconds=20), 15, 30),
            (Overloaded("full", retry_after_seconds=600), 300, 300),
            (Overloaded("full", retry_after_seconds=0), 1, 1),
            (JournalFull("disk full"), 1, 60),
            (JournalBroken("fsync failed"), 1, 60),
        ],
    )
    async def test_what_cannot_be_stored_is_503_to_come_back(
        self, error: TurnoutError, least: int, most: int
    ) -> None:
        emit = RecordingEmitter()
        emit.fail(error)
        seen = set()
        for _ in range(30):
            reply = await webhook("/orders").receive(request(), emit)
            assert reply.status == 503
            seen.add(int(dict(reply.headers)["retry-after"]))
        assert least <= min(seen) <= max(seen) <= most
        if error.args == ("full",) and least != most:
            assert len(seen) > 1, "a crowd would come back as one"


class TestWaiting:
    TRIGGER = webhook("/orders", respond=True)

    async def answer(self, outcome: Outcome | None, query: bytes = b"wait=10s") -> Reply:
        emit = RecordingEmitter()
        if outcome is not None:
            emit.results["run-of-k"] = outcome
        return await self.TRIGGER.receive(
            request(headers={"idempotency-key": "k"}, query=query), emit
        )

    async def test_the_result_is_answered(self) -> None:
        reply = await self.answer(Outcome(state=RunState.SUCCEEDED, result=b'{"receipt": 1}'))
        assert (reply.status, reply.body) == (200, b'{"receipt": 1}')
        assert (await self.answer(Outcome(state=RunState.SUCCEEDED))).body == b"null"

    async def test_a_failed_run_is_500_without_its_message(self) -> None:
        error = RunError(type="ValueError", message="password=hunter2")
        reply = await self.answer(Outcome(state=RunState.FAILED, error=error))
        assert reply.status == 500
        document = json.loads(reply.body)
        assert (document["run"], document["error"]) == ("run-of-k", "ValueError")
        assert b"hunter2" not in reply.body

    async def test_after_the_time_it_is_202(self) -> None:
        assert (await self.answer(None)).status == 202

    async def test_without_wait_nobody_waits(self) -> None:
        reply = await self.answer(Outcome(state=RunState.SUCCEEDED, result=b"1"), query=b"other=1")
        assert reply.status == 202

    async def test_too_many_waiters_is_still_accepted(self) -> None:
        class Full(RecordingEmitter):
            async def result(self, receipt: Receipt, timeout_seconds: float) -> Outcome | None:
                raise Overloaded("too many wait")

        reply = await self.TRIGGER.receive(request(query=b"wait=1s"), Full())
        assert reply.status == 202

    @pytest.mark.parametrize(
        "query", [b"wait", b"wait=", b"wait=10", b"wait=-1s", b"wait=2m", b"wait=%D9%A1s"]
    )
    async def test_a_wait_nobody_can_read_is_400_and_stores_nothing(self, query: bytes) -> None:
        assert (await refused(self.TRIGGER, request(query=query), 400))["field"] == "wait"

    async def test_a_sender_may_have_a_wait_of_its_own(self) -> None:
        event = await accepted(webhook("/orders"), request(query=b"wait=until+monday&n=1"))
        assert event.query == {"wait": "until monday", "n": "1"}

    async def test_our_wait_is_not_the_senders(self) -> None:
        emit = RecordingEmitter()
        await self.TRIGGER.receive(request(query=b"n=1&wait=1s&n=2"), emit)
        assert emit.events[0].query == {"n": ["1", "2"]}

    async def test_a_route_may_answer_every_request(self) -> None:
        trigger = webhook("/orders", respond="5s")
        outcome = Outcome(state=RunState.SUCCEEDED, result=b'{"a": 1}')
        assert (await self.reply(trigger, outcome)).body == b'{"a": 1}'
        assert (await self.reply(trigger, None)).status == 202

    @pytest.mark.parametrize(
        ("respond", "method", "query", "content_type", "body"),
        [
            (True, "GET", b"", "text/plain; charset=utf-8", "grüße".encode()),
            (True, "GET", b"wait=5s", "application/json", '"grüße"'.encode()),
            (True, "POST", b"wait=5s", "application/json", '"grüße"'.encode()),
            ("5s", "POST", b"", "text/plain; charset=utf-8", "grüße".encode()),
        ],
    )
    async def test_a_text_is_answered_as_it_is_unless_wait_asks_for_json(
        self, respond: Any, method: str, query: bytes, content_type: str, body: bytes
    ) -> None:
        trigger = webhook("/orders", respond=respond, methods=("GET", "POST"))
        outcome = Outcome(state=RunState.SUCCEEDED, result='"grüße"'.encode())
        reply = await self.reply(trigger, outcome, method=method, query=query)
        assert (reply.status, reply.content_type, reply.body) == (200, content_type, body)
        assert ("x-content-type-options", "nosniff") in reply.headers or "json" in content_type

    async def reply(self, trigger: WebhookTrigger, outcome: Outcome | None, **sent: Any) -> Reply:
        emit = RecordingEmitter()
        if outcome is not None:
            emit.results["run-of-k"] = outcome
        inbound = request(headers={"idempotency-key": "k"})
        return await trigger.receive(replace(inbound, **sent), emit)

"""Requests to a webhook trigger, and what it makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Inbound, Reply
from turnout.triggers.webhook import WebhookTrigger

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)

KEY = "a secret of the tests"


@pytest.fixture(autouse=True)
def hook_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", KEY)


def request(
    body: bytes | str = b"{}",
    headers: Mapping[str, bytes | str | Sequence[bytes]] | None = None,
    *,
    path: str = "/hooks/orders",
    query: bytes = b"",
    params: Mapping[str, str] | None = None,
) -> Inbound:
    given = {"content-type": "application/json"} | dict(headers or {})
    return Inbound(
        method="POST",
        path=path,
        params=params or {},
        query=query,
        headers={name.lower(): _values(value) for name, value in given.items()},
        body=body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body,
        client="127.0.0.1",
        received_at=NOW,
    )


def _values(value: bytes | str | Sequence[bytes]) -> list[bytes]:
    if isinstance(value, str):
        return [value.encode()]
    return [value] if isinstance(value, bytes) else list(value)


async def post(trigger: WebhookTrigger, inbound: Inbound) -> tuple[Reply, RecordingEmitter]:
    trigger.check()
    emit = RecordingEmitter()
    return await trigger.receive(inbound, emit), emit


async def accepted(trigger: WebhookTrigger, inbound: Inbound) -> Event:
    reply, emit = await post(trigger, inbound)
    assert reply.status == 202, reply.body
    (event,) = emit.events
    assert json.loads(reply.body)["event"] == event.id
    return event


async def refused(trigger: WebhookTrigger, inbound: Inbound, status: int) -> dict[str, Any]:
    reply, emit = await post(trigger, inbound)
    assert (reply.status, emit.events) == (status, []), reply.body
    assert reply.content_type == "application/problem+json"
    document: dict[str, Any] = json.loads(reply.body)
    assert document["status"] == status
    return document


CLOUDEVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "ce-1",
    "source": "https://shop.example/orders",
    "type": "com.example.order",
    "subject": "42",
    "time": "2026-01-31T09:00:00+01:00",
    "traceparent": "00-1-2-03",
}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}

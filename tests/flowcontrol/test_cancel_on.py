"""`cancel_on=`: an event cancels the unfinished runs that came before it and match it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.support.inside import quiet
from turnout import Event, emit, event, flow, sleep, webhook
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import RunState
from turnout.service.operate.documents import post_mortem
from turnout.testing import Service, hand_event, serve, typed_event, webhook_event

cancelled = event("order.cancelled")
reset = webhook("/reset/{room}", verify="none")


@flow(on=event("order.placed"), cancel_on=cancelled, match={"order": "id"})
async def fulfil(order: dict[str, Any]) -> None:
    await sleep("3d")


@flow(
    on=event("guest.arrived"),
    cancel_on=reset,
    match={"room": lambda event: event.data["number"] or None},
)
async def heat(guest: dict[str, Any]) -> None:
    await sleep("3d")


@flow(on=event("order.placed"), cancel_on=event("stop.*"))
async def watch(order: dict[str, Any]) -> None:
    await sleep("3d")


@flow
async def shop(order: int) -> str:
    return await emit("order.cancelled", {"order": order})


async def emitted(service: Service, made: Event) -> dict[str, str]:
    """Emit an event and go on as far as no time must pass; returns its runs by flow."""
    name = made.trigger
    emitter = service.process.api if name.startswith("event:") else service.process.emitters[name]
    (receipt,) = await emitter([made])
    await quiet(service)
    runs = [await service.look(run) for run in receipt.runs]
    return {run.flow: run.id for run in runs}


async def states(service: Service, *runs: str) -> list[RunState]:
    return [(await service.look(run)).state for run in runs]


async def test_an_event_cancels_the_runs_that_match() -> None:
    async with serve(fulfil, watch) as service:
        seven, eight = [
            (await emitted(service, typed_event(fulfil, {"id": number}))) for number in (7, "8")
        ]
        cancelling = typed_event(cancelled, {"order": "7"})
        await emitted(service, cancelling)
        assert await states(service, seven["fulfil"], eight["fulfil"]) == ["cancelled", "waiting"]
        shown = await post_mortem(service.journal, seven["fulfil"])
        assert shown["reason"] == f"cancelled by event {cancelling.id}"
        assert shown["cancelled_by"] == "api"
        await service.restart()
        await emitted(service, typed_event(cancelled, {"order": 8}))
        assert await states(service, eight["fulfil"], eight["watch"]) == ["cancelled", "waiting"]


async def test_a_field_without_a_value_matches_nothing() -> None:
    async with serve(fulfil) as service:
        runs = [await emitted(service, typed_event(fulfil, data)) for data in ({"id": None}, {})]
        for data in ({"order": None}, {}, {"order": "null"}):
            await emitted(service, typed_event(cancelled, data))
        assert await states(service, *(run["fulfil"] for run in runs)) == ["waiting", "waiting"]


async def test_without_match_an_event_cancels_every_run_of_the_flow() -> None:
    async with serve(watch, fulfil) as service:
        runs = [await emitted(service, typed_event(watch, {"id": each})) for each in (1, 2)]
        await service.process.api([replace(hand_event(type="stop.now"), trigger="api")])
        assert await states(service, *(each["watch"] for each in runs)) == ["cancelled"] * 2
        assert await states(service, *(each["fulfil"] for each in runs)) == ["waiting"] * 2


async def test_a_path_parameter_matches_what_a_function_says_of_the_run() -> None:
    async with serve(heat) as service:
        one, none = [
            (await emitted(service, typed_event(heat, {"number": number})))["heat"]
            for number in (12, 0)
        ]
        await emitted(service, webhook_event(reset, {}, params={"room": "12"}))
        assert await states(service, one, none) == ["cancelled", "waiting"]


async def test_a_cancel_that_came_first_is_not_remembered() -> None:
    async with serve(fulfil) as service:
        await emitted(service, typed_event(cancelled, {"order": 7}))
        run = (await emitted(service, typed_event(fulfil, {"id": 7})))["fulfil"]
        assert await states(service, run) == ["waiting"]


async def test_an_event_that_only_cancels_says_so() -> None:
    async with serve(fulfil) as service:
        made = typed_event(cancelled, {"order": 7})
        await emitted(service, made)
        decision = await service.assert_decided(made, "unmatched")
        assert decision["detail"] == "no flow starts on it; it cancels runs of fulfil"


async def test_an_event_of_a_flow_cancels_too() -> None:
    async with serve(fulfil, shop) as service:
        run = (await emitted(service, typed_event(fulfil, {"id": 7})))["fulfil"]
        await service.run(shop, 7)
        assert await states(service, run) == ["cancelled"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"match": "id"}, "match= says which runs an event of cancel_on= cancels"),
        ({"cancel_on": "order.cancelled"}, "cancel_on='order.cancelled' is not a trigger"),
        ({"cancel_on": [cancelled, reset]}, "name one trigger"),
        ({"cancel_on": cancelled, "match": 7}, 'write the field that both events have, match="'),
        ({"cancel_on": cancelled, "match": {}}, "match={}: write the field"),
        ({"cancel_on": cancelled, "match": lambda event: True}, "write the field"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Mapping[str, Any], words: str) -> None:
    with pytest.raises(SetupError) as refused:
        flow(**options)(fulfil.function)
    assert words in str(refused.value) and str(refused.value).startswith(f"{__file__}:")
